package gc_test

import (
	"context"
	"errors"
	"iter"
	mrand "math/rand/v2"
	"sync"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/blob"
	"github.com/holdfast-vm/holdfast/internal/blob/fault"
	"github.com/holdfast-vm/holdfast/internal/blob/mem"
	"github.com/holdfast-vm/holdfast/internal/vault/gc"
	"github.com/holdfast-vm/holdfast/internal/vault/state"
)

// fork returns a copy of a store.
func fork(t testing.TB, s blob.Store) *mem.Store {
	t.Helper()
	to := mem.New()
	for info, err := range s.List(t.Context(), "", "") {
		if err != nil {
			t.Fatal(err)
		}
		raw, err := blob.Get(t.Context(), s, info.Name)
		if err == nil {
			err = blob.Put(t.Context(), to, info.Name, raw)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return to
}

func (w *world) fork() *world {
	w.mu.Lock()
	defer w.mu.Unlock()
	c := &world{now: w.now, points: map[state.ID]*modelPoint{}}
	for id, p := range w.points {
		c.points[id] = p
	}
	return c
}

// busy returns a vault in which there is all a collection can meet: walks that are pending, dead
// and thin packs, shared rows, condemned ones.
func busy(t testing.TB, seed uint64, values, dedup, twice int) (*world, *mem.Store) {
	t.Helper()
	rng := mrand.New(mrand.NewPCG(seed, 3))
	w, store := newWorld(t), mem.New()
	initVault(t, store)
	p := open(t, w, store)
	defer p.Journal.Close()
	for i := range 24 {
		if err := p.act(t.Context(), rng, values, dedup, twice); err != nil {
			t.Fatal(err)
		}
		if i == 14 {
			collect(t, p, gc.Options{Policy: quick})
		}
	}
	return w, store
}

// A process dies before any call of its: points read back, and whoever comes next finishes.
func TestACollectorDiesAnywhere(t *testing.T) {
	gc.ShortEntries(t, 400)
	w, store := busy(t, 5, 14, 100, 30)
	for i := 0; ; i++ {
		w, store := w.fork(), fork(t, store)
		ctx, cancel := context.WithCancel(t.Context())
		h := &hooked{switched: switched{plain: store, armed: store}, at: i, do: cancel, dies: true}
		p := open(t, w, h)
		h.set(true)
		_, _ = gc.Collect(ctx, p.Vault, gc.Options{Policy: quick, Now: w.clock})
		p.Journal.Close()
		cancel()
		if h.calls <= i {
			return
		}
		finish(t, w, store, i)
	}
}

// finish collects, and demands that nothing is left to be done and all points read back.
func finish(t *testing.T, w *world, store blob.Store, i int) {
	t.Helper()
	p := open(t, w, store)
	defer p.Journal.Close()
	collect(t, p, gc.Options{Policy: quick})
	r := collect(t, p, gc.Options{Policy: quick})
	if r.PendingPurges > 0 || r.FreedChunks > 0 || r.WaitingPacks > 0 {
		t.Fatalf("call %d: left to be done: %+v", i, r)
	}
	if _, err := p.check(t.Context()); err != nil {
		t.Fatalf("call %d: %v", i, err)
	}
}

// Whatever call of the store fails, once: points read back, and whoever comes next finishes.
func TestACollectionIsCutOffAnywhere(t *testing.T) {
	for _, how := range []struct {
		name string
		set  func(*fault.Store, int)
	}{
		{"call fails", func(s *fault.Store, i int) { s.FailCall(i, errors.New("not now")) }},
		{"answer is lost", func(s *fault.Store, i int) { s.LoseReply(i, errors.New("lost")) }},
	} {
		t.Run(how.name, func(t *testing.T) {
			w, store := busy(t, 5, 14, 100, 30)
			for i := 0; ; i++ {
				w, store := w.fork(), fork(t, store)
				if cutOff(t, w, store, func(s *fault.Store) { how.set(s, i) }) <= i {
					break
				}
				finish(t, w, store, i)
			}
		})
	}
}

// cutOff collects on a store that fails, and returns how many calls were made of it.
func cutOff(t *testing.T, w *world, s blob.Store, set func(*fault.Store)) int {
	t.Helper()
	faulty := fault.New(s)
	set(faulty)
	p, err := w.open(t.Context(), &switched{plain: s, armed: faulty})
	if err != nil {
		t.Fatal(err)
	}
	p.Store.(*switched).set(true)
	_, _ = gc.Collect(t.Context(), p.Vault, gc.Options{Policy: quick, Now: w.clock})
	p.Journal.Close()
	return faulty.Calls()
}

// switched is a store that is another one once it was switched.
type switched struct {
	plain, armed blob.Store
	mu           sync.Mutex
	isOn         bool
}

func (s *switched) set(on bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.isOn = on
}

func (s *switched) now() blob.Store {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.isOn {
		return s.armed
	}
	return s.plain
}

func (s *switched) Create(ctx context.Context, name string) (blob.Writer, error) {
	return s.now().Create(ctx, name)
}
func (s *switched) ReadAt(ctx context.Context, name string, p []byte, off int64) (int, error) {
	return s.now().ReadAt(ctx, name, p, off)
}
func (s *switched) Stat(ctx context.Context, name string) (blob.Info, error) {
	return s.now().Stat(ctx, name)
}
func (s *switched) List(ctx context.Context, prefix, after string) iter.Seq2[blob.Info, error] {
	return s.now().List(ctx, prefix, after)
}
func (s *switched) Settle(ctx context.Context, name string) error { return s.now().Settle(ctx, name) }
func (s *switched) Absent(ctx context.Context, name string) (bool, error) {
	return s.now().Absent(ctx, name)
}
func (s *switched) Delete(ctx context.Context, name string) error { return s.now().Delete(ctx, name) }

// hooked is a store that calls do before its call number at, once; and then does nothing any more
// if it dies.
type hooked struct {
	switched
	do   func()
	at   int
	dies bool

	calls int
}

func (s *hooked) count() error {
	s.mu.Lock()
	do, dead := s.isOn && s.calls == s.at, s.isOn && s.dies && s.calls >= s.at
	if s.isOn {
		s.calls++
	}
	s.mu.Unlock()
	if do {
		s.do()
	}
	if dead {
		return fault.ErrPowerLost
	}
	return nil
}

func (s *hooked) Create(ctx context.Context, name string) (blob.Writer, error) {
	if err := s.count(); err != nil {
		return nil, err
	}
	w, err := s.plain.Create(ctx, name)
	return &hookedWriter{w, s}, err
}

type hookedWriter struct {
	blob.Writer
	s *hooked
}

func (w *hookedWriter) Commit(ctx context.Context) error {
	if err := w.s.count(); err != nil {
		return err
	}
	return w.Writer.Commit(ctx)
}

func (s *hooked) ReadAt(ctx context.Context, name string, p []byte, off int64) (int, error) {
	if err := s.count(); err != nil {
		return 0, err
	}
	return s.plain.ReadAt(ctx, name, p, off)
}

func (s *hooked) Absent(ctx context.Context, name string) (bool, error) {
	if err := s.count(); err != nil {
		return false, err
	}
	return s.plain.Absent(ctx, name)
}

func (s *hooked) Delete(ctx context.Context, name string) error {
	if err := s.count(); err != nil {
		return err
	}
	return s.plain.Delete(ctx, name)
}

// Whatever others do between any two calls of a collection, points read back: another collection, a
// commit that counts on what is about to go, purges.
func TestOthersActBetweenAnyTwoCalls(t *testing.T) {
	others := map[string]func(*testing.T, *process, *mrand.Rand){
		"collection": func(t *testing.T, p *process, _ *mrand.Rand) {
			collect(t, p, gc.Options{Policy: quick})
		},
		"commits": func(t *testing.T, p *process, rng *mrand.Rand) {
			for range 3 {
				base := p.w.any(rng)
				if _, err := p.putAgain(t.Context(), rng, base, p.w.change(rng, base, 14), 256, 0); err != nil {
					t.Error(err)
				}
			}
		},
		"commits and a collection": func(t *testing.T, p *process, rng *mrand.Rand) {
			for range 4 {
				if err := p.act(t.Context(), rng, 14, 256, 0); err != nil {
					t.Error(err)
				}
			}
			collect(t, p, gc.Options{Policy: quick})
		},
	}
	for name, act := range others {
		t.Run(name, func(t *testing.T) {
			w, store := busy(t, 6, 14, 100, 30)
			for i := 0; ; i++ {
				w, store := w.fork(), fork(t, store)
				other := open(t, w, store)
				h := &hooked{switched: switched{plain: store, armed: store}, at: i,
					do: func() { act(t, other, mrand.New(mrand.NewPCG(uint64(i), 4))) }}
				p := open(t, w, h)
				h.set(true)
				o := gc.Options{Policy: quick, Now: w.clock, Full: name == "commits and a collection"}
				if _, err := gc.Collect(t.Context(), p.Vault, o); err != nil {
					t.Fatalf("call %d: %v", i, err)
				}
				h.set(false)
				for _, who := range []*process{p, other, open(t, w, store)} {
					if _, err := who.check(t.Context()); err != nil {
						t.Fatalf("call %d: %v", i, err)
					}
				}
				if h.calls <= i {
					break
				}
				p.Journal.Close()
				other.Journal.Close()
			}
		})
	}
}

// Where somebody comes to count on what is being moved, the pack stays, and its copies in the new
// pack do not live on beside it.
func TestWhatWasMovedInVainIsFreed(t *testing.T) {
	w, store := busy(t, 7, 14, 256, 0)
	was, err := open(t, w, store).stored(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; ; i++ {
		w, store := w.fork(), fork(t, store)
		other := open(t, w, store)
		act := func() {
			rng := mrand.New(mrand.NewPCG(uint64(i), 6))
			if _, err := other.look(t.Context()); err != nil {
				t.Error(err)
			}
			base := w.any(rng)
			if _, err := other.put(t.Context(), rng, state.ID{}, w.change(rng, base, 14), 256, 0); err != nil {
				t.Error(err)
			}
		}
		h := &hooked{switched: switched{plain: store, armed: store}, at: i, do: act}
		p := open(t, w, h)
		h.set(true)
		collect(t, p, gc.Options{Policy: quick})
		h.set(false)
		if _, err := p.check(t.Context()); err != nil {
			t.Fatalf("call %d: %v", i, err)
		}
		stored, err := p.stored(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for id, n := range stored {
			if n > max(was[id], 1) {
				t.Errorf("call %d: %d copies of row %s live", i, n, id)
			}
		}
		p.Journal.Close()
		other.Journal.Close()
		if h.calls <= i {
			return
		}
	}
}

// Collectors, writers and purgers of several processes at once: what lives reads back.
func TestEverythingAtOnce(t *testing.T) {
	w, store := newWorld(t), mem.New()
	initVault(t, store)
	var wg sync.WaitGroup
	for n := range uint64(4) {
		p := open(t, w, store)
		wg.Go(func() {
			rng := mrand.New(mrand.NewPCG(n, 8))
			for i := range 40 {
				if n < 2 {
					o := gc.Options{Policy: quick, Now: w.clock, Full: i%5 == 4}
					if _, err := gc.Collect(t.Context(), p.Vault, o); err != nil {
						t.Errorf("collector %d: %v", n, err)
					}
				} else if err := p.act(t.Context(), rng, 14, 200, 30); err != nil && !errors.Is(err, state.ErrNoPoint) {
					t.Errorf("writer %d: %v", n, err)
				}
			}
		})
	}
	wg.Wait()
	p := open(t, w, store)
	if _, err := p.check(t.Context()); err != nil {
		t.Fatal(err)
	}
	collect(t, p, gc.Options{Policy: quick, Full: true})
	p.exactly(t, 0)
}

// What is freed of a pack while its rows are being moved is freed where they come to.
func TestWhatIsFreedMeanwhileStaysFreed(t *testing.T) {
	w, store := busy(t, 10, fresh, 0, 0)
	for i := 0; ; i++ {
		w, store := w.fork(), fork(t, store)
		other := open(t, w, store)
		h := &hooked{switched: switched{plain: store, armed: store}, at: i, do: func() {
			if err := other.purge(t.Context(), w.ids()[:3]...); err != nil {
				t.Error(err)
			}
			collect(t, other, gc.Options{}) // nothing is old enough to be moved
		}}
		p := open(t, w, h)
		h.set(true)
		collect(t, p, gc.Options{Policy: quick})
		h.set(false)
		p.exactly(t, uint64(i))
		p.Journal.Close()
		other.Journal.Close()
		if h.calls <= i {
			return
		}
	}
}
