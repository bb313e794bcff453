package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"time"

	"github.com/holdfast-vm/holdfast/internal/blob/dir"
	"github.com/holdfast-vm/holdfast/internal/extent"
	"github.com/holdfast-vm/holdfast/internal/point"
	"github.com/holdfast-vm/holdfast/internal/vault"
)

// generation is a disk whose chunks are all different from each other and from those of other
// generations.
type generation int64

const generationChunk = 64 << 10

func (g generation) ReadAt(p []byte, off int64) (int, error) {
	clear(p)
	for at := 0; at < len(p); at += generationChunk {
		binary.LittleEndian.PutUint64(p[at:], uint64(g)+1)
		binary.LittleEndian.PutUint64(p[at+8:], uint64(off)+uint64(at))
	}
	return len(p), nil
}

// changedChunks is how many chunks each point changes.
const changedChunks = 50

// fillPoints gives a new vault its points: the first has a chunk in each stride of its disk, each
// later one changes some of them.
func fillPoints(o *opened) error {
	ctx := context.Background()
	store, err := dir.Open(o.repo)
	if err != nil {
		return err
	}
	defer store.Close()
	key, err := os.ReadFile(o.repo + ".key")
	if err != nil {
		return err
	}
	v, err := vault.Open(ctx, store, vault.Key{Identity: string(key)}, vault.Options{})
	if err != nil {
		return err
	}
	var last point.Disk
	var parent point.ID
	for n := range o.points {
		var data []extent.Extent
		for at, i := int64(0), 0; at < o.size && (n == 0 || i < changedChunks); at, i = at+o.stride, i+1 {
			off := at
			if n > 0 {
				off = (int64(i)*997 + int64(n)*31) % (o.size / o.stride) * o.stride
			}
			data = append(data, extent.Extent{Off: off, Len: generationChunk})
		}
		s, err := v.Begin(ctx, "")
		if err != nil {
			return err
		}
		out, err := s.PutDisk(ctx, vault.DiskInput{Size: o.size, Base: last.Root, Of: parent, BaseUsed: last.Used,
			Data: extent.Of(data...), Source: generation(n)})
		if err != nil {
			return fmt.Errorf("point %d: %w", n, err)
		}
		last = point.Disk{Name: "vda", Size: o.size, Root: out.Root, Used: out.Used}
		p := &point.RecoveryPoint{ID: point.NewID(), VM: "open", Time: time.Now().UTC(), Consistency: point.Crash,
			ConsistencyReason: "synthetic", Rung: point.Offline,
			Parent: parent, Disks: []point.Disk{last}}
		if err := s.Commit(ctx, p); err != nil {
			return fmt.Errorf("point %d: %w", n, err)
		}
		parent = p.ID
	}
	o.id = string(parent)
	return v.Close()
}
