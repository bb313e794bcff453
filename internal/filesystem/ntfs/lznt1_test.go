package ntfs

import (
	"bytes"
	"errors"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/filesystem"
)

// The example of [MS-XCA] 3.3.
func TestLZNT1Example(t *testing.T) {
	in := []byte{0x38, 0xb0, 0x88, 0x46, 0x23, 0x20, 0x00, 0x20, 0x47, 0x20, 0x41, 0x00, 0x10, 0xa2, 0x47, 0x01, 0xa0,
		0x45, 0x20, 0x44, 0x00, 0x08, 0x45, 0x01,
		0x50, 0x79, 0x00, 0xc0, 0x45, 0x20, 0x05, 0x24, 0x13, 0x88, 0x05, 0xb4, 0x02, 0x4a, 0x44, 0xef, 0x03, 0x58,
		0x02, 0x8c, 0x09, 0x16, 0x01, 0x48, 0x45,
		0x00, 0xbe, 0x00, 0x9e, 0x00, 0x04, 0x01, 0x18, 0x90, 0x00}
	want := "F# F# G A A G F# E D D E F# F# E E F# F# G A A G F# E D D E F# E D D E E F# D E F# G F# D E F# G F# E D " +
		"E A F# F# G A A G F# E D D E F# E D D\x00"
	out := make([]byte, 4096)
	if n, err := lznt1(out, in); err != nil || n != len(out) ||
		!bytes.Equal(bytes.TrimRight(out, "\x00"), []byte(want[:len(want)-1])) {
		t.Errorf("%d bytes, %v: %q", n, err, bytes.TrimRight(out, "\x00"))
	}
}

func FuzzLZNT1(f *testing.F) {
	f.Add([]byte{0x38, 0xb0, 0x88, 0x46}, 4096)
	f.Add([]byte{0xff, 0x3f, 1, 2, 3}, 65536)
	f.Add([]byte{}, 512)
	f.Fuzz(func(t *testing.T, in []byte, size int) {
		out := make([]byte, min(max(size, 0), 1<<20))
		n, err := lznt1(out, in)
		if n < 0 || n > len(out) || err != nil && !errors.Is(err, filesystem.ErrCorrupt) {
			t.Errorf("%d of %d bytes, %v", n, len(out), err)
		}
	})
}

// No two names become one, and each comes back.
func TestNames(t *testing.T) {
	seen := map[string]bool{}
	for _, units := range [][]uint16{{'a'}, {0xd800}, {0xdc00}, {0xd800, 0xdc00}, {0xdc00, 0xd800}, {0xd800, 'a'},
		{0xfffd}, {0xe000}} {
		var raw []byte
		for _, u := range units {
			raw = le.AppendUint16(raw, u)
		}
		name := decodeName(raw)
		if seen[name] {
			t.Errorf("%x is %q too", units, name)
		}
		seen[name] = true
		var back []byte
		for _, u := range encodeName(name) {
			back = le.AppendUint16(back, u)
		}
		if !bytes.Equal(back, raw) {
			t.Errorf("%x comes back as %x", raw, back)
		}
	}
}
