package vault

import (
	"context"

	"github.com/holdfast-vm/holdfast/internal/point"
	"github.com/holdfast-vm/holdfast/internal/vault/chunk"
	"github.com/holdfast-vm/holdfast/internal/vault/index"
	"github.com/holdfast-vm/holdfast/internal/vault/mark"
	"github.com/holdfast-vm/holdfast/internal/vault/pack"
	"github.com/holdfast-vm/holdfast/internal/vault/tree"
)

// NeededBytes works out, the slow way, what those disks of points need, and with d nil their files
// and manifests, for which keep reports true: bytes of rows in packs, each counted once.
func NeededBytes(ctx context.Context, v *Vault, keep func(p *point.RecoveryPoint, d *point.Disk) bool) (int64, error) {
	s := &surveyor{v: v, bad: func(_ string, err error) error { return err }}
	points, _, err := s.survey(ctx)
	if err != nil {
		return 0, err
	}
	snap, err := v.index.Snapshot(ctx)
	if err != nil {
		return 0, err
	}
	n := &needed{v: v, snap: snap, bytes: map[chunk.ID]int64{}}
	for _, p := range points {
		for i, t := range p.trees {
			var d *point.Disk
			if i < len(p.row.Point.Disks) {
				d = &p.row.Point.Disks[i]
			}
			if keep(&p.row.Point, d) {
				n.add(ctx, t.root, tree.Levels(t.chunks)-1)
			}
		}
		if keep(&p.row.Point, nil) {
			n.add(ctx, p.manifest, -1)
		}
	}
	var sum int64
	for _, b := range n.bytes {
		sum += b
	}
	return sum, n.err
}

type needed struct {
	v     *Vault
	snap  *index.Snapshot
	bytes map[chunk.ID]int64
	err   error
}

// add counts a node, or at level -1 a chunk or manifest, and what is below.
func (n *needed) add(ctx context.Context, id chunk.ID, level int) {
	if n.bytes[id] > 0 || id.IsHole() || n.err != nil {
		return
	}
	locs, err := n.snap.FindAll(ctx, id)
	if n.err = err; err != nil {
		return
	}
	n.bytes[id] = int64(locs[mark.Best(locs, nil)].Stored) + pack.RowSize
	if level < 0 {
		return
	}
	node, err := n.v.content.Node(ctx, id, level)
	if n.err = err; err != nil {
		return
	}
	for _, child := range node.Slots {
		n.add(ctx, child, level-1)
	}
}

// ManifestOffset returns where the manifest of a point lies in its pack.
func ManifestOffset(ctx context.Context, v *Vault, id point.ID) (uint32, error) {
	p, err := v.find(ctx, string(id))
	if err != nil {
		return 0, err
	}
	return p.row.Manifest.Offset, nil
}
