package vault

import (
	"context"
	"fmt"

	"github.com/holdfast-vm/holdfast/internal/point"
	"github.com/holdfast-vm/holdfast/internal/vault/chunk"
	"github.com/holdfast-vm/holdfast/internal/vault/row"
	"github.com/holdfast-vm/holdfast/internal/vault/state"
)

// treeOf is a stored disk or file of a point.
type treeOf struct {
	name   string
	root   chunk.ID
	size   int64 // bytes
	chunks int64
}

// fileName is how a point's file is called among its trees.
func fileName(f point.File) string { return f.Role + "/" + f.Name }

// roots returns the trees of a point: of disks, then of files.
func (v *Vault) roots(p *point.RecoveryPoint) ([]treeOf, error) {
	var out []treeOf
	add := func(name, root string, size int64) error {
		id, err := chunk.ParseID(root)
		if err != nil || size < 0 {
			return fmt.Errorf("%w: point %s: %s has %d bytes and the root %q", ErrCorrupt, p.ID, name, size, root)
		}
		cs := int64(v.conf.ChunkSize)
		out = append(out, treeOf{name: name, root: id, size: size, chunks: (size + cs - 1) / cs})
		return nil
	}
	for _, d := range p.Disks {
		if err := add(d.Name, d.Root, d.Size); err != nil {
			return nil, err
		}
	}
	for _, f := range p.Files {
		if err := add(fileName(f), f.Root, f.Size); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// treesOf returns the trees of a point of the state, with their lines.
func (v *Vault) treesOf(ctx context.Context, p *state.Point) ([]row.Tree, error) {
	s, err := storedOf(*p)
	if err != nil {
		return nil, err
	}
	trees, err := v.content.Trees(ctx, s.row, v.goodPack)
	if err != nil {
		return nil, fmt.Errorf("read point %s: %w", pointID(p.ID), err)
	}
	return trees, nil
}

// manifestOf returns the ID of a point's manifest, and whether it is in a pack.
func manifestOf(p *state.Point) (chunk.ID, bool) {
	s, err := storedOf(*p)
	if err != nil || s.row.Inline != nil {
		return chunk.ID{}, false
	}
	return s.row.Manifest.ID, true
}
