package vault

import (
	"context"
	"fmt"
	"slices"

	"github.com/holdfast-vm/holdfast/internal/vault/index"
	"github.com/holdfast-vm/holdfast/internal/vault/pack"
)

const (
	// A pack of which less than half is needed is thin: rewriting it costs no more than it frees.
	thinShare = 0.5
	// Packs under a sixteenth of the full size are small; so many of a kind are rewritten into one.
	smallShare, manySmall = 1.0 / 16, 32
)

// choose returns the packs to delete and those to rewrite.
func (g *collector) choose() (dead, thin []pack.Ref) {
	busy := make(map[string]bool)
	for i := range g.leases {
		busy[g.leases[i].Session] = true
	}
	small := map[pack.Kind][]pack.Ref{}
	for r, size := range g.packs {
		if g.avoid[r] || busy[r.ID.String()[:24]] {
			continue
		}
		live := g.marks.live[r]
		limit := g.v.opts.PackSize
		if r.Kind == pack.Meta {
			limit = metaPackSize
		}
		switch {
		case live == 0:
			dead = append(dead, r)
		case float64(live) < thinShare*float64(size-pack.HeaderSize-pack.FooterSize):
			thin = append(thin, r)
		case float64(size) < smallShare*float64(limit):
			small[r.Kind] = append(small[r.Kind], r)
		}
	}
	for _, refs := range small {
		if len(refs) >= manySmall {
			thin = append(thin, refs...)
		}
	}
	return dead, thin
}

func (g *collector) estimate(dead, thin []pack.Ref) {
	for _, r := range dead {
		g.report.FreedBytes += g.packs[r]
	}
	for _, r := range thin {
		g.report.RewrittenBytes += g.marks.live[r]
		g.report.FreedBytes += g.packs[r] - g.marks.live[r]
	}
}

// rewrite copies what is needed of thin packs into new ones. When it returns they are durable.
func (g *collector) rewrite(ctx context.Context, thin []pack.Ref) error {
	s, err := g.v.begin(ctx, "garbage collection")
	if err != nil {
		return err
	}
	defer s.end(context.WithoutCancel(ctx))
	for _, r := range thin {
		if err := g.rewriteOne(ctx, s, r); err != nil {
			return fmt.Errorf("rewrite pack %s: %w", r.ID, err)
		}
	}
	if err := s.data.finish(ctx); err != nil {
		return err
	}
	return s.meta.finish(ctx)
}

func (g *collector) rewriteOne(ctx context.Context, s *Session, r pack.Ref) error {
	entries, err := g.v.packs.Table(ctx, g.v.store, r, g.v.id, g.packs[r])
	if err != nil {
		return err
	}
	to := s.data
	if r.Kind == pack.Meta {
		to = s.meta
	}
	for i := range entries {
		e := &entries[i]
		needed, err := g.needed(ctx, r, e)
		if err != nil {
			return err
		}
		if !needed {
			continue
		}
		sealed := make([]byte, e.Stored)
		if err := g.v.reader.ReadSealed(ctx, r, sealed, int64(e.Offset)); err != nil {
			return err
		}
		encoded, err := g.v.reader.Unseal(r, e, sealed)
		if err != nil {
			return err
		}
		w, err := to.borrow(ctx)
		if err != nil {
			return err
		}
		if _, err := w.Append(e.ID, int(e.Plain), encoded, e.Encoding); err != nil {
			return err
		}
		g.report.RewrittenBytes += int64(e.Stored) + pack.EntrySize
		if err := to.giveBack(ctx, w); err != nil {
			return err
		}
	}
	return nil
}

// needed reports whether this very copy of a chunk is the one that was marked.
func (g *collector) needed(ctx context.Context, r pack.Ref, e *pack.Entry) (bool, error) {
	locs, err := g.marks.snap.FindAll(ctx, e.ID)
	if err != nil {
		return false, err
	}
	i := slices.IndexFunc(locs, func(l index.Loc) bool { return l.Ref == r && l.Offset == e.Offset })
	return i >= 0 && g.marks.has(&locs[i]), nil
}
