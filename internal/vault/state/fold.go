package state

import (
	"encoding/binary"
	"fmt"

	"github.com/holdfast-vm/holdfast/internal/vault/log"
	"github.com/holdfast-vm/holdfast/internal/vault/state/tier"
)

// root is what is small enough to stand in every checkpoint.
type root struct {
	Count   uint64       // entries that were folded in
	At      log.Position // the last
	Head    log.Hash     // of it
	Ended   bool         // it ends its volume
	Term    uint64       // the greatest that any entry had
	Owner   string
	Forget  log.Volume // what is older is not remembered
	Condemn uint64     // count of the last condemnation
	Starts  []start    // of the volumes that are remembered, the oldest first
	Counters
}

// start is the beginning of a volume, as its writer dated it.
type start struct {
	Volume log.Volume
	Time   int64 // milliseconds since 1970
}

// Counters are sums over what lives.
type Counters struct {
	Points    uint64
	Packs     uint64
	Bytes     uint64 // of good packs
	Condemned uint64 // that are not gone
}

// fold gathers what an entry changes. Nothing is read for it.
type fold struct {
	root   root
	rows   [classes]map[string]tier.Row
	purges uint32 // points that operations of the entry purged
	time   int64  // of the entry, milliseconds since 1970; 0 while it is only tried
}

func newFold(r root) *fold {
	f := &fold{root: r}
	for c := range classes {
		f.rows[c] = map[string]tier.Row{}
	}
	return f
}

func (f *fold) put(c class, key, value []byte) {
	f.rows[c][string(key)] = tier.Row{Key: key, Value: value}
}

func (f *fold) join(c class, key, value []byte) {
	row := tier.Row{Key: key, Value: value}
	if older, ok := f.rows[c][string(key)]; ok {
		row = join(older, row)
	}
	f.rows[c][string(key)] = row
}

func (f *fold) gone(c class, key []byte) {
	f.rows[c][string(key)] = tier.Row{Key: key, Gone: true}
}

// op folds in an operation. e is nil when it is only tried.
func (f *fold) op(op *log.Op, e *log.Entry) (err error) {
	if e != nil {
		f.time = e.Time.UnixMilli()
	}
	for i := range op.Added {
		o := &op.Added[i]
		f.put(open, key(tablePack, o.ID[:]), packRow{Object: *o, Added: f.root.Count, Time: f.time}.encode())
		f.put(open, addedKey(f.root.Count, o.ID), nil)
		f.root.Packs++
		f.root.Bytes += o.Size
	}
	switch op.Kind {
	case log.Begin:
		err = f.begin(e)
	case log.End:
		f.root.Ended = true
	case KindCommit:
		err = f.commit(op)
	case KindProgress:
		err = f.progress(op)
	case KindAdopt:
		err = f.adopt(op)
	case KindGiveUp:
		err = f.giveUp(op)
	case KindCondemn:
		err = f.condemn(op)
	case KindGone:
		f.markGone(op)
	case KindDelete, KindUndelete, KindPurge, KindHold, KindRelease, KindLock:
		err = f.pointOp(op)
	case KindFreed:
		err = f.freed(op)
	case KindDamaged:
		err = f.damaged(op)
	case KindOwner:
		var o Owner
		if o, err = readOwner(op); err == nil {
			f.root.Term, f.root.Owner = max(f.root.Term, o.Term), o.Name
		}
	case KindPin, KindArrived, KindUnpin:
		err = f.mirror(op)
	default:
		return fmt.Errorf("%w: an operation of kind %d", log.ErrNewer, op.Kind)
	}
	if err != nil {
		return fmt.Errorf("%w: an operation of kind %d: %w", log.ErrDamaged, op.Kind, err)
	}
	return nil
}

