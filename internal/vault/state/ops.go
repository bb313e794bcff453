package state

import (
	"github.com/holdfast-vm/holdfast/internal/vault/log"
)

// Kinds of operations. The numbers are on disk; 1 to 15 are the log's.
const (
	KindCommit   log.Kind = 16
	KindProgress log.Kind = 17
	KindAdopt    log.Kind = 18
	KindGiveUp   log.Kind = 19
	KindCondemn  log.Kind = 20
	KindGone     log.Kind = 21
	KindDelete   log.Kind = 22
	KindUndelete log.Kind = 23
	KindPurge    log.Kind = 24
	KindFreed    log.Kind = 25
	KindHold     log.Kind = 26
	KindRelease  log.Kind = 27
	KindLock     log.Kind = 28
	KindOwner    log.Kind = 29
	KindPin      log.Kind = 30
	KindArrived  log.Kind = 31
	KindUnpin    log.Kind = 32
	KindDamaged  log.Kind = 33
)

// ID names a point, a hold or a mirror.
type ID [16]byte

// Point is a recovery point as the state knows it. What Manifest holds is its owner's matter.
type Point struct {
	ID       ID
	Bases    []ID     // points that it shares with; each must live when it is committed, and may go later
	Finds    []string // words by which it is found, of 1 to 255 bytes
	Time     int64    // milliseconds since 1970
	Until    int64    // to which its retention keeps it; 0 means for ever
	Manifest []byte   // sealed with the entry: where the manifest stands, or the manifest
	Replaced []byte   // what it replaced of its first base
}

// Count is a pack of others that a commit counts on, with the slots that it shares.
type Count struct {
	Pack   log.ObjectID
	Shared []byte // bitmap
	Bytes  uint64 // what the slots take, as stored: told in Freed alone, for who chooses what to rewrite
}

// Moved is what is known of the slots of a pack that a condemnation adds: what was known of the
// rows where they came from.
type Moved struct {
	Pack          log.ObjectID
	Shared, Freed []byte // bitmaps
	FreedBytes    uint64 // what the freed ones take, as stored
}

// Commit adds points. Several may be of one session.
type Commit struct {
	Session  log.Session
	Progress uint32         // progress entries that the session made before; they end with it
	Adopted  []Adopted      // sessions that it went on from, each by the next and the last by this one
	Added    []log.Object   // its own packs that no progress entry added
	Own      []log.ObjectID // those that progress entries added, its own and adopted ones
	Counts   []Count
	Points   []Point
}

// Adopted is a session that another goes on from, with the number of its progress entries.
type Adopted struct {
	Session  log.Session
	Progress uint32
}

func (c *Commit) Op() log.Op {
	b := enc(nil).raw(c.Session[:]).u32(c.Progress)
	b = putAdopted(b, c.Adopted)
	b = putIDs(b, c.Own)
	b = putCounts(b, c.Counts)
	b = b.u32(uint32(len(c.Points)))
	for i := range c.Points {
		b = c.Points[i].append(b)
	}
	return log.Op{Kind: KindCommit, Added: c.Added, Body: b}
}

func readCommit(op *log.Op) (c Commit, err error) {
	d := dec{b: op.Body}
	c.Added = op.Added
	copy(c.Session[:], d.take(10))
	c.Progress = d.u32()
	c.Adopted = getAdopted(&d)
	c.Own = getIDs(&d)
	c.Counts = getCounts(&d)
	for range d.count(16 + 4 + 8 + 8 + 4 + 4 + 4) {
		c.Points = append(c.Points, readPoint(&d))
	}
	return c, d.end()
}

func (p *Point) append(b enc) enc {
	b = b.raw(p.ID[:]).u32(uint32(len(p.Bases)))
	for _, id := range p.Bases {
		b = b.raw(id[:])
	}
	b = putFinds(b.u64(uint64(p.Time)).u64(uint64(p.Until)), p.Finds)
	return b.bytes(p.Manifest).bytes(p.Replaced)
}

func readPoint(d *dec) (p Point) {
	copy(p.ID[:], d.take(16))
	p.Bases = getPoints(d)
	p.Time, p.Until = int64(d.u64()), int64(d.u64())
	p.Finds = getFinds(d)
	p.Manifest, p.Replaced = d.bytes(), d.bytes()
	return p
}

func putFinds(b enc, finds []string) enc {
	b = b.u32(uint32(len(finds)))
	for _, f := range finds {
		b = b.u8(byte(len(f))).raw([]byte(f))
	}
	return b
}

func getFinds(d *dec) (finds []string) {
	for range d.count(2) {
		n := int(d.u8())
		if n == 0 {
			d.bad = true
		}
		finds = append(finds, string(d.take(n)))
	}
	return finds
}

func putPoints(b enc, ids []ID) enc {
	b = b.u32(uint32(len(ids)))
	for _, id := range ids {
		b = b.raw(id[:])
	}
	return b
}

func getPoints(d *dec) (ids []ID) {
	for range d.count(16) {
		ids = append(ids, ID(d.take(16)))
	}
	return ids
}

