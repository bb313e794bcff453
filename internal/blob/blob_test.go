package blob_test

import (
	"strings"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/blob"
)

// A valid name is a path that stays below the directory it is joined to; validity is decided part
// by part.
func FuzzValidName(f *testing.F) {
	for _, name := range []string{"a", "packs/00/ab", "tmp/x", "../x", "a//b", "", ".", "x/..",
		strings.Repeat("n", 256), "Ä"} {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		if blob.ValidName(name) != nil {
			return
		}
		if len(name) == 0 || len(name) > 255 || strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789._-/") != "" {
			t.Errorf("%q passes", name)
		}
		for i, part := range strings.Split(name, "/") {
			if part == "" || part == "." || part == ".." || i == 0 && part == "tmp" {
				t.Errorf("%q passes with a part %q", name, part)
			}
			if part != "tmp" && blob.ValidName(part) != nil {
				t.Errorf("%q passes but its part %q does not", name, part)
			}
		}
	})
}
