// Command holdfast protects virtual machines on QEMU/KVM: it takes recovery points of them while
// they run, and brings them back.
package main

import (
	"os"

	"github.com/holdfast-vm/holdfast/internal/cli"
)

func main() {
	os.Exit(cli.Main())
}
