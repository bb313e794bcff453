package gc

import (
	"slices"
	"time"

	"github.com/holdfast-vm/holdfast/internal/vault/log"
	"github.com/holdfast-vm/holdfast/internal/vault/pack"
	"github.com/holdfast-vm/holdfast/internal/vault/state"
)

// Policy says which packs are rewritten, and when. The zero value of each field is its default. The
// defaults keep a vault that takes a point every few seconds and thins them to a grid within 1.2
// times of what lives in it, for half a byte rewritten per byte that is added.
type Policy struct {
	// Fresh is the share of living bytes below which a pack of a session is rewritten; 0 means 0.7.
	Fresh float64
	// Moved is that of a pack that a rewriting made; 0 means 0.5.
	Moved float64
	// Settle is how long after the first of its rows was freed a fresh pack is rewritten, so that
	// what is thinned out meanwhile is not moved; 0 means 30 minutes, negative none.
	Settle time.Duration
	// PackSize is how large packs are made, in bytes; 0 means 64 MiB. Those below a sixteenth are
	// small.
	PackSize int64
	// SmallAge is the age from which small fresh packs are merged; 0 means 3 days, negative none.
	SmallAge time.Duration
	// ManySmall is how many of them are merged at least; 0 means 32.
	ManySmall int
	// KeepParts is how long the literal bytes of recipes are kept for mirrors that lag; 0 means 7
	// days, negative none.
	KeepParts time.Duration
	// Budget is how many bytes are moved at most in a run; 0 means no limit. At least one pack is.
	Budget int64
}

const (
	smallShare = 16
	deadShare  = 0.01 // below it a pack may be dead: what the state knows of its bytes is not exact
)

func (p Policy) withDefaults() Policy {
	defaults(&p.Fresh, 0.7)
	defaults(&p.Moved, 0.5)
	defaults(&p.Settle, 30*time.Minute)
	defaults(&p.PackSize, 64<<20)
	defaults(&p.SmallAge, 72*time.Hour)
	defaults(&p.ManySmall, 32)
	defaults(&p.KeepParts, 7*24*time.Hour)
	defaults(&p.Budget, 1<<62)
	return p
}

func defaults[T comparable](v *T, to T) {
	var zero T
	if *v == zero {
		*v = to
	}
}

// verdict is what is to become of a pack.
type verdict int

const (
	keep  verdict = iota
	dead          // perhaps: its table says whether all in it is freed
	thin          // its rows that live are moved
	small         // so too, if there are many
	part          // literal bytes that nobody needs any more
)

// live returns about how many bytes live in a pack, of how many. Tables count with what they tell
// of.
func live(p *state.Pack) (live, of int64) {
	of = max(int64(p.Object.Size)-pack.HeaderSize-pack.FooterSize-pack.TagSize, 1)
	freed := int64(p.FreedBytes) + int64(bitmap(p.Freed).count())*pack.RowSize
	return max(of-freed, 0), of
}

// judge says what is to become of a good object at a time, by what the state knows of it.
func (p *Policy) judge(x *state.Pack, now time.Time) verdict {
	age := now.Sub(time.UnixMilli(x.Time))
	if x.Object.Kind == log.Part {
		if age >= p.KeepParts {
			return part
		}
		return keep
	}
	living, of := live(x)
	share := float64(living) / float64(of)
	switch {
	case living < 2*pack.RowSize || share < deadShare:
		return dead
	case p.isThin(x, share, now):
		return thin
	case !x.Moved && int64(x.Object.Size) < p.PackSize/smallShare && age >= p.SmallAge && p.SmallAge > 0:
		return small
	}
	return keep
}

// isThin reports whether so little of a pack lives that the rest is moved now.
func (p *Policy) isThin(x *state.Pack, share float64, now time.Time) bool {
	if x.Moved {
		return share < p.Moved
	}
	return share < p.Fresh && x.FreedSince != 0 && now.Sub(time.UnixMilli(x.FreedSince)) >= p.Settle
}

// plan is which packs are to go, and in which batches what lives in them moves.
type plan struct {
	dead []state.Pack // perhaps
	thin []state.Pack // the oldest first
	part []state.Pack
}

// plan sorts packs by what is to become of them.
func (p *Policy) plan(packs []state.Pack, now time.Time) (pl plan, merged int) {
	var smalls []state.Pack
	for _, x := range packs {
		switch p.judge(&x, now) {
		case dead:
			pl.dead = append(pl.dead, x)
		case thin:
			pl.thin = append(pl.thin, x)
		case small:
			smalls = append(smalls, x)
		case part:
			pl.part = append(pl.part, x)
		}
	}
	if len(smalls) >= p.ManySmall {
		pl.thin, merged = append(pl.thin, smalls...), len(smalls)
	}
	slices.SortStableFunc(pl.thin, func(a, b state.Pack) int {
		if d := a.Time - b.Time; d != 0 {
			return int(min(max(d, -1), 1))
		}
		return int(int64(a.Added) - int64(b.Added))
	})
	return pl, merged
}