func (f *fold) begin(e *log.Entry) error {
	after, hash, forget, err := log.ForgetOf(e)
	if err != nil {
		return err
	}
	if e.At.Volume != (log.Volume{Tenure: e.At.Volume.Tenure}) {
		v := after.Volume.Append(nil)
		f.put(open, key(tableVolume, v), enc(nil).u32(after.Number).raw(hash[:]))
	}
	if forget.Compare(f.root.Forget) > 0 {
		f.root.Forget = forget
	}
	starts := append([]start(nil), f.root.Starts...)
	for len(starts) > 0 && starts[0].Volume.Compare(f.root.Forget) < 0 {
		starts = starts[1:]
	}
	f.root.Starts = append(starts, start{Volume: e.At.Volume, Time: e.Time.UnixMilli()})
	return nil
}

func (f *fold) counts(cs []Count) {
	for _, c := range cs {
		f.join(sealed, key(tableBits, c.Pack[:]), bitsRow{Counted: f.root.Count, Shared: c.Shared}.encode())
	}
}

func (f *fold) commit(op *log.Op) error {
	c, err := readCommit(op)
	if err != nil {
		return err
	}
	f.counts(c.Counts)
	for i := range c.Points {
		p := &c.Points[i]
		f.put(sealed, key(tablePoint, p.ID[:]), p.append(nil))
		for _, base := range p.Bases {
			f.link(base, p.ID)
		}
		for _, find := range p.Finds {
			f.put(sealed, findKey(find, p.Time, p.ID), nil)
		}
		f.root.Points++
	}
	f.endSessions(append(c.Adopted, Adopted{Session: c.Session, Progress: c.Progress}))
	return nil
}

func sessionKey(s log.Session, n uint32) []byte {
	return binary.BigEndian.AppendUint32(key(tableSession, s[:]), n)
}

// adoptedAt is the number under which a session's adoption stands.
const adoptedAt = ^uint32(0)

func (f *fold) endSessions(as []Adopted) {
	for _, a := range as {
		for n := range a.Progress {
			f.gone(sealed, sessionKey(a.Session, n))
		}
		if a.Progress > 0 {
			f.gone(sealed, sessionKey(a.Session, adoptedAt))
		}
	}
}

func (f *fold) progress(op *log.Op) error {
	p, err := readProgress(op)
	if err != nil {
		return err
	}
	f.counts(p.Counts)
	f.put(sealed, sessionKey(p.Session, p.Number), appendProgress(p))
	return nil
}

// appendProgress returns the row of a progress entry: its body, then the IDs of what it added.
func appendProgress(p Progress) []byte {
	var own []log.ObjectID
	for _, o := range p.Added {
		own = append(own, o.ID)
	}
	return putIDs(enc(nil).bytes(p.Op().Body), own)
}

func (f *fold) adopt(op *log.Op) error {
	a, err := readAdopt(op)
	if err == nil {
		f.put(sealed, sessionKey(a.From.Session, adoptedAt), enc(nil).raw(a.By[:]))
	}
	return err
}

func (f *fold) giveUp(op *log.Op) error {
	g, err := readGiveUp(op)
	f.endSessions(g.Sessions)
	return err
}

func (f *fold) condemn(op *log.Op) error {
	c, err := readCondemn(op)
	if err != nil {
		return err
	}
	f.root.Condemn = f.root.Count
	for i, id := range c.Packs {
		if len(c.AddedAt) > 0 {
			f.gone(open, addedKey(c.AddedAt[i], id))
		}
		f.gone(open, key(tableDamaged, id[:]))
		part := len(c.Parts) > 0 && c.Parts[i]
		f.put(open, key(tableCondemned, id[:]), condemnedRow{At: f.root.Count, Part: part}.encode())
		f.gone(open, key(tablePack, id[:]))
		f.gone(sealed, key(tableBits, id[:]))
	}
	for _, m := range c.Moved {
		row := bitsRow{Shared: m.Shared, Freed: m.Freed, FreedBytes: m.FreedBytes, Moved: true}
		f.join(sealed, key(tableBits, m.Pack[:]), row.encode())
	}
	f.root.Condemned += uint64(len(c.Packs))
	if !c.Orphans {
		f.root.Packs -= uint64(len(c.Packs))
		f.root.Bytes -= c.Bytes
	}
	return nil
}

