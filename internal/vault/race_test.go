package vault_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"iter"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-vm/holdfast/internal/blob"
	"github.com/holdfast-vm/holdfast/internal/blob/mem"
	"github.com/holdfast-vm/holdfast/internal/extent"
	"github.com/holdfast-vm/holdfast/internal/vault"
)

// hooked calls before when an object whose name begins with prefix is about to be stored.
type hooked struct {
	*mem.Store
	prefix string
	before func()
}

func (h *hooked) Create(ctx context.Context, name string) (blob.Writer, error) {
	if strings.HasPrefix(name, h.prefix) {
		h.before()
	}
	return h.Store.Create(ctx, name)
}

// A session that begins while packs are being condemned, and has not seen that they are, keeps them from being deleted, by that garbage collection
// and by the next.
func TestSessionBeginsWhilePacksAreCondemned(t *testing.T) {
	ctx := context.Background()
	store := mem.New()
	key := newVault(t, store)
	d := randomDisk(4, 20)
	p := backUpWhole(t, openVault(t, store, key), d)
	other := openVault(t, store, key)
	deletePoint(t, other, p.ID)
	var s *vault.Session
	again := &disk{data: bytes.Clone(d.data)}
	hook := &hooked{Store: store, prefix: "gc/condemned-", before: func() {
		s = begin(t, other)
		if err := put(ctx, s, again, extent.Of(extent.Extent{Len: int64(len(d.data))}), nil); err != nil {
			t.Fatal(err)
		}
	}}
	collector := openVault(t, hook, key)
	if _, err := collector.CollectGarbage(ctx, vault.GCOptions{}); err != nil {
		t.Fatal(err)
	}
	hook.before = func() {}
	if _, err := collector.CollectGarbage(ctx, vault.GCOptions{}); err != nil {
		t.Fatal(err)
	}
	p2 := newPoint("vm", again)
	if err := s.Commit(ctx, p2); err != nil {
		t.Fatal(err)
	}
	requireContent(t, openVault(t, store, key), p2, d.data)
}

// A vault that was opened long ago reads points that others committed since, and points whose packs were rewritten since.
func TestReadersSeeWhatOthersDid(t *testing.T) {
	ctx := context.Background()
	store := mem.New()
	key := newVault(t, store)
	reader, writer := openVault(t, store, key), openVault(t, store, key)
	d := randomDisk(5, 20)
	first := backUpWhole(t, writer, d)
	requireContent(t, reader, first, d.data)
	half := &disk{data: bytes.Clone(d.data[:5*testChunk])}
	second := backUpWhole(t, writer, half)
	deletePoint(t, writer, first.ID)
	if _, err := writer.CollectGarbage(ctx, vault.GCOptions{}); err != nil { // rewrites what only half of is needed
		t.Fatal(err)
	}
	requireContent(t, reader, second, half.data)
}

// A garbage collection of another host is alive as long as its lease is renewed, however old its lock.
func TestLockLivesWithItsLease(t *testing.T) {
	ctx := context.Background()
	store, _, v := memVault(t)
	old := time.Now().Add(-3 * time.Hour)
	owner := map[string]any{"session": "aaaaaaaaaaaaaaaaaaaaaaaa", "what": "garbage collection", "host": "elsewhere", "began": old, "renewed": old}
	putJSON(t, store, "gc/lock", owner)
	owner["renewed"] = time.Now()
	putJSON(t, store, "leases/aaaaaaaaaaaaaaaaaaaaaaaa-9", owner)
	if _, err := v.CollectGarbage(ctx, vault.GCOptions{}); !errors.Is(err, vault.ErrBusy) {
		t.Fatalf("while its lease is renewed: %v", err)
	}
	if err := store.Delete(ctx, "leases/aaaaaaaaaaaaaaaaaaaaaaaa-9"); err != nil {
		t.Fatal(err)
	}
	if _, err := v.CollectGarbage(ctx, vault.GCOptions{}); err != nil {
		t.Fatalf("without its lease: %v", err)
	}
	for info := range store.List(ctx, "leases/", "") {
		t.Errorf("%s is left", info.Name)
	}
}

func putJSON(t *testing.T, s blob.Store, name string, value any) {
	t.Helper()
	raw, err := json.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	if err := blob.Put(context.Background(), s, name, raw); err != nil {
		t.Fatal(err)
	}
}

// renewing moves a lease to its next name just when it has been listed under the last one.
type renewing struct {
	*mem.Store
	move func()
}

