package pack

import (
	"bytes"
	"context"
	"errors"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/blob"
	"github.com/holdfast-vm/holdfast/internal/blob/mem"
	"github.com/holdfast-vm/holdfast/internal/vault/chunk"
)

var errDisk = errors.New("the disk is gone")

// failing is a store whose objects take n writes and then no more.
type failing struct {
	blob.Store
	n int
}

func (f failing) Create(ctx context.Context, name string) (blob.Writer, error) {
	w, err := f.Store.Create(ctx, name)
	return &failingWriter{w, f.n}, err
}

type failingWriter struct {
	blob.Writer
	n int
}

func (w *failingWriter) Write(p []byte) (int, error) {
	if w.n--; w.n < 0 {
		return 0, errDisk
	}
	return w.Writer.Write(p)
}

// fill appends chunks of 64 KiB to a new pack until 8 MiB or an error, and commits it.
func fill(t *testing.T, store blob.Store) ([]Entry, error) {
	t.Helper()
	w, err := NewSecret([32]byte{7}).Create(t.Context(), store, Ref{Kind: Data}, [16]byte{})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	for i := range 128 {
		p := bytes.Repeat([]byte{byte(i), byte(i >> 3), 1}, chunk.DefaultSize/3)
		if _, err := w.Append(chunk.ID{byte(i), 1}, len(p), p, chunk.Plain); err != nil {
			return nil, err
		}
	}
	return w.Commit(t.Context())
}

// A write that fails behind our back is told of, at the latest by Commit, and there is no pack.
func TestWriteThatFailsBehind(t *testing.T) {
	for n := 0; ; n++ {
		store := mem.New()
		entries, err := fill(t, failing{store, n})
		if err == nil {
			if n < 8 || len(entries) != 128 {
				t.Fatalf("a pack of 8 MiB took %d writes and has %d chunks", n, len(entries))
			}
			return
		}
		if !errors.Is(err, errDisk) {
			t.Fatalf("write %d failed, and the error is %v", n, err)
		}
		if _, err := store.Stat(t.Context(), Ref{Kind: Data}.Name()); !errors.Is(err, blob.ErrNotExist) {
			t.Fatalf("write %d failed, and the pack is there: %v", n, err)
		}
	}
}
