package sim

import (
	"crypto/sha256"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-vm/holdfast/internal/vault/log"
)

// script takes choices from a list, then the first each time, and notes how many there were.
type script struct {
	list []int
	of   []int // the number of choices at each step
}

func (s *script) choose(n int) int {
	i := len(s.of)
	s.of = append(s.of, n)
	if i < len(s.list) {
		return s.list[i]
	}
	s.list = append(s.list, 0)
	return 0
}

// next returns the list of the next run in order, or nil after the last.
func (s *script) next() []int {
	for i := len(s.of) - 1; i >= 0; i-- {
		if s.list[i]+1 < s.of[i] {
			return append(slices.Clone(s.list[:i]), s.list[i]+1)
		}
	}
	return nil
}

// explorer goes through all orders in which the calls of a few actors may come, and through all
// single faults of the kinds that a case names. A state that was met before is not gone on from: it
// is what is stored, and what each actor has asked and was told.
type explorer struct {
	seen map[[32]byte]bool
	runs int
	cut  int
}

// smallWorld is a case.
type smallWorld struct {
	name  string
	begin []string
	spawn func(*World)
	lose  bool // the answer to one put may be lost, once; or the put may come late
	crash bool // one actor may die, once
}

var smallWorlds = []smallWorld{
	{"two sessions", []string{"a"}, func(w *World) {
		for i := range uint64(2) {
			w.Spawn(fmt.Sprintf("s%d", i), i, func(a *actor) error { return a.sessions(sessionPlan{need: "b"}) })
		}
	}, false, false},
	{"a session, a collector", []string{"acz", "c"}, func(w *World) {
		w.Spawn("s", 1, func(a *actor) error { return a.sessions(sessionPlan{need: "ab"}) })
		w.Spawn("g", 2, func(a *actor) error { return a.collects(1) })
	}, false, false},
	{"a session, a roll", []string{"a"}, func(w *World) {
		w.Spawn("s", 1, func(a *actor) error { return a.sessions(sessionPlan{need: "b"}) })
		w.Spawn("r", 2, func(a *actor) error { return a.rolls(1, false) })
	}, true, false},
	{"a session, a takeover, a lost answer", []string{"a"}, func(w *World) {
		w.Spawn("s", 1, func(a *actor) error { return a.sessions(sessionPlan{need: "b"}) })
		w.Spawn("t", 2, func(a *actor) error {
			p, err := a.open()
			if err != nil {
				return over(err)
			}
			return a.insist(func() error { return p.Do(a.ctx, func(l *log.Log) error { return l.Close(a.ctx) }) })
		})
	}, true, false},
	{"a session, a roll, a cut", []string{"a"}, func(w *World) {
		w.Spawn("s", 1, func(a *actor) error { return a.sessions(sessionPlan{need: "b"}) })
		w.Spawn("r", 2, func(a *actor) error {
			p, err := a.open()
			if err != nil {
				return over(err)
			}
			if err := p.Roll(a.ctx); err != nil {
				return err
			}
			return (&worker{proc: p, rng: a.rng}).cutAll()
		})
	}, false, false},
	{"two collectors, two copies", []string{"acz", "cz", "az"}, func(w *World) {
		for i := range uint64(2) {
			w.Spawn(fmt.Sprintf("g%d", i), i, func(a *actor) error { return a.collects(1) })
		}
	}, false, false},
	{"a session, a deletion, a death", []string{"ab"}, func(w *World) {
		w.Spawn("s", 1, func(a *actor) error { return a.sessions(sessionPlan{need: "c"}) })
		w.Spawn("d", 2, func(a *actor) error { return a.deletes(1) })
	}, false, true},
}

// TestAll goes through all runs of small worlds.
func TestAll(t *testing.T) {
	for _, c := range smallWorlds {
		t.Run(c.name, func(t *testing.T) {
			x := &explorer{seen: map[[32]byte]bool{}}
			began := time.Now()
			limit := 400
			if os.Getenv("HOLDFAST_SIM_SEEDS") != "" {
				limit = 1 << 30
			}
			list := []int{}
			for list != nil && x.runs < limit {
				s := &script{list: list}
				err := x.run(t, c, s)
				if err != nil {
					t.Fatalf("run %d, choices %v: %v", x.runs, s.list, err)
				}
				x.runs++
				list = s.next()
			}
			t.Logf("%d runs, %d of them cut short in a state met before, %d states, all: %v, in %v", x.runs, x.cut,
				len(x.seen),
				list == nil, time.Since(began))
		})
	}
}

// run makes one run, up to a state that was met before.
func (x *explorer) run(t *testing.T, c smallWorld, s *script) (err error) {
	synctest.Test(t, func(*testing.T) {
		w := NewWorld(s, Faults{}, 0)
		w.one = &oneFault{lose: c.lose, crash: c.crash}
		w.meet = func(told string) bool {
			if len(s.of) < len(s.list) {
				return false // still on the way that was chosen before
			}
			key := sha256.Sum256([]byte(told + w.disk.String()))
			if x.seen[key] {
				x.cut++
				return true
			}
			x.seen[key] = true
			return false
		}
		if err = w.Begin(c.begin...); err == nil {
			c.spawn(w)
			err = w.Run()
		}
	})
	return err
}

// String says what is stored.
func (d *disk) String() string {
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(d.objects)) {
		o := d.objects[name]
		fmt.Fprintf(&b, "%s %x %v\n", name, log.HashOf(o.data), o.durable)
	}
	for _, e := range d.late {
		fmt.Fprintf(&b, "late %s %x\n", e.name, log.HashOf(e.data))
	}
	return b.String()
}
