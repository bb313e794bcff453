package vault_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/blob"
	"github.com/holdfast-vm/holdfast/internal/blob/fault"
	"github.com/holdfast-vm/holdfast/internal/blob/mem"
	"github.com/holdfast-vm/holdfast/internal/extent"
	"github.com/holdfast-vm/holdfast/internal/point"
	"github.com/holdfast-vm/holdfast/internal/vault"
	"github.com/holdfast-vm/holdfast/internal/vault/keys"
)

// stopped stops whoever is about to make a call of one kind, until it may go on.
type stopped struct {
	blob.Store
	what   string // "put", "delete" or "absent" of names that begin with prefix
	prefix string
	once   sync.Once
	at     chan struct{} // closed when somebody stands there
	go_on  chan struct{}
}

func stopAt(s blob.Store, what, prefix string) *stopped {
	return &stopped{Store: s, what: what, prefix: prefix, at: make(chan struct{}), go_on: make(chan struct{})}
}

func (s *stopped) stop(what, name string) {
	if what == s.what && strings.HasPrefix(name, s.prefix) {
		s.once.Do(func() { close(s.at); <-s.go_on })
	}
}

func (s *stopped) Create(ctx context.Context, name string) (blob.Writer, error) {
	s.stop("put", name)
	return s.Store.Create(ctx, name)
}

func (s *stopped) Delete(ctx context.Context, name string) error {
	s.stop("delete", name)
	return s.Store.Delete(ctx, name)
}

func (s *stopped) Absent(ctx context.Context, name string) (bool, error) {
	s.stop("absent", name)
	return s.Store.Absent(ctx, name)
}

// A session that stands still at any step of its commit, for as long as it takes to purge and
// collect what it counts on, is told that it is lost, or has made a point that reads back. No clock
// has a say.
func TestASleepingSessionLosesNothingThatWasAcknowledged(t *testing.T) {
	ctx := context.Background()
	for _, step := range [][2]string{{"put", "pack/"}, {"put", "log/"}, {"absent", "next/"}} {
		plain := mem.New()
		key := newVault(t, plain)
		d := randomDisk(4, 20)
		others := openVault(t, plain, key)
		old := backUpWhole(t, others, d)
		st := stopAt(plain, step[0], step[1])
		v := openVault(t, st, key)
		s := begin(t, v)
		again := &disk{data: append(bytes.Clone(d.data), randomDisk(5, 3).data...)}
		if err := put(ctx, s, again, extent.Of(extent.Extent{Len: int64(len(again.data))}), nil); err != nil {
			t.Fatal(err)
		}
		p := newPoint("vm", again)
		done := make(chan error)
		go func() { done <- s.Commit(ctx, p) }()
		<-st.at
		deletePoint(t, others, old.ID)
		for range 3 {
			collect(t, others)
		}
		close(st.go_on)
		switch err := <-done; {
		case err == nil:
			requireContent(t, openVault(t, plain, key), p, again.data)
		case !errors.Is(err, vault.ErrLost):
			t.Errorf("stopped at %v: %v", step, err)
		}
	}
}

// Whatever call of a commit fails, also the one that tells whether it stands, what is acknowledged
// reads back although others collect meanwhile.
func TestAnAnswerThatIsLostAcknowledgesNothing(t *testing.T) {
	if underRace {
		t.Skip("it counts, or compares, and is run without the race detector")
	}
	ctx := context.Background()
	boom := errors.New("503 slow down")
	for _, lose := range []bool{false, true} {
		for i := 0; ; i++ {
			inner := mem.New()
			key := newVault(t, inner)
			d := randomDisk(4, 6)
			others := openVault(t, inner, key)
			old := backUpWhole(t, others, d)
			f := fault.New(inner)
			v := openVault(t, f, key)
			s := begin(t, v)
			again := &disk{data: bytes.Clone(d.data)}
			if err := put(ctx, s, again, extent.Of(extent.Extent{Len: int64(len(d.data))}), nil); err != nil {
				t.Fatal(err)
			}
			deletePoint(t, others, old.ID)
			collect(t, others)
			before := f.Calls()
			if lose {
				f.LoseReply(before+i, boom)
			} else {
				f.FailCall(before+i, boom)
			}
			p := newPoint("vm", again)
			if err := s.Commit(ctx, p); err == nil {
				requireContent(t, openVault(t, inner, key), p, d.data)
			}
			if f.Calls() <= before+i {
				break
			}
		}
	}
}

