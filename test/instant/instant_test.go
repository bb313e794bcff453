package instant

import (
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/holdfast-vm/holdfast/internal/restore"
)

// fromEnv returns a number that the environment may set.
func fromEnv(t *testing.T, name string, otherwise uint64) uint64 {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}

// A guest runs at once, goes on after the end of everything that takes part, and in the end stands on its own disks with all that it ever knew to be
// durable.
func TestInstant(t *testing.T) {
	hypervisors(t, func(t *testing.T, libvirt bool) {
		seed := fromEnv(t, "HOLDFAST_SEED", rand.Uint64N(1e6))
		t.Logf("HOLDFAST_SEED=%d", seed)
		rng := rand.New(rand.NewPCG(seed, 0))
		l := newLab(t, libvirt)
		r := l.restore("--start", "--rate", "16KiB/s")
		l.awaitUp(r)
		t.Logf("up %.1f s after the command; its plain boot took %.1f s", time.Since(r.began).Seconds(), l.boot.Seconds())
		l.writesOn(5)
		if st := l.state(); st.Step != restore.InstantHydrating || !st.Started {
			t.Errorf("while it copies the state is %+v", st)
		}
		for n := range fromEnv(t, "HOLDFAST_ROUNDS", 2) {
			what := int(n)
			if n > 1 {
				what = rng.IntN(len(ends))
				l.writesOn(rng.Uint64N(40))
			}
			t.Log(ends[what].name)
			r = ends[what].do(l, r)
			l.writesOn(5)
		}
		l.finish(r)
	})
}

// ends are what can end in the middle, and what makes it go on.
var ends = []struct {
	name string
	do   func(l *lab, r *running) *running
}{
	{"holdfast is killed", func(l *lab, r *running) *running {
		r.kill()
		until(l.t, "the machine stands still without its export", l.paused)
		return l.resume()
	}},
	{"the host loses its power", func(l *lab, r *running) *running {
		r.kill()
		l.killQEMU()
		r = l.resume()
		l.awaitUp(r)
		return r
	}},
	{"QEMU is killed", func(l *lab, r *running) *running {
		l.killQEMU()
		until(l.t, "that is seen", func() bool { return l.state().Ended || r.ended() })
		r.kill()
		r = l.resume("--start")
		l.awaitUp(r)
		return r
	}},
	{"holdfast is killed and soon resumed", func(l *lab, r *running) *running {
		r.kill()
		return l.resume()
	}},
}

// finish lets the copying come to its end.
func (l *lab) finish(r *running) {
	l.t.Helper()
	l.instant("limit", "--rate", "0")
	until(l.t, "it moves to its local disks", func() bool { return l.state().Step != restore.InstantHydrating || r.ended() })
	l.wait(r)
	l.succeeded(r)
	l.writesOn(5)
	l.ownDisks()
}
