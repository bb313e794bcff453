package state

import (
	"bytes"
	"context"
	"iter"

	"github.com/holdfast-vm/holdfast/internal/vault/log"
	"github.com/holdfast-vm/holdfast/internal/vault/state/tier"
)

// Pack is a good object, and what is known of its slots.
type Pack struct {
	Object        log.Object
	Added         uint64 // count of the entry that added it
	Time          int64  // of that entry, milliseconds since 1970
	Counted       uint64 // count of the last entry that counted on it
	Shared, Freed []byte // bitmaps of slots; freed ones were not shared since
	FreedBytes    uint64 // what all slots take that were ever freed
	FreedSince    int64  // time of the first entry that freed any, milliseconds since 1970; 0 if none
	Moved         bool   // a condemnation made it of what lived elsewhere
}

func packOf(p *packRow, b *bitsRow) Pack {
	return Pack{Object: p.Object, Added: p.Added, Time: p.Time, Counted: b.Counted, Shared: b.Shared, Freed: b.Freed,
		FreedBytes: b.FreedBytes, FreedSince: b.FreedSince, Moved: b.Moved}
}

// Pack returns a good object.
func (s *State) Pack(ctx context.Context, id log.ObjectID) (Pack, bool, error) {
	p, good, err := s.pack(ctx, id)
	if err != nil || !good {
		return Pack{}, false, err
	}
	b, err := s.bits(ctx, id)
	return packOf(&p, &b), err == nil, err
}

// EachPack calls do for all good objects, in the order of their IDs, until it reports false.
func (s *State) EachPack(ctx context.Context, do func(Pack) bool) error {
	next, stop := iter.Pull2(s.tiers[sealed].Scan(ctx, key(tableBits), s.over(sealed)...))
	defer stop()
	bits, err, more := next()
	for row, scanErr := range s.tiers[open].Scan(ctx, key(tablePack), s.over(open)...) {
		if scanErr != nil {
			return scanErr
		}
		for more && err == nil && bytes.Compare(bits.Key[1:], row.Key[1:]) < 0 {
			bits, err, more = next()
		}
		if err != nil {
			return err
		}
		of := tier.Row{}
		if more && bytes.Equal(bits.Key[1:], row.Key[1:]) {
			of = bits
		}
		p, err := readEach(row, of)
		if err != nil {
			return err
		}
		if !do(p) {
			return nil
		}
	}
	return nil
}

func readEach(row, bits tier.Row) (Pack, error) {
	p, err := readPack(log.ObjectID(row.Key[1:]), row.Value)
	if err != nil {
		return Pack{}, damaged("a pack", err)
	}
	var b bitsRow
	if bits.Key != nil {
		if b, err = readBits(bits.Value); err != nil {
			return Pack{}, damaged("the bits of a pack", err)
		}
	}
	return packOf(&p, &b), nil
}