// What one of a process takes in, by however old a listing, keeps another from nothing: a session
// beside a dry run of a collection counts on no pack that is gone.
func TestSessionsShareWhatIsKnown(t *testing.T) {
	ctx := context.Background()
	plain := mem.New()
	key := newVault(t, plain)
	d := randomDisk(4, 20)
	others := openVault(t, plain, key)
	old := backUpWhole(t, others, d)
	shared := openVault(t, plain, key)
	if _, err := shared.CollectGarbage(ctx, vault.GCOptions{DryRun: true}); err != nil {
		t.Fatal(err)
	}
	deletePoint(t, others, old.ID)
	var wg sync.WaitGroup
	wg.Go(func() { collect(t, others) })
	wg.Go(func() {
		if _, err := shared.CollectGarbage(ctx, vault.GCOptions{DryRun: true}); err != nil {
			t.Error(err)
		}
	})
	wg.Wait()
	s := begin(t, shared)
	again := &disk{data: bytes.Clone(d.data)}
	if err := put(ctx, s, again, extent.Of(extent.Extent{Len: int64(len(d.data))}), nil); err != nil {
		t.Fatal(err)
	}
	p := newPoint("vm", again)
	if err := s.Commit(ctx, p); err == nil {
		requireContent(t, openVault(t, plain, key), p, d.data)
	} else if !errors.Is(err, vault.ErrLost) {
		t.Fatal(err)
	}
}

// A point whose hold was acknowledged is there, at whatever call its deleter dies or stands still.
func TestAnAcknowledgedHoldKeepsThePoint(t *testing.T) {
	ctx := context.Background()
	boom := errors.New("the power went")
	for i := 0; ; i++ {
		inner := mem.New()
		key := newVault(t, inner)
		d := randomDisk(9, 2)
		v := openVault(t, inner, key)
		p := backUpWhole(t, v, d)
		dying, cancel := context.WithCancel(ctx)
		f := &mortal{Store: inner, die: cancel, err: boom}
		deleter := openVault(t, f, key)
		f.lives.Store(int64(i) + 1)
		failed := deleter.PurgePoint(dying, p.ID)
		cancel()
		held := v.Hold(ctx, p.ID, "web in /a")
		again := openVault(t, inner, key)
		collect(t, again)
		if held == nil {
			requireContent(t, again, p, d.data)
		} else if !errors.Is(held, vault.ErrNoPoint) {
			t.Fatalf("call %d: %v", i, held)
		}
		if failed == nil {
			break
		}
	}
	plain := mem.New()
	key := newVault(t, plain)
	d := randomDisk(9, 2)
	v := openVault(t, plain, key)
	p := backUpWhole(t, v, d)
	st := stopAt(plain, "put", "log/")
	deleter := openVault(t, st, key)
	done := make(chan error)
	go func() { done <- deleter.PurgePoint(ctx, p.ID) }()
	<-st.at
	if err := v.Hold(ctx, p.ID, "web in /a"); err != nil {
		t.Fatal(err)
	}
	close(st.go_on)
	if err := <-done; !errors.Is(err, vault.ErrHeld) {
		t.Errorf("purging what was held meanwhile: %v", err)
	}
	collect(t, v)
	requireContent(t, openVault(t, plain, key), p, d.data)
}

// mortal is the store as somebody sees it who dies after some calls.
type mortal struct {
	blob.Store
	lives atomic.Int64 // calls that are left; 0 is for ever
	die   func()       // called when they are over
	err   error
}

func (m *mortal) call() error {
	if m.lives.Load() > 0 && m.lives.Add(-1) == 0 {
		m.lives.Store(-1)
	}
	if m.lives.Load() < 0 {
		m.die()
		return m.err
	}
	return nil
}

func (m *mortal) Create(ctx context.Context, name string) (blob.Writer, error) {
	if err := m.call(); err != nil {
		return nil, err
	}
	return m.Store.Create(ctx, name)
}

func (m *mortal) ReadAt(ctx context.Context, name string, p []byte, off int64) (int, error) {
	if err := m.call(); err != nil {
		return 0, err
	}
	return m.Store.ReadAt(ctx, name, p, off)
}

func (m *mortal) Absent(ctx context.Context, name string) (bool, error) {
	if err := m.call(); err != nil {
		return false, err
	}
	return m.Store.Absent(ctx, name)
}

