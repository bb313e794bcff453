package diskimage_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/diskimage"
	"github.com/holdfast-vm/holdfast/internal/extent"
)

// What one process wrote of an image and left is there for the next, which completes it.
func TestPartialIsGoneOnWith(t *testing.T) {
	for _, format := range []string{"raw", "qcow2"} {
		t.Run(format, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "disk")
			p, err := diskimage.CreatePartial(path, 8*mib, format, someData)
			if err != nil {
				t.Fatal(err)
			}
			want := make([]byte, 8*mib)
			for i, e := range someData {
				copy(want[e.Off:e.End()], bytes.Repeat([]byte{byte(i + 1)}, int(e.Len)))
				if _, err := p.WriteAt(want[e.Off:e.End()], e.Off); err != nil {
					t.Fatal(err)
				}
				if err := errors.Join(p.Sync(), p.Leave(), p.Leave(), p.Abort()); err != nil {
					t.Fatal(err)
				}
				if got := names(t, dir); got != p.Name() {
					t.Errorf("left: %s", got)
				}
				if _, err := diskimage.OpenPartial(path, p.Name(), 9*mib, format, someData[:1]); err == nil {
					t.Error("a copy of another disk was gone on with")
				}
				if p, err = diskimage.OpenPartial(path, p.Name(), 8*mib, format, someData); err != nil {
					t.Fatal(err)
				}
			}
			if err := errors.Join(p.Commit(), p.Leave()); err != nil {
				t.Fatal(err)
			}
			if got := names(t, dir); got != "disk" {
				t.Errorf("files: %s", got)
			}
			requireBytes(t, path, format, want)
			if _, err := diskimage.OpenPartial(path, p.Name(), 8*mib, format, someData); !errors.Is(err,
				os.ErrNotExist) {
				t.Errorf("opened what was committed: %v", err)
			}
			if _, err := diskimage.CreatePartial(path, 8*mib, format, someData); !errors.Is(err, diskimage.ErrExists) {
				t.Errorf("begun over an image: %v", err)
			}
		})
	}
}

func TestPartialOfTooMuch(t *testing.T) {
	dir := t.TempDir()
	huge := extent.Set{{Off: 0, Len: 1 << 60}}
	if _, err := diskimage.CreatePartial(filepath.Join(dir, "disk"), 1<<60, "raw", huge); !errors.Is(err,
		diskimage.ErrNoSpace) {
		t.Errorf("begun without room: %v", err)
	}
	if got := names(t, dir); got != "" {
		t.Errorf("left: %s", got)
	}
}