func (r *renewing) List(ctx context.Context, prefix, after string) iter.Seq2[blob.Info, error] {
	return func(yield func(blob.Info, error) bool) {
		for info, err := range r.Store.List(ctx, prefix, after) {
			if r.move != nil && info.Name == "leases/bbbbbbbbbbbbbbbbbbbbbbbb-1" {
				r.move()
				r.move = nil
			}
			if !yield(info, err) {
				return
			}
		}
	}
}

// A session whose lease is renewed while garbage collection lists leases is not overlooked.
func TestRenewedLeaseIsNotOverlooked(t *testing.T) {
	ctx := context.Background()
	store := mem.New()
	key := newVault(t, store)
	p := backUpWhole(t, openVault(t, store, key), randomDisk(6, 20))
	session := map[string]any{"session": "bbbbbbbbbbbbbbbbbbbbbbbb", "what": "session", "host": "elsewhere", "began": time.Now(), "renewed": time.Now()}
	r := &renewing{Store: store}
	v := openVault(t, r, key)
	deletePoint(t, v, p.ID)
	putJSON(t, store, "leases/bbbbbbbbbbbbbbbbbbbbbbbb-1", session)
	if report, err := v.CollectGarbage(ctx, vault.GCOptions{}); err != nil || report.WaitingPacks == 0 {
		t.Fatalf("it does not wait for the session: %+v, %v", report, err)
	}
	r.move = func() {
		putJSON(t, store, "leases/bbbbbbbbbbbbbbbbbbbbbbbb-2", session)
		if err := store.Delete(ctx, "leases/bbbbbbbbbbbbbbbbbbbbbbbb-1"); err != nil {
			t.Error(err)
		}
	}
	if report, err := v.CollectGarbage(ctx, vault.GCOptions{}); err != nil || report.WaitingPacks == 0 || r.move != nil {
		t.Fatalf("it overlooks the renewed lease: %+v, %v", report, err)
	}
}

// A session whose parent was deleted under it, while packs were condemned that only the parent had come to need, makes no point: it
// cannot be read whole.
func TestParentDeletedUnderASession(t *testing.T) {
	ctx := context.Background()
	store, key, v := memVault(t)
	d := randomDisk(6, 20)
	first := backUpWhole(t, v, d)
	older := begin(t, openVault(t, store, key))
	parent := &disk{data: bytes.Clone(d.data)}
	if err := put(ctx, older, parent, extent.Of(extent.Extent{Len: int64(len(d.data))}), nil); err != nil {
		t.Fatal(err)
	}
	deletePoint(t, v, first.ID)
	if r := collect(t, v); r.WaitingPacks == 0 {
		t.Fatalf("nothing was condemned: %+v", r)
	}
	second := newPoint("vm", parent)
	if err := older.Commit(ctx, second); err != nil {
		t.Fatal(err)
	}
	s := begin(t, openVault(t, store, key))
	parent.data[0]++
	if err := put(ctx, s, parent, extent.Of(extent.Extent{Len: testChunk}), nil); err != nil {
		t.Fatal(err)
	}
	deletePoint(t, v, second.ID)
	for _, name := range objectsThatMatter(t, store) { // what a later collection does with packs that were condemned before the session began
		if strings.HasPrefix(name, "data/") {
			if err := store.Delete(ctx, name); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := s.Commit(ctx, newPoint("vm", parent)); !errors.Is(err, vault.ErrNoPoint) {
		t.Fatalf("committed a point that cannot be read: %v", err)
	}
}

// A point that is committed while a garbage collection, or a check, has read the index and not yet the points is no damage.
func TestPointsCommittedMeanwhileAreNoDamage(t *testing.T) {
	ctx := context.Background()
	store := mem.New()
	key := newVault(t, store)
	writer := openVault(t, store, key)
	backUpWhole(t, writer, randomDisk(8, 5))
	seed := uint64(9)
	hook := &listed{Store: store, prefix: "points/", before: func() {
		seed++
		backUpWhole(t, openVault(t, store, key), randomDisk(seed, 5))
	}}
	v := openVault(t, hook, key)
	if _, err := v.CollectGarbage(ctx, vault.GCOptions{}); err != nil {
		t.Fatal(err)
	}
	if r, err := v.Check(ctx, vault.CheckOptions{}); err != nil || len(r.Damage) > 0 {
		t.Fatalf("%+v %v", r.Damage, err)
	}
}

// listed calls before when objects whose name begins with prefix are about to be listed.
type listed struct {
	*mem.Store
	prefix string
	before func()
}

func (l *listed) List(ctx context.Context, prefix, after string) iter.Seq2[blob.Info, error] {
	if prefix == l.prefix {
		l.before()
	}
	return l.Store.List(ctx, prefix, after)
}
