package vault_test

import (
	"context"
	"math/rand/v2"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/extent"
	"github.com/holdfast-vm/holdfast/internal/vault"
)

// Of the chunks that a part of a disk touches all is written that is not zeros, and of the others
// nothing.
func TestRestorePart(t *testing.T) {
	ctx := context.Background()
	for seed := range uint64(20) {
		rng := rand.New(rand.NewPCG(seed, 2))
		_, _, v := memVault(t)
		size := rng.IntN(60*testChunk) + 1
		d := &disk{data: make([]byte, size)}
		for at := 0; at < size; at += testChunk {
			if rng.IntN(3) > 0 {
				d.data[at+rng.IntN(min(testChunk, size-at))] = byte(at/testChunk + 1)
			}
		}
		s, err := v.Begin(ctx, "")
		if err == nil {
			err = put(ctx, s, d, extent.Set{{Off: 0, Len: int64(size)}}, nil)
		}
		if err == nil {
			err = s.Commit(ctx, newPoint("vm", d))
		}
		var stored *vault.Disk
		if err == nil {
			stored, err = v.OpenDisk(d.root, int64(size))
		}
		if err != nil {
			t.Fatal(err)
		}
		var part extent.Set
		want := make([]byte, size)
		for range rng.IntN(6) {
			off := rng.IntN(size)
			part = part.Union(extent.Of(extent.Extent{Off: int64(off), Len: int64(1 + rng.IntN(size-off))}))
		}
		for _, e := range part.Align(testChunk, int64(size)) {
			copy(want[e.Off:e.End()], d.data[e.Off:e.End()])
		}
		got := make(writerAt, size)
		if err := stored.RestorePart(ctx, part, got, nil); err != nil || string(got) != string(want) {
			t.Fatalf("seed %d: part %v of %d bytes is not what was to be restored, %v", seed, part, size, err)
		}
	}
}
