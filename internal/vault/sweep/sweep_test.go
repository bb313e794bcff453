package sweep_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/holdfast-vm/holdfast/internal/blob"
	"github.com/holdfast-vm/holdfast/internal/blob/fault"
	"github.com/holdfast-vm/holdfast/internal/blob/mem"
	"github.com/holdfast-vm/holdfast/internal/vault/journal"
	"github.com/holdfast-vm/holdfast/internal/vault/log"
	"github.com/holdfast-vm/holdfast/internal/vault/state"
	"github.com/holdfast-vm/holdfast/internal/vault/sweep"
)

const day = 24 * time.Hour

// notebook is a Memory that outlives runs.
type notebook struct{ b []byte }

func (n *notebook) Load() ([]byte, error) { return n.b, nil }
func (n *notebook) Store(b []byte) error  { n.b = bytes.Clone(b); return nil }

// vault is a log in a store with clocks that tests set.
type vault struct {
	*journal.Journal
	t     *testing.T
	store *mem.Store
	keys  *state.Keys
	now   time.Time
	boot  string
	notes notebook
	gone  map[string]bool // holders
	look  time.Duration
	n     byte
}

func newVault(t *testing.T) *vault {
	t.Helper()
	k, err := state.NewKeys([32]byte{1}, [16]byte{2})
	if err != nil {
		t.Fatal(err)
	}
	v := &vault{t: t, store: mem.New(), keys: k, now: time.UnixMilli(1_800_000_000_000), boot: "first",
		gone: map[string]bool{}}
	if err := log.Init(t.Context(), v.store, k.Log()); err != nil {
		t.Fatal(err)
	}
	v.Journal = v.open(v.store)
	return v
}

func (v *vault) open(s blob.Store) *journal.Journal {
	v.t.Helper()
	j, err := journal.Open(context.Background(), s, v.keys, journal.Options{
		Log:   log.Options{Now: func() time.Time { return v.now }},
		State: state.Options{RememberVolumes: 3, RememberDays: 5},
	})
	if err != nil {
		v.t.Fatal(err)
	}
	v.t.Cleanup(j.Close)
	return j
}

func (v *vault) sweep() *sweep.Sweep {
	return &sweep.Sweep{Policy: sweep.Policy{Look: v.look}, Store: v.store, Keys: v.keys, Journal: v.Journal,
		Memory: &v.notes,
		Gone:   func(b []byte) bool { return v.gone[string(b)] },
		Now:    func() time.Time { return v.now },
		Clock:  func() sweep.Clock { return sweep.Clock{Boot: v.boot, At: v.now.Sub(time.UnixMilli(0))} }}
}

func (v *vault) run() sweep.Report {
	v.t.Helper()
	r, err := v.sweep().Run(v.t.Context(), false)
	if err != nil {
		v.t.Fatal(err)
	}
	return r
}

// add appends what judge says.
func (v *vault) add(op log.Op) {
	v.t.Helper()
	if _, err := v.Append(v.t.Context(), func(context.Context, *state.State) ([]log.Op, error) {
		return []log.Op{op}, nil
	}); err != nil {
		v.t.Fatal(err)
	}
}

// pack stores an object and returns it.
func (v *vault) pack(kind log.ObjectKind) log.Object {
	v.t.Helper()
	v.n++
	o := log.Object{ID: log.NewObjectID(log.Volume{}, log.Session{v.n}, 1), Kind: kind, Size: 1}
	if err := blob.Put(v.t.Context(), v.store, o.Name(), []byte{v.n}); err != nil {
		v.t.Fatal(err)
	}
	return o
}

func (v *vault) commit(packs ...log.Object) {
	v.t.Helper()
	v.n++
	c := state.Commit{Session: log.Session{v.n}, Added: packs,
		Points: []state.Point{{ID: state.ID{v.n, byte(len(packs))},
			Manifest: []byte("manifest")}}}
	v.add(c.Op())
}

func (v *vault) condemned(id log.ObjectID) (yes bool) {
	v.t.Helper()
	if err := v.View(v.t.Context(), func(s *state.State) (err error) {
		yes, err = s.IsCondemned(v.t.Context(), id)
		return err
	}); err != nil {
		v.t.Fatal(err)
	}
	return yes
}

