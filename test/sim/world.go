// Package sim drives the rooms of the vault's log through everything that a store, a clock and a
// scheduler may do to them.
//
// A [World] has one simulated store and any number of actors: sessions, collectors, a sweeper, a
// deleter, a roller, a cutter, readers. They run the real code; what they have in common is the
// store alone. Each call of the store is a step, and the world decides whose is next, whether it
// fails, is answered, or is done late or twice, who stands still for hours, and who dies. Time is
// virtual (testing/synctest). All follows from one seed, or from a list of choices, so a run can be
// repeated and all runs of a small world can be gone through.
//
// Afterwards, and at some steps on the way, somebody opens the store and looks: what was
// acknowledged is there, every chunk that a point needs is in a good pack that is there, no good
// pack is gone, no point came back, and whoever lives comes to an end.
package sim

import (
	"context"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing/synctest"
	"time"

	"github.com/holdfast-vm/holdfast/internal/vault/log"
	"github.com/holdfast-vm/holdfast/internal/vault/state"
)

// Faults are how often things go wrong, in thousandths of calls; the zero value is a good day.
type Faults struct {
	Fail   int // without effect
	Lose   int // the answer, of a call that took effect
	Late   int // a put or deletion that takes effect any time later, after an error
	Double int // a put that is done once more, any time later
	Stale  int // an answer from before, where the contract allows it
	Crash  int // of the actor that makes the call
	Freeze int // of that actor, for up to two days
	Power  int // of the store: what is not durable may vanish
	Full   int // a put finds no space
	Jump   int // of an actor's clock
}

// choices are where a run takes what is left open.
type choices interface {
	// choose returns a number from 0 to n-1.
	choose(n int) int
}

type random struct{ *rand.Rand }

func (r random) choose(n int) int { return r.IntN(n) }

// World is a store and who uses it.
type World struct {
	pick    choices
	faults  Faults
	without log.Rules
	keys    *state.Keys
	disk    *disk

	mu      sync.Mutex
	actors  []*actor
	pending []*call

	steps    int
	maxSteps int // until faults end
	trace    []string
	tracing  bool
	one      *oneFault              // at most one thing goes wrong, as the choices say
	meet     func(told string) bool // reports whether a run may end here: its state was met before
	truth    *truth
}

// actor is one process with what it does.
type actor struct {
	world  *World
	name   string
	rng    *rand.Rand
	ctx    context.Context
	cancel context.CancelFunc
	clock  time.Duration // by which its clock is wrong
	frozen time.Time     // until when it stands still
	dead   bool
	done   bool
	err    error
	procs  []*proc
	number int
	told   log.Hash // of all that it asked and was told
}

// call is a call of the store that waits for its turn.
type call struct {
	actor *actor
	what  string
	name  string
	run   chan verdict
}

// verdict is what becomes of a call.
type verdict int

const (
	serve verdict = iota
	fail
	lose
	late
	double
	stale
	full
	die
)

// NewWorld returns a world without actors.
func NewWorld(pick choices, f Faults, without log.Rules) *World {
	keys, err := state.NewKeys([32]byte{7}, [16]byte{9})
	if err != nil {
		panic(err)
	}
	w := &World{pick: pick, faults: f, without: without, keys: keys, maxSteps: 3000}
	w.disk = newDisk()
	w.truth = newTruth()
	return w
}

// Spawn adds an actor. do is run once Run is called, and may call the store.
func (w *World) Spawn(name string, seed uint64, do func(*actor) error) {
	a := &actor{world: w, name: name, rng: rand.New(rand.NewPCG(seed, uint64(len(w.actors)))), number: len(w.actors)}
	a.ctx, a.cancel = context.WithCancel(context.Background())
	w.actors = append(w.actors, a)
	go func() {
		defer func() {
			w.mu.Lock()
			a.done = true
			w.mu.Unlock()
		}()
		a.err = do(a)
		for _, p := range a.procs {
			p.Close()
		}
	}()
}

