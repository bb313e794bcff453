package sim

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-vm/holdfast/internal/vault/log"
)

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
	some("holder", 1, func(a *actor) error { return a.holds(1) })
	some("roller", 1, func(a *actor) error { return a.rolls(3, true) })
	some("cutter", 1, func(a *actor) error { return a.cuts(2) })
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
	for range sessions {
		if e := <-errs; over(e) != nil {
			err = e
		}
	}
	return err
}

// run makes the run of a seed.
func run(t *testing.T, seed uint64, without log.Rules, populate func(*World, *rand.Rand) error, f *Faults, tracing bool) (w *World, err error) {
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

// Whatever goes wrong and whoever works beside whom: nothing that was acknowledged is lost, no byte
// is wrong, and everybody who lives comes to an end.
func TestRandom(t *testing.T) {
	from, to := seeds(t, 2000)
	commits, steps, began := 0, 0, time.Now()
	for seed := from; seed < to; seed++ {
		w, err := run(t, seed, 0, everybody, nil, false)
		if err != nil {
			t.Fatalf("seed %d: %v\n%s", seed, err, explain(t, seed, 0, everybody, nil))
		}
		commits += w.truth.commits
		steps += w.steps
	}
	t.Logf("seeds %d to %d: %d steps, %d commits acknowledged, in %v", from, to-1, steps, commits, time.Since(began))
}
