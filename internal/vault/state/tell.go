package state

import (
	"fmt"
	"strings"
	"time"

	"github.com/holdfast-vm/holdfast/internal/vault/log"
)

// Told is what an operation says, for people and programs.
type Told struct {
	What   string // "commit", "delete", ...: what it does
	Points []ID   // of which it speaks
	Packs  int    // that it adds, condemns, or says something of
	Bytes  uint64 // of the packs that it adds or condemns, as stored
	Text   string // one line for people, without What
}

// Tell says what an operation says. One that reads wrong, or that this program does not know, is
// told by its number.
func Tell(op *log.Op) Told {
	t := Told{Packs: len(op.Added)}
	for i := range op.Added {
		t.Bytes += op.Added[i].Size
	}
	if err := t.tell(op); err != nil {
		return Told{What: fmt.Sprintf("kind %d", op.Kind), Text: "this program cannot read it"}
	}
	return t
}

func (t *Told) tell(op *log.Op) error {
	switch op.Kind {
	case log.Begin:
		return t.say("begin", "a volume")
	case log.End:
		return t.say("end", "of the volume")
	case KindCommit:
		c, err := readCommit(op)
		for _, p := range c.Points {
			t.Points = append(t.Points, p.ID)
		}
		t.Packs += len(c.Own)
		return t.or(err, "commit", "%s, adding %s and counting on %d", t.points(), packs(t.Packs), len(c.Counts))
	case KindProgress:
		p, err := readProgress(op)
		return t.or(err, "progress", "%d of session %s of %s, adding %s", p.Number, p.Session, p.Machine,
			packs(t.Packs))
	case KindAdopt:
		a, err := readAdopt(op)
		return t.or(err, "adopt", "session %s goes on from %s", a.By, a.From.Session)
	case KindGiveUp:
		g, err := readGiveUp(op)
		var names []string
		for _, a := range g.Sessions {
			names = append(names, a.Session.String())
		}
		return t.or(err, "give up", "sessions %s", strings.Join(names, ", "))
	case KindCondemn:
		return t.condemn(op)
	case KindGone:
		t.Packs = len(op.Gone)
		return t.say("gone", "%s are deleted", packs(t.Packs))
	case KindOwner:
		o, err := readOwner(op)
		return t.or(err, "owner", "%s, term %d", o.Name, o.Term)
	case KindDamaged:
		x, err := readDamaged(op)
		t.Packs = len(x.Packs)
		return t.or(err, "damaged", "%s", packs(t.Packs))
	case KindPin, KindArrived, KindUnpin:
		id, err := readMirror(op)
		what := map[log.Kind]string{KindPin: "pin", KindArrived: "arrived", KindUnpin: "unpin"}[op.Kind]
		return t.or(err, what, "mirror %x", id)
	}
	return t.tellPoints(op)
}

func (t *Told) tellPoints(op *log.Op) error {
	switch op.Kind {
	case KindDelete:
		x, err := readDelete(op)
		t.Points = x.Points
		return t.or(err, "delete", "%s, to be purged from %s on", t.points(), date(x.Until))
	case KindUndelete:
		x, err := readUndelete(op)
		t.Points = x.Points
		return t.or(err, "undelete", "%s", t.points())
	case KindPurge:
		x, err := readPurge(op)
		for _, p := range x.Points {
			t.Points = append(t.Points, p.ID)
		}
		return t.or(err, "purge", "%s", t.points())
	case KindFreed:
		return t.freed(op)
	case KindHold, KindRelease:
		h, err := readHold(op)
		t.Points = []ID{h.Point}
		what := map[log.Kind]string{KindHold: "hold", KindRelease: "release"}[op.Kind]
		return t.or(err, what, "%x of %s", h.ID, t.points())
	case KindLock:
		l, err := readLock(op)
		t.Points = []ID{l.Point}
		return t.or(err, "lock", "%s until %s", t.points(), date(l.Until))
	}
	return log.ErrNewer
}

func (t *Told) condemn(op *log.Op) error {
	c, err := readCondemn(op)
	t.Packs, t.Bytes = len(c.Packs), c.Bytes
	if c.Orphans {
		return t.or(err, "condemn", "%s in no entry", packs(t.Packs))
	}
	return t.or(err, "condemn", "%s, of which what lives is in %s", packs(t.Packs), packs(len(c.Added)))
}

func (t *Told) freed(op *log.Op) error {
	x, err := readFreed(op)
	for _, w := range x.Walk {
		t.Points = append(t.Points, w.Point)
	}
	t.Packs = len(x.Slots)
	if x.FromMark {
		return t.or(err, "freed", "slots of %s, by a full mark", packs(t.Packs))
	}
	return t.or(err, "freed", "slots of %s, by purging %s", packs(t.Packs), t.points())
}

func (t *Told) say(what, text string, args ...any) error {
	t.What, t.Text = what, fmt.Sprintf(text, args...)
	return nil
}

func (t *Told) or(err error, what, text string, args ...any) error {
	if err != nil {
		return err
	}
	return t.say(what, text, args...)
}

// points names the points, or says how many they are.
func (t *Told) points() string {
	if n := len(t.Points); n != 1 {
		return fmt.Sprintf("%d recovery points", n)
	}
	return fmt.Sprintf("recovery point %x", t.Points[0])
}

func packs(n int) string {
	if n == 1 {
		return "1 pack"
	}
	return fmt.Sprintf("%d packs", n)
}

func date(ms int64) string { return time.UnixMilli(ms).UTC().Format(time.DateTime) + " UTC" }
