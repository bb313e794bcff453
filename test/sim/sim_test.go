package sim

import (
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-vm/holdfast/internal/vault/log"
)

// One goroutine runs at a time: more processors would only hand it around.
func TestMain(m *testing.M) {
	runtime.GOMAXPROCS(1)
	os.Exit(m.Run())
}

// seeds is how many runs a test makes: HOLDFAST_SIM_SEEDS, from HOLDFAST_SIM_FROM on.
func seeds(t testing.TB, usual uint64) (from, to uint64) {
	t.Helper()
	number := func(name string, otherwise uint64) uint64 {
		v := os.Getenv(name)
		if v == "" {
			return otherwise
		}
		n, err := strconv.ParseUint(v, 10, 64)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		return n
	}
	from = number("HOLDFAST_SIM_FROM", 0)
	return from, from + number("HOLDFAST_SIM_SEEDS", usual)
}

// bad are days on which a store and its users misbehave, each in its own way.
var bad = []Faults{
	{},
	{Crash: 3},
	{Fail: 40},
	{Lose: 60, Late: 60, Double: 40},
	{Freeze: 6, Jump: 5},
	{Stale: 300, Freeze: 2},
	{Lose: 40, Late: 20, Power: 8},
	{Full: 60, Fail: 10},
	{Fail: 10, Lose: 15, Late: 15, Double: 10, Stale: 50, Crash: 1, Freeze: 3, Power: 2, Full: 5, Jump: 2},
}

// populate lets actors of all kinds loose on a world.
func (w *World) populate(rng *rand.Rand) error {
	if err := w.Begin([][]string{{"abc"}, {"acz", "c"}, {"abcd", "efgz"}}[rng.IntN(3)]...); err != nil {
		return err
	}
	some := func(name string, upTo int, do func(*actor) error) {
		for i := range rng.IntN(upTo + 1) {
			w.Spawn(fmt.Sprintf("%s%d", name, i), rng.Uint64(), do)
		}
	}
	w.Spawn("session", rng.Uint64(), func(a *actor) error { return a.sessions(sessionPlan{points: 1 + rng.IntN(3)}) })
	some("session", 2, func(a *actor) error { return a.sessions(sessionPlan{points: 2}) })
	some("long", 1, func(a *actor) error {
		return a.sessions(sessionPlan{progress: true, pause: time.Duration(a.rng.IntN(3)) * time.Hour})
	})
	some("adopter", 1, func(a *actor) error { return a.sessions(sessionPlan{adopt: true}) })
	some("owner", 1, owner)
	some("collector", 2, func(a *actor) error { return a.collects(2) })
	some("sweeper", 1, func(a *actor) error { return a.sweeps(time.Duration(a.rng.IntN(25)) * time.Hour) })
	some("deleter", 1, func(a *actor) error { return a.deletes(2) })
	some("walker", 2, func(a *actor) error { return a.walks(4) })
	some("checker", 1, func(a *actor) error { return a.damages(1) })
	some("holder", 1, func(a *actor) error { return a.holds(1) })
	some("roller", 1, func(a *actor) error { return a.rolls(3, true) })
	some("cutter", 1, func(a *actor) error { return a.cuts(2) })
	some("spoiler", 1, func(a *actor) error { return a.spoils(2) })
	some("reader", 1, func(a *actor) error { return a.reads(3) })
	some("resigner", 1, func(a *actor) error { return a.givesUp(1) })
	return nil
}

// owner is one process with several sessions at once.
func owner(a *actor) error {
	p, err := a.open()
	if err != nil {
		return over(err)
	}
	errs := make(chan error)
	const sessions = 3
	for range sessions {
		w := &worker{proc: p, rng: rand.New(rand.NewPCG(a.rng.Uint64(), 2))}
		go func() {
			err := errOver
			defer func() { errs <- err }()
			err = w.commitPoints(sessionPlan{points: 2})
		}()
	}
	c := &worker{proc: p, rng: rand.New(rand.NewPCG(a.rng.Uint64(), 3)), peek: true}
	go func() {
		err := errOver
		defer func() { errs <- err }()
		for range 3 {
			if err = over(c.collect()); err != nil {
				return
			}
			a.sleep(time.Duration(c.rng.IntN(10)) * time.Millisecond)
		}
	}()
	for range sessions + 1 {
		if e := <-errs; over(e) != nil {
			err = e
		}
	}
	return err
}

