package durable_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/durable"
)

// A name is lost with the power until its directory was synced, by whichever process.
func TestForgetfulForgets(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "record")
	killed := errors.New("killed")
	f := new(durable.Forgetful)
	read := func() string {
		text, _ := os.ReadFile(path)
		return string(text)
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(durable.WriteNew(f, path, []byte("one")))
	f.KillAtSync(dir, 1, killed)
	must(durable.WriteReplace(f, path, []byte("two")))
	if err := durable.WriteReplace(f, path, []byte("three")); !errors.Is(err, killed) {
		t.Fatalf("the second sync: %v", err)
	}
	if err := f.Remove(path); !errors.Is(err, killed) {
		t.Fatalf("a dead process removes: %v", err)
	}
	if !f.Restart() || read() != "three" {
		t.Fatalf("the next process finds %q", read())
	}
	must(f.LosePower())
	if read() != "two" {
		t.Errorf("after power loss: %q", read())
	}
	must(durable.WriteReplace(f, path, []byte("four")))
	must(f.LosePower())
	if read() != "four" {
		t.Errorf("what was synced: %q", read())
	}
	must(os.Rename(path, path+"2"))
	f.Renamed(path, path+"2")
	must(f.LosePower())
	if read() != "four" {
		t.Errorf("a rename of others that was not synced: %q", read())
	}
}
