package sim

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/holdfast-vm/holdfast/internal/blob"
	"github.com/holdfast-vm/holdfast/internal/vault/log"
	"github.com/holdfast-vm/holdfast/internal/vault/state"
)

// proc is an open log in an actor's process.
type proc struct {
	*log.Writer
	actor *actor
	store client
	state *state.State
	log   *log.Log
	head  log.Remembered // as it was opened
}

// open opens the log, however often it takes.
func (a *actor) open() (*proc, error) {
	p := &proc{actor: a, store: client{a}}
	rng := rand.New(rand.NewPCG(a.rng.Uint64(), 1))
	err := a.insist(func() (err error) {
		p.state = state.New(p.store, a.world.keys,
			state.Options{Without: a.world.without, RememberVolumes: 8, RememberDays: -1})
		p.log, err = log.Open(a.ctx, p.store, a.world.keys.Log(), p.state, log.Options{
			NoReadAhead: true, Without: a.world.without, Rand: func(b []byte) { fill(rng, b) }, Now: a.now})
		return err
	})
	if err != nil {
		return nil, err
	}
	p.head = p.log.Head()
	p.Writer = log.NewWriter(p.log)
	a.procs = append(a.procs, p)
	return p, nil
}

// now is the time by the actor's clock.
func (a *actor) now() time.Time { return time.Now().Add(a.clock) }

// insist does something until it works or never will.
func (a *actor) insist(do func() error) error {
	for {
		err := do()
		if !errors.Is(err, errIO) && !errors.Is(err, blob.ErrNoSpace) && !errors.Is(err, blob.ErrNotExist) ||
			a.ctx.Err() != nil {
			return err
		}
		a.sleep(time.Second)
	}
}

func (a *actor) sleep(d time.Duration) {
	select {
	case <-time.After(d):
	case <-a.ctx.Done():
	}
}

// errOver ends what an actor does without anything being wrong: the vault has moved on, or nobody
// knows.
var errOver = errors.New("over")

// append appends an operation; room is retried, and what is not valid or not known ends it.
func (p *proc) append(judge func(ctx context.Context) (log.Op, error)) error {
	for {
		_, err := p.Append(p.actor.ctx, func(ctx context.Context) ([]log.Op, error) {
			op, err := judge(ctx)
			return []log.Op{op}, err
		})
		if errors.Is(err, blob.ErrNoSpace) && !errors.Is(err, log.ErrInDoubt) ||
			errors.Is(err, errIO) && p.actor.ctx.Err() == nil {
			p.actor.sleep(time.Second)
			continue
		}
		return err
	}
}

// view runs f on the state, read on to the end.
func (p *proc) view(f func(ctx context.Context, s *state.State) error) error {
	return p.actor.insist(func() error {
		return p.Do(p.actor.ctx, func(l *log.Log) error {
			if err := l.Read(p.actor.ctx); err != nil {
				return err
			}
			return f(p.actor.ctx, p.state)
		})
	})
}

// over turns the errors that end an operation in a world where others work too into nil.
func over(err error) error {
	for _, e := range []error{errOver, log.ErrInDoubt, log.ErrClosed, context.Canceled, state.ErrNoPoint, state.ErrHeld,
		state.ErrEnded, state.ErrVoid, state.ErrTooOld, state.ErrNoChange, state.ErrInUse, state.ErrExists} {
		if errors.Is(err, e) {
			return nil
		}
	}
	var lost *state.Lost
	if errors.As(err, &lost) || err != nil && strings.Contains(err.Error(), "the entry is absent") {
		return nil // the second is what one is told who takes absent for an answer
	}
	return err
}

// pack stores chunks as a pack of a session, however often it takes. A name is used once.
func (p *proc) pack(s log.Session, n *uint32, chunks string) (o log.Object, err error) {
	err = p.actor.insist(func() error {
		*n++
		o = log.Object{ID: log.NewObjectID(p.head.At.Volume, s, *n), Kind: log.Pack, Size: uint64(len(chunks)),
			Sum: log.HashOf([]byte(chunks))}
		return blob.Put(p.actor.ctx, p.store, o.Name(), []byte(chunks))
	})
	return o, err
}

// content returns the chunks of a pack: what an index would know.
func (w *World) content(id log.ObjectID) string {
	o := log.Object{ID: id, Kind: log.Pack}
	if have := w.disk.objects[o.Name()]; have != nil {
		return string(have.data)
	}
	if had := w.disk.gone[o.Name()]; had != nil {
		return string(had.data)
	}
	return ""
}

// good returns the good packs.
func good(ctx context.Context, s *state.State) (packs []log.Object, err error) {
	err = s.Packs(ctx, func(o log.Object) bool {
		packs = append(packs, o)
		return true
	})
	return packs, err
}

// worker is a part of a process that makes its own choices.
type worker struct {
	*proc
	rng  *rand.Rand
	peek bool // marks as of what its process has read or put so far
	rash bool // takes what is purged for dead, as one may where nobody walks what that frees
}

// worker returns one, with a process of its own.
func (a *actor) worker() (*worker, error) {
	p, err := a.open()
	return &worker{proc: p, rng: a.rng}, err
}

func fill(rng *rand.Rand, b []byte) {
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
}

// Begin makes the log and one point that needs what chunks says, in one pack or two that have some
// chunks both; nothing fails meanwhile.
func (w *World) Begin(packs ...string) error {
	ctx := context.Background()
	s := quiet{w.disk}
	if err := log.Init(ctx, s, w.keys.Log()); err != nil {
		return err
	}
	st := state.New(s, w.keys, state.Options{})
	seq := uint64(0)
	l, err := log.Open(ctx, s, w.keys.Log(), st, log.Options{NoReadAhead: true, Rand: func(b []byte) {
		seq++
		binary.BigEndian.PutUint64(b[len(b)-8:], seq)
	}})
	if err != nil {
		return err
	}
	wr := log.NewWriter(l)
	defer wr.Close()
	c := state.Commit{}
	need := ""
	for i, chunks := range packs {
		o := log.Object{ID: log.NewObjectID(log.Volume{}, log.Session{1}, uint32(i)), Kind: log.Pack,
			Size: uint64(len(chunks)),
			Sum:  log.HashOf([]byte(chunks))}
		if err := blob.Put(ctx, s, o.Name(), []byte(chunks)); err != nil {
			return err
		}
		c.Added = append(c.Added, o)
		need += chunks
	}
	need = without(need, "z")
	c.Points = []state.Point{{ID: state.ID{1}, Manifest: []byte(need)}}
	if _, err := wr.Append(ctx, func(context.Context) ([]log.Op, error) { return []log.Op{c.Op()}, nil }); err != nil {
		return fmt.Errorf("begin: %w", err)
	}
	w.truth.acked[state.ID{1}] = need
	for _, o := range w.disk.objects {
		o.at = time.Time{} // long ago
	}
	return nil
}

// without returns the distinct bytes of a that are not in b.
func without(a, b string) string {
	seen := map[byte]bool{}
	for i := range len(b) {
		seen[b[i]] = true
	}
	out := []byte{}
	for i := range len(a) {
		if !seen[a[i]] {
			seen[a[i]] = true
			out = append(out, a[i])
		}
	}
	return string(out)
}