func putIDs(b enc, ids []log.ObjectID) enc {
	b = b.u32(uint32(len(ids)))
	for _, id := range ids {
		b = b.raw(id[:])
	}
	return b
}

func getIDs(d *dec) (ids []log.ObjectID) {
	for range d.count(24) {
		ids = append(ids, log.ObjectID(d.take(24)))
	}
	return ids
}

func putCounts(b enc, cs []Count) enc {
	b = b.u32(uint32(len(cs)))
	for _, c := range cs {
		b = b.raw(c.Pack[:]).bytes(c.Shared)
	}
	return b
}

func getCounts(d *dec) (cs []Count) {
	for range d.count(28) {
		c := Count{Pack: log.ObjectID(d.take(24))}
		c.Shared = d.bytes()
		cs = append(cs, c)
	}
	return cs
}

func putAdopted(b enc, as []Adopted) enc {
	b = b.u32(uint32(len(as)))
	for _, a := range as {
		b = b.raw(a.Session[:]).u32(a.Progress)
	}
	return b
}

func getAdopted(d *dec) (as []Adopted) {
	for range d.count(14) {
		a := Adopted{Session: log.Session(d.take(10))}
		a.Progress = d.u32()
		as = append(as, a)
	}
	return as
}

// Progress tells of a long session: its packs so far, and what it counts on, live whole while it is
// open, and its bases are not purged.
type Progress struct {
	Session log.Session
	Number  uint32 // of its progress entries, from 0
	Machine string // for who may go on from it
	Holder  []byte // who runs it, and how to see that he is gone
	Bases   []ID
	Added   []log.Object
	Counts  []Count
	Roots   []byte // partial ones
}

func (p *Progress) Op() log.Op {
	b := putPoints(enc(nil).raw(p.Session[:]).u32(p.Number).bytes([]byte(p.Machine)).bytes(p.Holder), p.Bases)
	return log.Op{Kind: KindProgress, Added: p.Added, Body: putCounts(b, p.Counts).bytes(p.Roots)}
}

func readProgress(op *log.Op) (p Progress, err error) {
	d := dec{b: op.Body}
	p.Added = op.Added
	copy(p.Session[:], d.take(10))
	p.Number = d.u32()
	p.Machine = string(d.bytes())
	p.Holder = d.bytes()
	p.Bases = getPoints(&d)
	p.Counts = getCounts(&d)
	p.Roots = d.bytes()
	return p, d.end()
}

// Adopt lets a session go on from another's progress; the other's commit fails from then on.
type Adopt struct {
	From Adopted
	By   log.Session
}

func (a *Adopt) Op() log.Op {
	b := putAdopted(nil, []Adopted{a.From}).raw(a.By[:])
	return log.Op{Kind: KindAdopt, Body: b}
}

func readAdopt(op *log.Op) (a Adopt, err error) {
	d := dec{b: op.Body}
	if from := getAdopted(&d); len(from) == 1 {
		a.From = from[0]
	} else {
		d.bad = true
	}
	copy(a.By[:], d.take(10))
	return a, d.end()
}

// GiveUp ends open sessions that nobody goes on with; their packs are like any other then.
type GiveUp struct{ Sessions []Adopted }

func (g *GiveUp) Op() log.Op {
	return log.Op{Kind: KindGiveUp, Body: putAdopted(nil, g.Sessions)}
}

func readGiveUp(op *log.Op) (g GiveUp, err error) {
	d := dec{b: op.Body}
	g.Sessions = getAdopted(&d)
	return g, d.end()
}

// Condemn says that packs will be deleted. A collection's adds the packs to which it moved what
// lives of them; a sweeper's names orphans.
type Condemn struct {
	Packs   []log.ObjectID
	Moved   []Moved  // of packs of Added: every one that is not listed has neither shared nor freed slots
	Parts   []bool   // which of Packs are parts, not packs; filled in by Prune, but for orphans
	AddedAt []uint64 // counts of the entries that added them, filled in by Prune; none of orphans
	Added   []log.Object
	Recipes []log.Recipe // of Added
	Orphans bool         // they are in no entry
	Mark    log.Position // the entry as of which was marked
	MarkAt  uint64       // its count
	Last    uint64       // count of the last condemnation that was taken into account
	Bytes   uint64       // of the packs, as stored
}

func (c *Condemn) Op() log.Op {
	b := enc(nil).bool(c.Orphans).at(c.Mark).u64(c.MarkAt).u64(c.Last).u64(c.Bytes).u32(uint32(len(c.AddedAt)))
	for _, at := range c.AddedAt {
		b = b.u64(at)
	}
	b = b.u32(uint32(len(c.Parts)))
	for _, part := range c.Parts {
		b = b.bool(part)
	}
	b = b.u32(uint32(len(c.Moved)))
	for _, m := range c.Moved {
		b = b.raw(m.Pack[:]).bytes(m.Shared).bytes(m.Freed).u64(m.FreedBytes)
	}
	return log.Op{Kind: KindCondemn, Condemned: c.Packs, Added: c.Added, Recipes: c.Recipes, Body: b}
}

