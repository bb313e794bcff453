package console_test

import (
	"bytes"
	"errors"
	"image/png"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/hypervisor/console"
)

func TestPNG(t *testing.T) {
	pixels := []byte{255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 8, 7, 1, 2, 3, 4, 5, 6}
	data, err := console.PNG(append([]byte("P6\n# by QEMU\n3 2\n255\n"), pixels...))
	if err != nil {
		t.Fatal(err)
	}
	img, err := png.Decode(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	for i := range 6 {
		r, g, b, a := img.At(i%3, i/3).RGBA()
		got := []byte{byte(r >> 8), byte(g >> 8), byte(b >> 8)}
		if !bytes.Equal(got, pixels[i*3:i*3+3]) || a != 0xffff {
			t.Errorf("pixel %d is %v, want %v", i, got, pixels[i*3:i*3+3])
		}
	}
	if again, err := console.PNG(data); err != nil || !bytes.Equal(again, data) {
		t.Errorf("a PNG is changed (%v)", err)
	}
	for _, s := range []string{"", "P6", "P5 1 1 255 ", "P6 1 1 255", "P6 2 2 255 abc", "P6 99999 99999 255 ",
		"P6 1 1 65535 abcdef", "P6 0 1 255 ", "P6 -1 1 255 "} {
		if _, err := console.PNG([]byte(s)); !errors.Is(err, console.ErrFormat) {
			t.Errorf("%q: %v", s, err)
		}
	}
}

func FuzzPNG(f *testing.F) {
	f.Add([]byte("P6\n# c\n1 1\n255\nabc"))
	f.Add([]byte("P6 1 1 255 "))
	f.Add([]byte("\x89PNG\r\n\x1a\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		out, err := console.PNG(data)
		if err == nil && len(out) > 4*len(data)+4096 {
			t.Fatalf("%d bytes of %d", len(out), len(data))
		}
	})
}

func TestTail(t *testing.T) {
	path := filepath.Join(t.TempDir(), "serial")
	if _, err := console.Tail(path, 10); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("of no file: %v", err)
	}
	for _, text := range []string{"", "short", "just 10 by", strings.Repeat("long ", 1000) + "end"} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := console.Tail(path, 10); err != nil || got != text[max(0, len(text)-10):] {
			t.Errorf("the end of %q: %q, %v", text, got, err)
		}
	}
}
