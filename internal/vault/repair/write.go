package repair

import (
	"context"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"

	"github.com/holdfast-vm/holdfast/internal/point"
	"github.com/holdfast-vm/holdfast/internal/vault/log"
	"github.com/holdfast-vm/holdfast/internal/vault/state"
)

// room is about how many bytes of operations go into one entry.
const room = 40 << 10

// write makes a tenure after all that were met, and says in it what was found.
func (r *repairer) write(ctx context.Context) (log.Remembered, error) {
	st := state.New(r.Store, r.Keys, state.Options{})
	l, err := log.BeginTenure(ctx, r.Store, r.Keys.Log(), st, r.newest, log.Options{Who: "repair"})
	if err != nil {
		return log.Remembered{}, err
	}
	w := log.NewWriter(l)
	defer w.Close()
	for _, ops := range r.entries() {
		if _, err := w.Append(ctx, func(context.Context) ([]log.Op, error) { return ops, nil }); err != nil {
			return log.Remembered{}, err
		}
	}
	var head log.Remembered
	err = w.Do(ctx, func(l *log.Log) error {
		if _, err := l.Checkpoint(ctx); err != nil {
			return err
		}
		head = l.Head()
		return l.Confirm(ctx)
	})
	return head, err
}

// entries returns the operations of each entry.
func (r *repairer) entries() (out [][]log.Op) {
	var now []log.Op
	size := 0
	add := func(op log.Op) {
		if size+op.Size() > room && len(now) > 0 {
			out, now, size = append(out, now), nil, 0
		}
		now, size = append(now, op), size+op.Size()
	}
	session := newSession()
	for i := range r.packs {
		add(r.added(session, &r.packs[i]))
	}
	ids := slices.SortedFunc(maps.Keys(r.points), func(a, b state.ID) int { return slices.Compare(a[:], b[:]) })
	for _, id := range ids {
		p := r.points[id]
		c := state.Commit{Session: session,
			Points: []state.Point{{ID: id, Time: p.time, Until: p.until, Manifest: p.row,
				Finds: p.finds}}}
		add(c.Op())
		if p.deleted {
			d := state.Delete{Points: []state.ID{id}, Until: p.deadline}
			add(d.Op())
		}
	}
	for _, h := range r.holds {
		if r.points[h.Point] != nil {
			add(h.Op())
		}
	}
	if len(now) > 0 {
		out = append(out, now)
	}
	return out
}

// added says that a pack is good, and that all its rows may be needed by several points: which are
// is not known any more, and only a full mark finds out.
func (r *repairer) added(session log.Session, p *foundPack) log.Op {
	shared := make([]byte, (len(p.rows)+7)/8)
	for i := range p.rows {
		shared[i/8] |= 1 << (i % 8)
	}
	c := state.Commit{Session: session, Added: []log.Object{p.object},
		Counts: []state.Count{{Pack: p.object.ID, Shared: shared}}}
	return c.Op()
}

func stateID(id point.ID) (out state.ID, err error) {
	if len(id) != 2*len(out) {
		return out, fmt.Errorf("%q is no ID of a point", id)
	}
	_, err = hex.Decode(out[:], []byte(id))
	return out, err
}