// run makes the run of a seed.
func run(t *testing.T, seed uint64, without log.Rules, populate func(*World, *rand.Rand) error, f *Faults,
	tracing bool) (w *World, err error) {
	t.Helper()
	synctest.Test(t, func(*testing.T) {
		rng := rand.New(rand.NewPCG(seed, 77))
		faults := bad[seed%uint64(len(bad))]
		if f != nil {
			faults = *f
		}
		w = NewWorld(random{rng}, faults, without)
		w.tracing = tracing
		if err = populate(w, rng); err == nil {
			err = w.Run()
		}
	})
	return w, err
}

// explain makes a run again and returns its last steps.
func explain(t *testing.T, seed uint64, without log.Rules, populate func(*World, *rand.Rand) error, f *Faults) string {
	w, err := run(t, seed, without, populate, f, true)
	last := w.trace[max(0, len(w.trace)-400):]
	return fmt.Sprintf("%s\n%v", strings.Join(last, "\n"), err)
}

func everybody(w *World, rng *rand.Rand) error { return w.populate(rng) }

// anybody is everybody most of the time, and else a few who do one thing much.
func anybody(w *World, rng *rand.Rand) error {
	few := []func(*World, *rand.Rand) error{everybody, everybody, everybody, takenOver, longSessions, swept, walked}
	return few[rng.IntN(len(few))](w, rng)
}

// Whatever goes wrong and whoever works beside whom: nothing that was acknowledged is lost, no byte
// is wrong, and everybody who lives comes to an end.
func TestRandom(t *testing.T) {
	from, to := seeds(t, 2000)
	runSeeds(t, from, to)
}

func runSeeds(t *testing.T, from, to uint64) {
	t.Helper()
	runs, commits, steps, began := 0, 0, 0, time.Now()
	for seed := from; seed < to; seed++ {
		w, err := run(t, seed, 0, anybody, nil, false)
		if err != nil {
			t.Fatalf("seed %d: %v\n%s", seed, err, explain(t, seed, 0, anybody, nil))
		}
		runs++
		commits += w.truth.commits
		steps += w.steps
	}
	t.Logf("%d seeds from %d: %d steps, %d commits acknowledged, nothing lost, in %v", runs, from, steps, commits,
		time.Since(began).Round(time.Second))
}

// rules are what the simulation must notice when it is left out.
var rules = []struct {
	name     string
	rule     log.Rules
	populate func(*World, *rand.Rand) error
	faults   *Faults
}{
	{"R1 definite: an absent entry is taken for an answer", log.Definite, everybody, nil},
	{"R1 nonce: one's own entry is not looked up", log.KnowNonce, longSessions, &Faults{}},
	{"R2 look: nobody looks after his put", log.LookAfterPut, everybody, nil},
	{"R3 marker: entries are cut before next is there", log.MarkBeforeCut, everybody, nil},
	{"R3 void: a mark on void entries is used", log.VoidMarks, voided, &Faults{}},
	{"R4 count: what is counted on is not looked for", log.GoodCounts, everybody, nil},
	{"R4 own: own packs that were condemned are committed", log.OwnPacks, everybody, nil},
	{"R4 base: a base need not live", log.LivingBase, everybody, nil},
	{"R4 remember: condemned names are forgotten", log.Remember, swept, &Faults{Freeze: 15}},
	{"R5 say: packs are deleted before it is said", log.SayFirst, everybody, nil},
	{"R5 counted: what was counted on since is condemned", log.LeaveCounted, everybody, nil},
	{"R5 rival: two collections stand", log.NoRival, everybody, nil},
	{"R6 hold: a hold refuses nothing", log.HoldsRefuse, everybody, nil},
	{"R6 once: a piece of a walk counts twice", log.WalkOnce, walked, &Faults{}},
	{"R6 shared: what was shared since is freed", log.LeaveShared, walked, &Faults{}},
	{"R7 read on: a reader does not read on", log.ReadOn, everybody, nil},
	{"R9 settle: what was read is built on", log.SettleRead, everybody, &Faults{Crash: 10, Lose: 40, Power: 15}},
	{"R9 absent: a cache says absent", log.AskAbsent, everybody, nil},
}

