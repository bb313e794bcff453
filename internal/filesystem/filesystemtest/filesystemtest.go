// Package filesystemtest holds what the tests of several file systems need.
package filesystemtest

import (
	"compress/gzip"
	"io"
	"os"
	"testing"
)

// Unpacked returns what a gzip file holds: a disk of testdata, made once by the real tools.
func Unpacked(t testing.TB, path string) []byte {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatalf("unpack %s: %v", path, err)
	}
	data, err := io.ReadAll(z)
	if err != nil {
		t.Fatalf("unpack %s: %v", path, err)
	}
	return data
}