// An object in no entry is condemned once it was seen for a day on a clock that went on, by
// whatever slices the names are listed; one that is committed meanwhile, or vanishes, is not.
func TestOrphans(t *testing.T) {
	for _, names := range []int{1, 2, 1000} {
		v := newVault(t)
		good, late, gone, orphan, part := v.pack(log.Pack), v.pack(log.Pack), v.pack(log.Pack), v.pack(log.Pack),
			v.pack(log.Part)
		v.commit(good)
		s := v.sweep()
		s.Policy.Names = names
		run := func(after time.Duration) sweep.Report {
			t.Helper()
			v.now = v.now.Add(after)
			r, err := s.Run(t.Context(), false)
			if err != nil {
				t.Fatal(err)
			}
			return r
		}
		suspects := 0
		for range 8 {
			suspects = run(time.Minute).Suspects
		}
		if suspects != 4 {
			t.Fatalf("%d at a time: %d objects are suspected, want 4", names, suspects)
		}
		if r := run(23 * time.Hour); r.Orphans != 0 {
			t.Errorf("after 23 hours %d objects are condemned", r.Orphans)
		}
		v.boot = "second"
		if r := run(2 * time.Hour); r.Orphans != 0 {
			t.Errorf("after the host was booted anew %d objects are condemned", r.Orphans)
		}
		v.commit(late)
		if err := v.store.Delete(t.Context(), gone.Name()); err != nil {
			t.Fatal(err)
		}
		if dry, err := s.Run(t.Context(), true); err != nil || dry.Orphans != 0 {
			t.Errorf("a dry run would condemn %d: %v", dry.Orphans, err)
		}
		v.now = v.now.Add(25 * time.Hour)
		if dry, err := s.Run(t.Context(), true); err != nil || dry.Orphans != 2 || v.condemned(orphan.ID) {
			t.Errorf("a dry run would condemn %d, want 2: %v", dry.Orphans, err)
		}
		if r := run(0); r.Orphans != 2 {
			t.Errorf("after a day %d objects are condemned, want 2", r.Orphans)
		}
		for _, o := range []log.Object{good, late, gone} {
			if v.condemned(o.ID) {
				t.Errorf("%s is condemned", o.Name())
			}
		}
		var dying []string
		if err := v.View(t.Context(), func(st *state.State) error {
			return st.EachCondemned(t.Context(), func(o log.Object, _ bool) bool {
				dying = append(dying, o.Name())
				return true
			})
		}); err != nil || fmt.Sprint(dying) != fmt.Sprint([]string{orphan.Name(), part.Name()}) {
			t.Errorf("condemned are %v: %v", dying, err)
		}
		if r := run(8 * day); r.Orphans != 0 || r.Suspects != 0 {
			t.Errorf("afterwards %d are condemned and %d suspected", r.Orphans, r.Suspects)
		}
	}
}

func (v *vault) progress(s byte, n uint32, holder string) {
	v.t.Helper()
	v.add((&state.Progress{Session: log.Session{s}, Number: n, Holder: []byte(holder)}).Op())
}

func (v *vault) sessions() (ids []byte) {
	v.t.Helper()
	if err := v.View(v.t.Context(), func(s *state.State) error {
		open, err := s.Sessions(v.t.Context())
		for _, x := range open {
			ids = append(ids, x.ID[0])
		}
		return err
	}); err != nil {
		v.t.Fatal(err)
	}
	return ids
}

// A session is given up once it was silent for a day, with those that it went on from, or at once
// when its process is proved gone.
func TestSilentSessions(t *testing.T) {
	v := newVault(t)
	v.progress(1, 0, "busy")
	v.progress(2, 0, "silent")
	v.progress(3, 0, "dead")
	v.progress(4, 0, "adopted")
	v.add((&state.Adopt{From: state.Adopted{Session: log.Session{4}, Progress: 1}, By: log.Session{5}}).Op())
	v.gone["adopted"] = true // but another went on
	want := func(what string, ids ...byte) {
		t.Helper()
		v.run()
		if got := v.sessions(); !bytes.Equal(got, ids) {
			t.Errorf("%s the sessions %d are open, want %d", what, got, ids)
		}
	}
	want("at first", 1, 2, 3, 4)
	v.gone["dead"] = true
	want("once one is gone", 1, 2, 4)
	v.now = v.now.Add(13 * time.Hour)
	v.progress(1, 1, "busy")
	v.progress(5, 0, "next")
	want("after 13 hours", 1, 2, 4, 5)
	v.now = v.now.Add(13 * time.Hour)
	want("after 26", 1, 4, 5)
	v.boot = "second"
	v.now = v.now.Add(13 * time.Hour)
	want("booted anew after 39", 1, 4, 5)
	v.gone["next"] = true
	want("once who went on is gone too", 1)
	v.now = v.now.Add(25 * time.Hour)
	want("a day after that")
}

