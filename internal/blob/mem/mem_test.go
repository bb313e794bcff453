package mem_test

import (
	"errors"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/blob"
	"github.com/holdfast-vm/holdfast/internal/blob/blobtest"
	"github.com/holdfast-vm/holdfast/internal/blob/mem"
)

func TestContract(t *testing.T) {
	blobtest.Run(t, func(*testing.T) blob.Store { return mem.New() })
}

func TestCorrupt(t *testing.T) {
	s := mem.New()
	if err := blob.Put(t.Context(), s, "a", []byte("abc")); err != nil {
		t.Fatal(err)
	}
	flipAndCut := func(p []byte) []byte {
		p[0] ^= 1
		return p[:2]
	}
	if err := s.Corrupt("a", flipAndCut); err != nil {
		t.Fatal(err)
	}
	if got, err := blob.Get(t.Context(), s, "a"); string(got) != "`b" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
	if err := s.Corrupt("b", flipAndCut); !errors.Is(err, blob.ErrNotExist) {
		t.Errorf("corrupt what is not there: %v", err)
	}
}