func (m *mortal) Delete(ctx context.Context, name string) error {
	if err := m.call(); err != nil {
		return err
	}
	return m.Store.Delete(ctx, name)
}

// Another vault in the place of the one that a host remembers is refused before a key is used on
// it, and so is one that was rolled back.
func TestAHostKnowsItsVault(t *testing.T) {
	ctx := context.Background()
	store := mem.New()
	key := newVault(t, store)
	v := openVault(t, store, key)
	first, err := v.Known(ctx)
	if err != nil {
		t.Fatal(err)
	}
	earlier := clone(t, store)
	backUpWhole(t, v, randomDisk(1, 2))
	known, err := v.Known(ctx)
	if err != nil {
		t.Fatal(err)
	}
	open := func(s blob.Store, k vault.Known) error {
		v, err := vault.Open(ctx, s, key, vault.Options{Known: &k})
		if err == nil {
			v.Close()
		}
		return err
	}
	for _, k := range []vault.Known{first, known, {}, {ID: known.ID, Print: known.Print}} {
		if err := open(store, k); err != nil {
			t.Errorf("the vault that is known: %v", err)
		}
	}
	if err := open(earlier, known); !errors.Is(err, vault.ErrRolledBack) {
		t.Errorf("a vault that was rolled back: %v", err)
	}
	slots, err := v.Keys(ctx)
	if err != nil {
		t.Fatal(err)
	}
	evil := mem.New()
	_, theirs, err := keys.NewIdentity()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := vault.Init(ctx, evil, vault.InitOptions{ChunkSize: testChunk, Keys: []vault.NamedKey{
		{Name: "test", Key: vault.Key{Recipient: slots[0].Recipient}},
		{Name: "zz", Key: vault.Key{Recipient: theirs}}}}); err != nil {
		t.Fatal(err)
	}
	if err := open(evil, known); !errors.Is(err, vault.ErrChanged) {
		t.Errorf("another vault whose data key somebody else has chosen: %v", err)
	}
	if err := open(evil, vault.Known{Print: known.Print}); !errors.Is(err, vault.ErrChanged) {
		t.Errorf("another data key: %v", err)
	}
}