// read opens the vault as somebody else does and returns how many points it has, and the oldest
// entry that its history still tells.
func (v *vault) read() (points int, oldest log.Position) {
	v.t.Helper()
	ctx := v.t.Context()
	j := v.open(v.store)
	defer j.Close()
	var head log.Remembered
	if err := j.Log(ctx, func(l *log.Log, s *state.State) error {
		head = l.Head()
		return s.Points(ctx, func(state.Point) bool { points++; return true })
	}); err != nil {
		v.t.Fatal(err)
	}
	if err := log.History(ctx, v.store, v.keys.Log(), head, log.Position{}, func(p log.Past) bool {
		if p.At.Number > 0 {
			oldest = p.At
		}
		return true
	}); err != nil {
		v.t.Fatal(err)
	}
	return points, oldest
}

// Volumes are rolled each day and cut some days later, unless a mirror needs them, and checkpoints
// follow them; the vault stays as it is.
func TestVolumesAreRolledAndCut(t *testing.T) {
	v := newVault(t)
	rng := rand.New(rand.NewPCG(1, 1))
	points := 0
	objects := map[int]int{}
	pinned := false
	for d := range 24 {
		for range 1 + rng.IntN(9) {
			v.commit()
			points++
		}
		switch d {
		case 8:
			v.add(state.Pin(state.ID{7}))
			pinned = true
		case 16:
			v.add(state.Arrived(state.ID{7}))
			pinned = false
		}
		v.now = v.now.Add(day)
		r := v.run()
		if !r.Rolled || len(r.Troubles) > 0 {
			t.Fatalf("on day %d the log was not rolled: %+v", d, r)
		}
		got, oldest := v.read()
		if got != points {
			t.Fatalf("on day %d there are %d points, want %d", d, got, points)
		}
		back := int(v.volume()) - int(oldest.Volume.Number)
		if !pinned && d > 6 && (back < 3 || back > 5) || pinned && d > 12 && oldest.Volume.Number > 9 {
			t.Errorf("on day %d, pinned %v, the history goes back %d volumes to %s", d, pinned, back, oldest)
		}
		if pinned && d > 13 && !r.Waiting {
			t.Errorf("on day %d it is not said that a mirror is waited for: %+v", d, r)
		}
		objects[d] = v.count()
	}
	if objects[23] > objects[7]+2*16+10 {
		t.Errorf("there are %d objects, %d on day 7", objects[23], objects[7])
	}
}

func (v *vault) volume() uint32 {
	v.t.Helper()
	var n uint32
	if err := v.View(v.t.Context(), func(s *state.State) error { n = s.At().Volume.Number; return nil }); err != nil {
		v.t.Fatal(err)
	}
	return n
}

func (v *vault) count() (n int) {
	v.t.Helper()
	for _, err := range v.store.List(v.t.Context(), "", "") {
		if err != nil {
			v.t.Fatal(err)
		}
		n++
	}
	return n
}

// Whichever call of the store fails, or takes effect and says that it did not, the vault is as it
// was, and the next run goes on.
func TestFaults(t *testing.T) {
	for _, lost := range []bool{false, true} {
		for i := 0; ; i++ {
			v := newVault(t)
			v.look = time.Hour
			points := 0
			for range 6 {
				v.commit()
				points++
				v.now = v.now.Add(day)
				v.run()
			}
			v.commit()
			orphan := v.pack(log.Pack)
			v.progress(200, 0, "dead")
			v.now = v.now.Add(2 * time.Hour)
			v.run()
			v.gone["dead"] = true
			v.now = v.now.Add(2 * day)
			f := fault.New(v.store)
			if lost {
				f.LoseReply(i, errors.New("reset"))
			} else {
				f.FailCall(i, errors.New("broken"))
			}
			s := v.sweep()
			s.Store, s.Journal = f, v.open(v.store)
			_, err := s.Run(t.Context(), false)
			calls := f.Calls()
			v.now = v.now.Add(time.Hour)
			r := v.run()
			if got, _ := v.read(); got != points+1 {
				t.Fatalf("call %d: there are %d points, want %d", i, got, points+1)
			}
			if !v.condemned(orphan.ID) || len(v.sessions()) > 0 || len(r.Troubles) > 0 {
				t.Fatalf("call %d: the next run did not go on: %+v", i, r)
			}
			if i > calls {
				if err != nil {
					t.Fatal(err)
				}
				break
			}
		}
	}
}