// ask waits until it is the turn of a call and returns what becomes of it. The goroutines of an
// actor that has died end here.
func (a *actor) ask(what, name string) verdict {
	c := &call{actor: a, what: what, name: name, run: make(chan verdict)}
	w := a.world
	w.mu.Lock()
	if a.dead {
		w.mu.Unlock()
		runtime.Goexit()
	}
	w.pending = append(w.pending, c)
	w.mu.Unlock()
	v := <-c.run
	if v == die {
		runtime.Goexit()
	}
	return v
}

// Run lets the actors run until all have ended or died, and returns what is wrong.
func (w *World) Run() error {
	defer w.shutDown()
	idle := 0
	for {
		synctest.Wait()
		c, alive := w.next()
		if !alive {
			if c != nil {
				w.putBack(c)
			}
			break
		}
		if c == nil {
			if idle++; idle > 20000 {
				return fmt.Errorf("blocked: nobody goes on, after %d steps:\n%s", w.steps, w.who())
			}
			time.Sleep(time.Second << min(idle/16, 12))
			continue
		}
		idle = 0
		if w.meet != nil && w.meet(w.told()) {
			w.putBack(c)
			return w.check()
		}
		if w.steps++; w.steps > 20*w.maxSteps {
			w.putBack(c)
			return fmt.Errorf("blocked: no end after %d steps:\n%s", w.steps, w.who())
		}
		w.step(c)
		time.Sleep(time.Duration(1+w.steps%7) * time.Millisecond)
		if w.steps%400 == 0 {
			if err := w.check(); err != nil {
				return err
			}
		}
	}
	for _, a := range w.actors {
		if a.err != nil && !a.dead {
			return fmt.Errorf("%s: %w", a.name, a.err)
		}
	}
	for len(w.disk.late) > 0 {
		w.disk.arrive(w.choose(len(w.disk.late)), w.choose(2) == 0)
	}
	w.losePower()
	return w.check()
}

// shutDown ends what still runs.
func (w *World) shutDown() {
	w.mu.Lock()
	for _, a := range w.actors {
		a.dead = true
		a.cancel()
	}
	w.mu.Unlock()
	for range 8 {
		synctest.Wait()
		for c, _ := w.next(); c != nil; c, _ = w.next() {
			c.run <- die
			synctest.Wait()
		}
		time.Sleep(20 * time.Second)
	}
}

// arrival is in one of how many steps something late arrives; where all runs are gone through, it
// does or does not.
func (w *World) arrival() int {
	if w.meet != nil {
		return 2
	}
	return 12
}

func (w *World) choose(n int) int {
	if n <= 1 {
		return 0
	}
	return w.pick.choose(n)
}

// often reports whether something happens that does so in a number of thousand cases.
func (w *World) often(thousandths int) bool {
	return thousandths > 0 && w.steps < w.maxSteps && w.choose(1000) < thousandths
}

// next returns one of the calls that may go on, and whether anybody still runs.
func (w *World) next() (*call, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	alive := false
	for _, a := range w.actors {
		alive = alive || !a.done
	}
	slices.SortStableFunc(w.pending, func(a, b *call) int {
		if a.actor != b.actor {
			return a.actor.number - b.actor.number
		}
		return strings.Compare(a.what+a.name, b.what+b.name)
	})
	var ready []*call
	for _, c := range w.pending {
		if c.actor.dead || !time.Now().Before(c.actor.frozen) {
			ready = append(ready, c)
		}
	}
	if len(ready) == 0 {
		return nil, alive
	}
	c := ready[w.choose(len(ready))]
	w.pending = slices.DeleteFunc(w.pending, func(p *call) bool { return p == c })
	return c, alive
}

