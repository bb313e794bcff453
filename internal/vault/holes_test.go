package vault

import (
	"testing"

	"filippo.io/age"

	"github.com/holdfast-vm/holdfast/internal/blob/mem"
	"github.com/holdfast-vm/holdfast/internal/extent"
	"github.com/holdfast-vm/holdfast/internal/vault/tree"
)

const holeChunk = 16 << 10

// patternReader reads as bytes that differ from chunk to chunk.
type patternReader struct{}

func (r patternReader) ReadAt(p []byte, off int64) (int, error) {
	for i := range p {
		p[i] = byte((off+int64(i))/holeChunk) | 1
	}
	return len(p), nil
}

// emptyVault opens a vault in memory.
func emptyVault(t *testing.T) *Vault {
	t.Helper()
	identity, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	key, store := Key{Identity: identity.String()}, mem.New()
	if _, err := Init(t.Context(), store, InitOptions{ChunkSize: holeChunk, Keys: []NamedKey{{Name: "test", Key: key}}}); err != nil {
		t.Fatal(err)
	}
	v, err := Open(t.Context(), store, key, Options{Workers: 2})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// spansOf returns how many leaves a batch has workers look at.
func spansOf(t *testing.T, s *Session, in DiskInput) int {
	t.Helper()
	p, err := s.newPut(in)
	if err != nil {
		t.Fatal(err)
	}
	out, n := make(chan span), 0
	done := make(chan error, 1)
	go func() { defer close(out); done <- p.split(t.Context(), out) }()
	for sp := range out {
		if len(sp.data)+len(sp.zero) == 0 {
			t.Errorf("a span of leaf %d with nothing in it", sp.leaf)
		}
		n++
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	return n
}

// A batch costs what has data, now or in the last point: holes that were holes before are not gone through, however large the disk is.
func TestHolesThatStayHolesCostNothing(t *testing.T) {
	const width = holeChunk * tree.FanOut // of a leaf
	v := emptyVault(t)
	s, err := v.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Abort()
	var counts [][2]int
	for _, size := range []int64{1 << 30, 8 << 40} {
		whole := extent.Set{{Len: size}}
		in := DiskInput{Size: size, Source: patternReader{}, Data: extent.Of(
			extent.Extent{Off: 3 * width, Len: 2 * width}, extent.Extent{Off: size - holeChunk, Len: holeChunk},
		)}
		in.Zero = whole.Subtract(in.Data)
		first := spansOf(t, s, in)
		out, err := s.PutDisk(t.Context(), in)
		if err != nil {
			t.Fatal(err)
		}
		if want := int64(2*width + holeChunk); out.Used != want {
			t.Errorf("%d bytes are used, %d were written", out.Used, want)
		}
		again := in // the next point: what had data at the end is a hole now
		again.Base, again.BaseUsed = out.Root, out.Used
		again.Data = again.Data[:1]
		again.Zero = whole.Subtract(again.Data)
		counts = append(counts, [2]int{first, spansOf(t, s, again)})
		if out, err = s.PutDisk(t.Context(), again); err != nil || out.Used != 2*width {
			t.Errorf("%d bytes are used, %d were left: %v", out.Used, 2*width, err)
		}
	}
	if counts[0] != counts[1] || counts[1] != [2]int{3, 3} {
		t.Errorf("disks with the same data have workers look at %v leaves; 3 and 3 have data", counts)
	}
}