func clone(t *testing.T, s blob.Store) *mem.Store {
	t.Helper()
	out := mem.New()
	for info, err := range s.List(t.Context(), "", "") {
		if err != nil {
			t.Fatal(err)
		}
		raw, err := blob.Get(t.Context(), s, info.Name)
		if err == nil {
			err = blob.Put(t.Context(), out, info.Name, raw)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return out
}

// A manifest that is damaged keeps nobody from the other points: from lists, backups, deleting and
// collecting.
func TestADamagedManifestStandsInNobodysWay(t *testing.T) {
	ctx := context.Background()
	store := mem.New()
	key := newVault(t, store)
	v := openVault(t, store, key)
	a, b := randomDisk(1, 3), randomDisk(2, 3)
	pa := backUpWhole(t, v, a)
	var packs []string
	for name := range blob.Names(ctx, store, "pack/", "") {
		packs = append(packs, name)
	}
	pb := backUpWhole(t, v, b)
	for _, name := range packs {
		if err := store.Corrupt(name, func(b []byte) []byte { clear(b[64:]); return b }); err != nil {
			t.Fatal(err)
		}
	}
	again := openVault(t, store, key)
	if all, err := again.Summaries(ctx, nil); err != nil || len(all) != 2 {
		t.Errorf("%d summaries, %v", len(all), err)
	}
	read := 0
	for p, err := range again.EachPoint(ctx, nil) {
		if err == nil && p.ID == pb.ID {
			read++
		}
	}
	if read != 1 {
		t.Errorf("the whole point was read %d times", read)
	}
	requireContent(t, again, pb, b.data)
	c := backUpWhole(t, again, randomDisk(3, 3))
	deletePoint(t, again, c.ID)
	deletePoint(t, again, pa.ID)
	collect(t, again)
	requireContent(t, again, pb, b.data)
}

// tight is a store with free bytes left.
type tight struct {
	*mem.Store
	mu   sync.Mutex
	on   bool
	free int
}

func (s *tight) Create(ctx context.Context, name string) (blob.Writer, error) {
	w, err := s.Store.Create(ctx, name)
	return &tightWriter{Writer: w, s: s}, err
}

func (s *tight) Delete(ctx context.Context, name string) error {
	if i, err := s.Stat(ctx, name); err == nil {
		s.mu.Lock()
		s.free += int(i.Size)
		s.mu.Unlock()
	}
	return s.Store.Delete(ctx, name)
}

type tightWriter struct {
	blob.Writer
	s    *tight
	n    int
	done bool
}

func (w *tightWriter) Write(p []byte) (int, error) {
	w.s.mu.Lock()
	defer w.s.mu.Unlock()
	if w.s.on && w.s.free < len(p) {
		return 0, fmt.Errorf("write: %w", blob.ErrNoSpace)
	}
	w.n += len(p)
	w.s.free -= len(p)
	return w.Writer.Write(p)
}

func (w *tightWriter) Commit(ctx context.Context) error {
	err := w.Writer.Commit(ctx)
	w.done = err == nil
	return err
}

func (w *tightWriter) Abort() {
	if !w.done {
		w.s.mu.Lock()
		w.s.free += w.n
		w.n = 0
		w.s.mu.Unlock()
	}
	w.Writer.Abort()
}

// A store that has no room for another byte is freed by collecting: what that has to write first
// has a reserve.
func TestAFullStoreIsFreed(t *testing.T) {
	for _, free := range []int{0, 8 << 10} {
		st := &tight{Store: mem.New()}
		key := newVault(t, st)
		v := openVault(t, st, key)
		var last *point.RecoveryPoint
		keep := randomDisk(1, 4)
		kept := backUpWhole(t, v, keep)
		for i := range 40 {
			last = backUpWhole(t, v, randomDisk(uint64(10+i), 2))
			deletePoint(t, v, last.ID)
		}
		st.on, st.free = true, free
		freed := int64(0)
		for range 3 {
			r, err := v.CollectGarbage(t.Context(), vault.GCOptions{})
			if err != nil {
				t.Logf("with %d bytes: %v", free, err)
			}
			freed += r.FreedBytes
		}
		if freed < 40*testChunk {
			t.Fatalf("with %d bytes of room %d were freed", free, freed)
		}
		requireContent(t, openVault(t, st, key), kept, keep.data)
		if err := tryBackUp(v, randomDisk(99, 2)); err != nil {
			t.Errorf("a backup afterwards: %v", err)
		}
	}
}

func tryBackUp(v *vault.Vault, d *disk) error {
	ctx := context.Background()
	s, err := v.Begin(ctx, "")
	if err != nil {
		return err
	}
	defer s.Abort()
	if err := put(ctx, s, d, extent.Of(extent.Extent{Len: int64(len(d.data))}), nil); err != nil {
		return err
	}
	return s.Commit(ctx, newPoint("vm", d))
}

// failing fails calls on names that begin with a prefix.
type failing struct {
	*mem.Store
	prefix string
	on     bool
	puts   bool // also creating
}

func (s *failing) err(name string) error {
	if s.on && strings.HasPrefix(name, s.prefix) {
		return errors.New("device or resource busy")
	}
	return nil
}

func (s *failing) Delete(ctx context.Context, name string) error {
	if err := s.err(name); err != nil {
		return err
	}
	return s.Store.Delete(ctx, name)
}

func (s *failing) Create(ctx context.Context, name string) (blob.Writer, error) {
	if err := s.err(name); err != nil && s.puts {
		return nil, err
	}
	return s.Store.Create(ctx, name)
}

func (s *failing) List(ctx context.Context, prefix, after string) iter.Seq2[blob.Info, error] {
	if err := s.err(prefix); err != nil && s.puts {
		return func(yield func(blob.Info, error) bool) { yield(blob.Info{}, err) }
	}
	return s.Store.List(ctx, prefix, after)
}

// Whatever is wrong with the index, no backup fails for it.
func TestTroubleWithTheIndexFailsNoBackup(t *testing.T) {
	for _, puts := range []bool{false, true} {
		st := &failing{Store: mem.New(), prefix: "index/", puts: puts}
		key := newVault(t, st)
		st.on = true
		for i := range 30 {
			v := openVault(t, st, key)
			if err := tryBackUp(v, randomDisk(uint64(i), 2)); err != nil {
				t.Fatalf("backup %d: %v", i, err)
			}
			if err := v.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// What a reader held and could not give back is given back later by the same process.
func TestAHoldThatCouldNotBeGivenBackIsGivenBackLater(t *testing.T) {
	st := &failing{Store: mem.New(), prefix: "log/", puts: true}
	key := newVault(t, st)
	v := openVault(t, st, key)
	p := backUpWhole(t, v, randomDisk(1, 3))
	r := openReader(t, v)
	if err := r.RequirePoint(t.Context(), p.ID); err != nil {
		t.Fatal(err)
	}
	st.on = true
	if err := r.Close(); err == nil {
		t.Fatal("it was given back to a store that takes nothing")
	}
	st.on = false
	deletePoint(t, v, p.ID)
}

// lying says that an object is huge, and gives zeros for what is not there.
type lying struct {
	*mem.Store
	name string
}

const huge = 1 << 40

func (s *lying) Stat(ctx context.Context, name string) (blob.Info, error) {
	if name == s.name {
		return blob.Info{Name: name, Size: huge}, nil
	}
	return s.Store.Stat(ctx, name)
}

func (s *lying) List(ctx context.Context, prefix, after string) iter.Seq2[blob.Info, error] {
	return func(yield func(blob.Info, error) bool) {
		for i, err := range s.Store.List(ctx, prefix, after) {
			if i.Name == s.name {
				i.Size = huge
			}
			if !yield(i, err) {
				return
			}
		}
	}
}

func (s *lying) ReadAt(ctx context.Context, name string, p []byte, off int64) (int, error) {
	if name != s.name {
		return s.Store.ReadAt(ctx, name, p, off)
	}
	if off >= huge {
		return 0, io.ErrUnexpectedEOF
	}
	if len(p) > 1<<30 {
		return 0, fmt.Errorf("somebody reads %d bytes at once", len(p))
	}
	n, err := s.Store.ReadAt(ctx, name, p, off)
	if errors.Is(err, io.ErrUnexpectedEOF) {
		clear(p[n:])
		return len(p), nil
	}
	return n, err
}

// A store that lies about the size of any object makes nobody die: what is asked works, or says
// what is wrong.
func TestNobodyBelievesSizes(t *testing.T) {
	if underRace {
		t.Skip("it counts, or compares, and is run without the race detector")
	}
	ctx := context.Background()
	plain := mem.New()
	key := newVault(t, plain)
	v := openVault(t, plain, key)
	p := backUpWhole(t, v, randomDisk(1, 8))
	if _, err := v.AddNote(ctx, p.ID, "drill", []byte("x")); err != nil {
		t.Fatal(err)
	}
	if err := v.Enter(ctx, p.ID, "snapshot-deleted", []byte("{}")); err != nil {
		t.Fatal(err)
	}
	var names []string
	for name, err := range blob.Names(ctx, plain, "", "") {
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, name)
	}
	for _, name := range names {
		s := &lying{Store: clone(t, plain), name: name}
		v, err := vault.Open(ctx, s, key, vault.Options{Workers: 1})
		if err != nil {
			continue
		}
		_, _ = v.Points(ctx)
		_, _ = v.Notes(ctx, p.ID, "")
		_, _ = v.Ledger(ctx, "snapshot-deleted")
		_, _ = v.Check(ctx, vault.CheckOptions{ReadData: true})
		_ = tryBackUp(v, randomDisk(2, 2))
		_, _ = v.CollectGarbage(ctx, vault.GCOptions{})
		_ = v.Close()
	}
}

// What a collection moved is known: the same bytes are not stored again.
func TestWhatWasMovedIsNotStoredAgain(t *testing.T) {
	store, key, v := memVault(t)
	a := randomDisk(1, 100)
	pa := backUpWhole(t, v, a)
	part := &disk{data: bytes.Clone(a.data[:20*testChunk])}
	backUpWhole(t, v, part)
	deletePoint(t, v, pa.ID)
	if _, err := v.CollectGarbage(t.Context(), vault.GCOptions{Full: true}); err != nil {
		t.Fatal(err)
	}
	before := storedBytes(t, store)
	if before > 30*testChunk {
		t.Fatalf("nothing was moved: %d bytes", before)
	}
	backUpWhole(t, openVault(t, store, key), &disk{data: bytes.Clone(part.data)})
	if after := storedBytes(t, store); after-before > 2*testChunk {
		t.Fatalf("the same bytes were stored again: %d more", after-before)
	}
}