// step decides what becomes of a call, and of the world meanwhile.
func (w *World) step(c *call) {
	a := c.actor
	if len(w.disk.late) > 0 && w.choose(w.arrival()) == 0 {
		w.disk.arrive(w.choose(len(w.disk.late)), w.choose(4) > 0)
	}
	if w.often(w.faults.Power) {
		w.losePower()
	}
	if w.often(w.faults.Jump) {
		a.clock += time.Duration(w.choose(4000)-2000) * time.Hour
	}
	if w.often(w.faults.Freeze) {
		a.frozen = time.Now().Add(time.Duration(1+w.choose(48)) * time.Hour)
	}
	v := w.verdict(c)
	w.note(a, c, v)
	if w.meet != nil {
		was := w.disk.objects[c.name]
		var found log.Hash
		if was != nil {
			found = log.HashOf(was.data)
		}
		a.told = log.HashOf(fmt.Appendf(nil, "%x %s %s %d %x %s", a.told, c.what, c.name, v, found, w.disk.names(c)))
	}
	c.run <- v
	synctest.Wait()
}

func (w *World) note(a *actor, c *call, v verdict) {
	if w.tracing {
		names := []string{"", "fails", "answer lost", "late", "done twice", "stale", "no space", "dies"}
		w.trace = append(w.trace, fmt.Sprintf("%5d %-12s %-7s %s %s", w.steps, a.name, c.what, c.name, names[v]))
	}
}

// oneFault is at most one fault in a run.
type oneFault struct {
	lose, crash bool
	done        bool
}

// verdict decides what becomes of a call when at most one goes wrong.
func (o *oneFault) verdict(w *World, c *call) verdict {
	kinds := []verdict{serve}
	if o.lose && c.what == "put" {
		kinds = append(kinds, lose, late)
	}
	if o.crash {
		kinds = append(kinds, die)
	}
	if o.done || c.actor.dead {
		return serve
	}
	v := kinds[w.choose(len(kinds))]
	o.done = v != serve
	if v == die {
		return w.kill(c)
	}
	return v
}

// told says who was told what.
func (w *World) told() string {
	var b strings.Builder
	for _, a := range w.actors {
		fmt.Fprintf(&b, "%x %v %v\n", a.told, a.dead, a.done)
	}
	for _, c := range w.pending {
		fmt.Fprintf(&b, "%s %s %s\n", c.actor.name, c.what, c.name)
	}
	return b.String()
}

// putBack lets a call wait on.
func (w *World) putBack(c *call) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.pending = append(w.pending, c)
}

// verdict decides what becomes of a call.
func (w *World) verdict(c *call) verdict {
	if w.one != nil && !c.actor.dead {
		return w.one.verdict(w, c)
	}
	f, put := w.faults, c.what == "put"
	switch {
	case c.actor.dead:
		return die
	case w.often(f.Crash):
		return w.kill(c)
	case w.often(f.Fail):
		return fail
	case (put || c.what == "delete") && w.often(f.Lose):
		return lose
	case (put || c.what == "delete") && w.often(f.Late):
		return late
	case put && w.often(f.Double):
		return double
	case put && w.often(f.Full):
		return full
	case (c.what == "read" || c.what == "list" || c.what == "stat") && w.often(f.Stale):
		return stale
	}
	return serve
}

// kill ends an actor at a call, which may have its effect all the same.
func (w *World) kill(c *call) verdict {
	w.mu.Lock()
	c.actor.dead = true
	w.mu.Unlock()
	c.actor.cancel()
	if c.what == "put" && w.choose(2) == 0 {
		w.disk.late = append(w.disk.late, w.disk.held[c.actor])
	}
	return die
}

func (w *World) losePower() { w.disk.losePower(w.choose) }

// who says who waits for what.
func (w *World) who() string {
	var b strings.Builder
	for _, a := range w.actors {
		fmt.Fprintf(&b, "  %s: dead %v, done %v, frozen %v, %v\n", a.name, a.dead, a.done, time.Now().Before(a.frozen),
			a.err)
	}
	for _, c := range w.pending {
		fmt.Fprintf(&b, "  %s waits to %s %s\n", c.actor.name, c.what, c.name)
	}
	return b.String()
}