func (f *fold) markGone(op *log.Op) {
	for _, id := range op.Gone {
		f.put(open, key(tableCondemned, id[:]), condemnedRow{At: f.root.Count, Gone: true}.encode())
	}
	f.root.Condemned -= uint64(len(op.Gone))
}

func (f *fold) pointOp(op *log.Op) error {
	switch op.Kind {
	case KindDelete:
		x, err := readDelete(op)
		for _, id := range x.Points {
			f.put(sealed, key(tableDeleted, id[:]), enc(nil).u64(uint64(x.Until)))
		}
		return err
	case KindUndelete:
		x, err := readUndelete(op)
		for _, id := range x.Points {
			f.gone(sealed, key(tableDeleted, id[:]))
		}
		return err
	case KindPurge:
		return f.purge(op)
	case KindLock:
		l, err := readLock(op)
		f.put(sealed, key(tableLock, l.Point[:]), enc(nil).u64(uint64(l.Until)))
		return err
	}
	h, err := readHold(op)
	k := key(tableHold, h.Point[:], h.ID[:])
	if op.Kind == KindRelease {
		f.gone(sealed, k)
	} else {
		f.put(sealed, k, h.Holder)
	}
	return err
}

func (f *fold) freed(op *log.Op) error {
	x, err := readFreed(op)
	f.counts(x.Keep)
	for _, c := range x.Slots {
		f.join(sealed, key(tableBits, c.Pack[:]),
			bitsRow{Freed: c.Shared, FreedBytes: c.Bytes, FreedSince: f.time}.encode())
	}
	for _, w := range x.Walk {
		if !w.Done {
			f.put(sealed, key(tableCursor, w.Point[:]), w.To)
			continue
		}
		f.gone(sealed, key(tableCursor, w.Point[:]))
		f.gone(sealed, pendingKey(w.At, w.Number, w.Point))
		f.gone(sealed, key(tablePoint, w.Point[:]))
	}
	for _, r := range x.Relink {
		f.relink(r)
	}
	return err
}

// relink takes an empty node out of the graph.
func (f *fold) relink(r Relink) {
	f.gone(sealed, key(tablePurged, r.Node[:]))
	if r.Child != (ID{}) {
		f.unlink(r.Node, r.Child)
	}
	for _, base := range r.Bases {
		f.unlink(base, r.Node)
		if r.Child != (ID{}) {
			f.link(base, r.Child)
		}
	}
}

func (f *fold) link(base, child ID) {
	f.put(sealed, key(tableChild, base[:], child[:]), nil)
	f.put(sealed, key(tableBase, child[:], base[:]), nil)
}

func (f *fold) unlink(base, child ID) {
	f.gone(sealed, key(tableChild, base[:], child[:]))
	f.gone(sealed, key(tableBase, child[:], base[:]))
}

// purge marks points as purged. Their rows stay until it was said what that frees.
func (f *fold) purge(op *log.Op) error {
	x, err := readPurge(op)
	for _, p := range x.Points {
		n := f.purges
		f.purges++
		f.gone(sealed, key(tableDeleted, p.ID[:]))
		f.gone(sealed, key(tableLock, p.ID[:]))
		for _, find := range p.Finds {
			f.gone(sealed, findKey(find, p.Time, p.ID))
		}
		f.put(sealed, key(tablePurged, p.ID[:]), enc(nil).u64(f.root.Count).u32(n))
		f.put(sealed, pendingKey(f.root.Count, n, p.ID), nil)
	}
	f.root.Points -= uint64(len(x.Points))
	return err
}

func (f *fold) damaged(op *log.Op) error {
	x, err := readDamaged(op)
	for _, id := range x.Packs {
		f.put(open, key(tableDamaged, id[:]), nil)
	}
	return err
}

func (f *fold) mirror(op *log.Op) error {
	id, err := readMirror(op)
	k := key(tableMirror, id[:])
	if op.Kind == KindPin {
		f.put(open, k, enc(nil).u64(f.root.Count))
	} else {
		f.gone(open, k)
	}
	return err
}
