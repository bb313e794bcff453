package main

import (
	"bufio"
	"fmt"
	"os"
)

func main() {
	if len(os.Args) != 5 {
		fmt.Fprintln(os.Stderr, "usage: reader VAULTDIR KEYFILE POINT DISK > out")
		os.Exit(1)
	}
	if err := run(os.Args[1], os.Args[2], os.Args[3], os.Args[4]); err != nil {
		fmt.Fprintln(os.Stderr, "reader:", err)
		os.Exit(1)
	}
}

func run(dir, keyFile, ref, disk string) error {
	key, err := os.ReadFile(keyFile)
	if err != nil {
		return err
	}
	v, err := open(dir, key)
	if err != nil {
		return err
	}
	p, err := v.point(ref)
	if err != nil {
		return err
	}
	out := bufio.NewWriterSize(os.Stdout, 1<<20)
	if err := v.copyDisk(out, p, disk); err != nil {
		return err
	}
	return out.Flush()
}
