package qemu

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A machine that does not start leaves nothing behind; what its QEMU said is in the error.
func TestNotStartedLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	h, err := New(Scheme + filepath.Join(t.TempDir(), "q"))
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	_, err = h.Define(t.Context(), rebuildArgs(dir, "qemu-system-x86_64 -m 16 -nodefaults -cpu no-such-processor"))
	if err == nil || !strings.Contains(err.Error(), "no-such-processor") {
		t.Errorf("what QEMU said is not in %v", err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left are %v, %v", left, err)
	}
}
