package content

import (
	"context"
	"fmt"

	"github.com/holdfast-vm/holdfast/internal/vault/chunk"
	"github.com/holdfast-vm/holdfast/internal/vault/index"
	"github.com/holdfast-vm/holdfast/internal/vault/log"
	"github.com/holdfast-vm/holdfast/internal/vault/pack"
	"github.com/holdfast-vm/holdfast/internal/vault/row"
)

// Good returns a pack that is good as the log was last read.
type Good func(ctx context.Context, id log.ObjectID) (o log.Object, ok bool, err error)

// Manifest returns all of a point: what stands in its row; or at the place that the row names,
// which takes no index, while its pack is good; or wherever it was moved. Damage is ErrCorrupt.
func (s *Source) Manifest(ctx context.Context, r *row.Row, good Good) (*row.Manifest, error) {
	raw := r.Inline
	if raw == nil {
		var err error
		if raw, err = s.manifestBytes(ctx, &r.Manifest, good); err != nil {
			return nil, fmt.Errorf("read the manifest of point %s: %w", r.Point.ID, err)
		}
	}
	m, err := row.DecodeManifest(raw)
	if err != nil {
		return nil, fmt.Errorf("%w: manifest of point %s: %w", ErrCorrupt, r.Point.ID, err)
	}
	if m.Point.ID != r.Point.ID {
		return nil, fmt.Errorf("%w: the manifest of point %s is one of point %s", ErrCorrupt, r.Point.ID, m.Point.ID)
	}
	return m, nil
}

// Trees returns the trees of a point: of its disks, then of its files.
func (s *Source) Trees(ctx context.Context, r *row.Row, good Good) ([]row.Tree, error) {
	if !r.Short {
		return r.Trees, nil
	}
	m, err := s.Manifest(ctx, r, good)
	if err != nil {
		return nil, err
	}
	return m.Trees, nil
}

// manifestBytes reads a manifest where it was first, or where else it is.
func (s *Source) manifestBytes(ctx context.Context, p *row.Place, good Good) ([]byte, error) {
	if p.Plain > pack.MaxManifest || p.Stored > pack.MaxManifest+pack.TagSize {
		return nil, wrongSize(p.ID, p.Plain)
	}
	plain := make([]byte, p.Plain)
	o, ok, err := good(ctx, p.Pack)
	if err != nil {
		return nil, err
	}
	if ok {
		codec := codecs.Get().(*chunk.Codec)
		defer codecs.Put(codec)
		err := s.readLoc(ctx, &index.Loc{Pack: o, Slot: p.Slot, Entry: p.Entry}, plain, codec)
		if err == nil || !IsDamage(err) {
			return plain, err
		}
	}
	plain, err = s.Chunk(ctx, p.ID, plain)
	if err == nil && len(plain) != int(p.Plain) {
		err = wrongSize(p.ID, uint32(len(plain)))
	}
	return plain, err
}
