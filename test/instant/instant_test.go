package instant

import (
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/holdfast-vm/holdfast/internal/restore"
	"github.com/holdfast-vm/holdfast/test/vm/program"
)

// A guest runs at once, goes on after the end of everything that takes part, and in the end stands
// on its own disks with all that it ever knew to be durable.
func TestInstant(t *testing.T) {
	program.Hypervisors(t, func(t *testing.T, libvirt bool) {
		seed := program.Number(t, "HOLDFAST_SEED", rand.Uint64N(1e6))
		t.Logf("HOLDFAST_SEED=%d", seed)
		rng := rand.New(rand.NewPCG(seed, 0))
		l := newLab(t, libvirt)
		r := l.restore("--start", "--rate", "16KiB/s")
		l.awaitUp(r)
		t.Logf("up %.1f s after the command; its plain boot took %.1f s", time.Since(r.Began).Seconds(),
			l.boot.Seconds())
		l.writesOn(5)
		if st := l.state(); st.Step != restore.InstantHydrating || !st.Started {
			t.Errorf("while it copies the state is %+v", st)
		}
		for n := range program.Number(t, "HOLDFAST_ROUNDS", 2) {
			what := int(n)
			if n > 1 {
				what = rng.IntN(len(ends))
				l.writesOn(rng.Uint64N(40))
			}
			t.Log(ends[what].name)
			r = ends[what].do(l, r)
			l.writesOn(5)
		}
		l.finish(r, rng)
	})
}

// ends are what can end in the middle, and what makes it go on.
var ends = []struct {
	name string
	do   func(l *lab, r *program.Run) *program.Run
}{
	{"holdfast is killed", func(l *lab, r *program.Run) *program.Run {
		r.Kill()
		program.Until(l.t, "the machine stands still without its export", l.paused)
		return l.resume()
	}},
	{"the host loses its power", func(l *lab, r *program.Run) *program.Run {
		r.Kill()
		l.killQEMU()
		r = l.resume()
		l.awaitUp(r)
		return r
	}},
	{"QEMU is killed", func(l *lab, r *program.Run) *program.Run {
		l.killQEMU()
		program.Until(l.t, "that is seen", func() bool { return l.state().Ended || r.Ended() })
		r.Kill()
		r = l.resume("--start")
		l.awaitUp(r)
		return r
	}},
	{"holdfast is killed and soon resumed", func(l *lab, r *program.Run) *program.Run {
		r.Kill()
		return l.resume()
	}},
}

// finish lets the copying come to its end, where holdfast is killed, alone or as a power cut would,
// in the middle of the move to the local disks.
func (l *lab) finish(r *program.Run, rng *rand.Rand) {
	l.t.Helper()
	l.instant("limit", "--rate", "0")
	program.Until(l.t, "it moves to its local disks", func() bool {
		return l.state().Step != restore.InstantHydrating || r.Ended()
	})
	<-time.After(time.Duration(rng.IntN(100)) * time.Millisecond)
	r.Kill()
	switch st := l.state(); {
	case st.Name == "":
		l.t.Log("it was done")
		if err := os.Remove(filepath.Join(l.storage, name+".instant.lock")); err != nil &&
			!errors.Is(err, fs.ErrNotExist) {
			l.t.Fatal(err)
		}
	case rng.IntN(2) == 0:
		l.t.Logf("holdfast was killed while it was %s", st.Step)
		r = l.resume()
		r.Wait(l.t)
		r.Finish(l.t, 0)
	default:
		l.t.Logf("the host lost its power while it was %s", st.Step)
		l.killQEMU()
		// a definition that was changed already needs nothing of ours, so that it may be done
		// before it starts
		r = l.resume("--start")
		l.awaitUp(r)
		r.Wait(l.t)
		r.Finish(l.t, 0)
	}
	l.writesOn(5)
	l.ownDisks()
}