func readCondemn(op *log.Op) (c Condemn, err error) {
	d := dec{b: op.Body}
	c = Condemn{Packs: op.Condemned, Added: op.Added, Recipes: op.Recipes}
	c.Orphans, c.Mark, c.MarkAt, c.Last, c.Bytes = d.bool(), d.at(), d.u64(), d.u64(), d.u64()
	for range d.count(8) {
		c.AddedAt = append(c.AddedAt, d.u64())
	}
	if n := len(c.AddedAt); n > 0 && n != len(c.Packs) {
		d.bad = true
	}
	for range d.count(1) {
		c.Parts = append(c.Parts, d.bool())
	}
	if n := len(c.Parts); n > 0 && n != len(c.Packs) {
		d.bad = true
	}
	for range d.count(24 + 4 + 4 + 8) {
		m := Moved{Pack: log.ObjectID(d.take(24)), Shared: d.bytes(), Freed: d.bytes(), FreedBytes: d.u64()}
		c.Moved = append(c.Moved, m)
	}
	return c, d.end()
}

// Gone says that condemned objects were deleted.
func Gone(packs []log.ObjectID) log.Op { return log.Op{Kind: KindGone, Gone: packs} }

// Delete deletes points softly: they live until they are purged.
type Delete struct {
	Points []ID
	Until  int64 // milliseconds since 1970, from which they may be purged
}

func (d *Delete) Op() log.Op {
	return log.Op{Kind: KindDelete, Body: putPoints(enc(nil).u64(uint64(d.Until)), d.Points)}
}

func readDelete(op *log.Op) (x Delete, err error) {
	d := dec{b: op.Body}
	x.Until = int64(d.u64())
	x.Points = getPoints(&d)
	return x, d.end()
}

// Undelete takes soft deletions back.
type Undelete struct{ Points []ID }

func (u *Undelete) Op() log.Op {
	return log.Op{Kind: KindUndelete, Body: putPoints(nil, u.Points)}
}

func readUndelete(op *log.Op) (u Undelete, err error) {
	d := dec{b: op.Body}
	u.Points = getPoints(&d)
	return u, d.end()
}

// Damaged says that a check found damage in packs. They stay good, so that what is whole in them is
// read, but nothing more is counted on them. Who has stored what they hold anew condemns them.
type Damaged struct{ Packs []log.ObjectID }

func (x *Damaged) Op() log.Op {
	return log.Op{Kind: KindDamaged, Body: putIDs(nil, x.Packs)}
}

func readDamaged(op *log.Op) (x Damaged, err error) {
	d := dec{b: op.Body}
	x.Packs = getIDs(&d)
	return x, d.end()
}

// Hold keeps a point from being purged.
type Hold struct {
	Point, ID ID
	Holder    []byte // who, and how to see that he is gone
}

func (h *Hold) Op() log.Op {
	return log.Op{Kind: KindHold, Body: enc(nil).raw(h.Point[:]).raw(h.ID[:]).bytes(h.Holder)}
}

// Release takes a hold away.
func (h *Hold) Release() log.Op {
	return log.Op{Kind: KindRelease, Body: enc(nil).raw(h.Point[:]).raw(h.ID[:]).bytes(nil)}
}

func readHold(op *log.Op) (h Hold, err error) {
	d := dec{b: op.Body}
	copy(h.Point[:], d.take(16))
	copy(h.ID[:], d.take(16))
	h.Holder = d.bytes()
	return h, d.end()
}

// Lock keeps a point until a time, whoever wants it away. It can be made longer, never shorter.
type Lock struct {
	Point ID
	Until int64 // milliseconds since 1970
}

func (l *Lock) Op() log.Op {
	return log.Op{Kind: KindLock, Body: enc(nil).raw(l.Point[:]).u64(uint64(l.Until))}
}

func readLock(op *log.Op) (l Lock, err error) {
	d := dec{b: op.Body}
	copy(l.Point[:], d.take(16))
	l.Until = int64(d.u64())
	return l, d.end()
}

// Owner tells who keeps the vault open, by a term that is greater than all before.
type Owner struct {
	Term uint64
	Name string
}

func (o *Owner) Op() log.Op {
	return log.Op{Kind: KindOwner, Body: enc(nil).u64(o.Term).bytes([]byte(o.Name))}
}

func readOwner(op *log.Op) (o Owner, err error) {
	d := dec{b: op.Body}
	o.Term, o.Name = d.u64(), string(d.bytes())
	return o, d.end()
}

// Pin asks that nothing be removed that the state at its entry needs; a mirror's new pin replaces
// its old one.
func Pin(mirror ID) log.Op { return log.Op{Kind: KindPin, Body: mirror[:], Clear: true} }

// Arrived ends a mirror's pin: it holds what it pinned.
func Arrived(mirror ID) log.Op { return log.Op{Kind: KindArrived, Body: mirror[:], Clear: true} }

// Unpin gives up the pin of a mirror that was silent for too long.
func Unpin(mirror ID) log.Op { return log.Op{Kind: KindUnpin, Body: mirror[:], Clear: true} }

func readMirror(op *log.Op) (id ID, err error) {
	d := dec{b: op.Body}
	copy(id[:], d.take(16))
	return id, d.end()
}