// walked is much purging, and several who say what that frees.
func walked(w *World, rng *rand.Rand) error {
	if err := w.Begin([][]string{{"abc"}, {"acz", "c"}}[rng.IntN(2)]...); err != nil {
		return err
	}
	for i := range 3 {
		w.Spawn(fmt.Sprintf("session%d", i), rng.Uint64(), func(a *actor) error {
			return a.sessions(sessionPlan{points: 3, noBase: i == 0})
		})
		w.Spawn(fmt.Sprintf("walker%d", i), rng.Uint64(), func(a *actor) error { return a.walks(8) })
	}
	w.Spawn("deleter", rng.Uint64(), func(a *actor) error { return a.deletes(6) })
	if rng.IntN(2) == 0 {
		w.Spawn("collector", rng.Uint64(), func(a *actor) error { return a.collects(2) })
	}
	return nil
}

// takenOver is an owner that collects, and somebody who closes its volumes.
func takenOver(w *World, rng *rand.Rand) error {
	if err := w.Begin([][]string{{"abc"}, {"acz", "c"}, {"abcd", "efgz"}}[rng.IntN(3)]...); err != nil {
		return err
	}
	w.Spawn("owner", rng.Uint64(), owner)
	w.Spawn("deleter", rng.Uint64(), func(a *actor) error { return a.deletes(2) })
	w.Spawn("closer", rng.Uint64(), closer)
	return nil
}

// voided is a process whose own purges turn out void while it collects, and somebody elsewhere who
// holds the points before they are purged again.
func voided(w *World, rng *rand.Rand) error {
	if err := w.Begin("abc"); err != nil {
		return err
	}
	w.Spawn("owner", rng.Uint64(), func(a *actor) error {
		p, err := a.open()
		if err != nil {
			return over(err)
		}
		collects := &worker{proc: p, rng: rand.New(rand.NewPCG(a.rng.Uint64(), 3)), peek: true, rash: true}
		deletes := &worker{proc: p, rng: rand.New(rand.NewPCG(a.rng.Uint64(), 2))}
		done := make(chan error)
		go func() {
			err := errOver
			defer func() { done <- err }()
			for range 4 {
				if err = over(deletes.deleteOne()); err != nil {
					return
				}
			}
		}()
		for range 8 {
			if err = over(collects.collect()); err != nil {
				break
			}
			a.sleep(time.Millisecond)
		}
		if e := <-done; over(e) != nil {
			err = e
		}
		return err
	})
	for i := range 2 {
		w.Spawn(fmt.Sprintf("holder%d", i), rng.Uint64(), func(a *actor) error { return a.holds(3) })
		w.Spawn(fmt.Sprintf("closer%d", i), rng.Uint64(), closer)
	}
	w.Spawn("session", rng.Uint64(), func(a *actor) error { return a.sessions(sessionPlan{points: 3, noBase: true}) })
	return nil
}

// closer closes volume after volume, as one who takes a log over does.
func closer(a *actor) error {
	p, err := a.open()
	for range 4 {
		if err == nil {
			err = a.insist(func() error { return p.Do(a.ctx, func(l *log.Log) error { return l.Close(a.ctx) }) })
		}
	}
	return over(err)
}

// swept are sessions that stand still for long, while orphans are looked for and volumes close.
func swept(w *World, rng *rand.Rand) error {
	if err := w.Begin("abc"); err != nil {
		return err
	}
	for i := range 2 {
		w.Spawn(fmt.Sprintf("session%d", i), rng.Uint64(), func(a *actor) error {
			return a.sessions(sessionPlan{points: 2})
		})
	}
	w.Spawn("sweeper", rng.Uint64(), func(a *actor) error { return a.sweeps(time.Minute) })
	w.Spawn("roller", rng.Uint64(), func(a *actor) error { return a.rolls(4, true) })
	return nil
}

// longSessions are some that tell of their progress, while somebody closes volumes.
func longSessions(w *World, rng *rand.Rand) error {
	if err := w.Begin("abc"); err != nil {
		return err
	}
	for i := range 3 {
		w.Spawn(fmt.Sprintf("long%d", i), rng.Uint64(), func(a *actor) error {
			return a.sessions(sessionPlan{progress: true, points: 2})
		})
	}
	w.Spawn("closer", rng.Uint64(), closer)
	return nil
}

// Each rule is needed: without it the simulation finds a loss within its budget of seeds.
func TestEachRuleIsNeeded(t *testing.T) {
	for _, r := range rules {
		t.Run(r.name, func(t *testing.T) {
			_, budget := seeds(t, 2000)
			for seed := range budget {
				if _, err := run(t, seed, r.rule, r.populate, r.faults, false); err != nil {
					t.Logf("after %d seeds: %v", seed+1, err)
					return
				}
			}
			t.Errorf("nothing was lost in %d seeds", budget)
		})
	}
}
