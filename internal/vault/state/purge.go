package state

import (
	"github.com/holdfast-vm/holdfast/internal/vault/log"
)

// Purge removes points for good. What that frees is said later, by [Freed].
type Purge struct {
	Points []Purged
}

// Purged is a point that is purged. All but the ID is filled in by [Purge.Check].
type Purged struct {
	ID    ID
	Time  int64 // milliseconds since 1970
	Finds []string
}

func (p *Purge) Op() log.Op {
	b := enc(nil).u32(uint32(len(p.Points)))
	for _, x := range p.Points {
		b = putFinds(b.raw(x.ID[:]).u64(uint64(x.Time)), x.Finds)
	}
	return log.Op{Kind: KindPurge, Body: b}
}

// MaxOp is how many bytes an operation may take, by its Size, to be sure of its place in an entry.
const MaxOp = log.MaxEntry - 4<<10

// Fit leaves so many points in a purge that was checked as an entry has room for, and returns the
// others.
func (p *Purge) Fit() []Purged {
	size := 64
	for i, x := range p.Points {
		size += 28
		for _, f := range x.Finds {
			size += 1 + len(f)
		}
		if size > MaxOp && i > 0 {
			rest := p.Points[i:]
			p.Points = p.Points[:i:i]
			return rest
		}
	}
	return nil
}

func readPurge(op *log.Op) (p Purge, err error) {
	d := dec{b: op.Body}
	for range d.count(28) {
		x := Purged{ID: ID(d.take(16))}
		x.Time = int64(d.u64())
		x.Finds = getFinds(&d)
		p.Points = append(p.Points, x)
	}
	return p, d.end()
}

// Freed says which slots of packs were freed: by purges, as far as somebody has walked what they
// free, or because a full mark found that nothing needs them.
//
// A walk frees, of each chunk that the point has and none of its neighbours has at that place, one
// copy that is neither freed nor shared. A mark frees only chunks of which no point needs any copy,
// and for it points that were purged and not walked live. Whoever walks keeps the operation below
// [MaxOp], by ending a piece sooner.
type Freed struct {
	Slots  []Count  // Shared is the bitmap of what was freed
	Keep   []Count  // from a mark: slots that are shared from now on, as copies of theirs are freed, or were
	Walk   []Walk   // the first pending purges, in their order; all but the last must be done
	Relink []Relink // filled in by Check

	FromMark bool         // there is no Walk: a mark says it
	Mark     log.Position // the entry as of which was marked
	MarkAt   uint64       // its count
	Last     uint64       // count of the last condemnation that was taken into account
}

// Walk is a piece of the walk of a purged point.
type Walk struct {
	Point    ID
	At       uint64 // count of the purge
	Number   uint32 // of the point among those of its entry; filled in by Check
	From, To []byte // cursors before and after, of the caller's own format; From is nil at the start
	Done     bool   // nothing is left to walk; To does not count
}

// Relink takes an empty node out of the graph of points: what it was based on is what its child, if
// it has one, is based on from then on.
type Relink struct {
	Node  ID
	Bases []ID
	Child ID // zero if it has none
}

// Size returns about how many bytes the operation takes in an entry.
func (f *Freed) Size() int {
	op := f.Op()
	return op.Size()
}

func (f *Freed) Op() log.Op {
	b := putCounts(nil, f.Slots)
	for _, c := range f.Slots {
		b = b.u64(c.Bytes)
	}
	b = putCounts(b, f.Keep).u32(uint32(len(f.Walk)))
	for _, w := range f.Walk {
		b = b.raw(w.Point[:]).u64(w.At).u32(w.Number).bool(w.Done).bytes(w.From).bytes(w.To)
	}
	b = b.u32(uint32(len(f.Relink)))
	for _, r := range f.Relink {
		b = putPoints(b.raw(r.Node[:]), r.Bases).raw(r.Child[:])
	}
	b = b.bool(f.FromMark).at(f.Mark).u64(f.MarkAt).u64(f.Last)
	return log.Op{Kind: KindFreed, Body: b}
}

func readFreed(op *log.Op) (f Freed, err error) {
	d := dec{b: op.Body}
	f.Slots = getCounts(&d)
	for i := range f.Slots {
		f.Slots[i].Bytes = d.u64()
	}
	f.Keep = getCounts(&d)
	for range d.count(37) {
		w := Walk{Point: ID(d.take(16))}
		w.At, w.Number, w.Done = d.u64(), d.u32(), d.bool()
		w.From, w.To = d.bytes(), d.bytes()
		f.Walk = append(f.Walk, w)
	}
	for range d.count(36) {
		r := Relink{Node: ID(d.take(16))}
		r.Bases = getPoints(&d)
		copy(r.Child[:], d.take(16))
		f.Relink = append(f.Relink, r)
	}
	f.FromMark, f.Mark, f.MarkAt, f.Last = d.bool(), d.at(), d.u64(), d.u64()
	return f, d.end()
}
