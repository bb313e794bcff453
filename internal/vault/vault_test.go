package vault_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/holdfast-vm/holdfast/internal/blob"
	"github.com/holdfast-vm/holdfast/internal/blob/mem"
	"github.com/holdfast-vm/holdfast/internal/extent"
	"github.com/holdfast-vm/holdfast/internal/point"
	"github.com/holdfast-vm/holdfast/internal/vault"
	"github.com/holdfast-vm/holdfast/internal/vault/keys"
)

// Tests use small chunks, and age keys: argon2id is slow on purpose.
const testChunk = 16 << 10

// newVault makes a vault in s and returns the key that opens it.
func newVault(t testing.TB, s blob.Store) vault.Key {
	t.Helper()
	identity, _ := testKey(t)
	_, err := vault.Init(context.Background(), s,
		vault.InitOptions{ChunkSize: testChunk,
			Keys: []vault.NamedKey{{Name: "test", Key: vault.Key{Identity: identity}}}})
	if err != nil {
		t.Fatal(err)
	}
	return vault.Key{Identity: identity}
}

func openVault(t testing.TB, s blob.Store, key vault.Key) *vault.Vault {
	t.Helper()
	v, err := vault.Open(context.Background(), s, key, vault.Options{Workers: 2})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// memVault makes a vault in memory and opens it.
func memVault(t testing.TB) (*mem.Store, vault.Key, *vault.Vault) {
	t.Helper()
	store := mem.New()
	key := newVault(t, store)
	return store, key, openVault(t, store, key)
}

func deletePoint(t *testing.T, v *vault.Vault, id point.ID) {
	t.Helper()
	if err := v.PurgePoint(context.Background(), id); err != nil {
		t.Fatal(err)
	}
}

// disk is a model of a disk: what it holds, and the root that the vault gave it.
type disk struct {
	data []byte
	root string
	used int64
	of   point.ID // the point that has it
}

// scribble changes the disk at random and returns the batch that says so.
func (d *disk) scribble(rng *rand.Rand) (data, zero extent.Set) {
	size := int64(len(d.data))
	chunks := (size + testChunk - 1) / testChunk
	var dl, zl []extent.Extent
	for range rng.IntN(6) + 1 {
		at := rng.Int64N(chunks)
		n := rng.Int64N(min(8, chunks-at)) + 1
		e := extent.Extent{Off: at * testChunk, Len: min(n*testChunk, size-at*testChunk)}
		p := d.data[e.Off:e.End()]
		switch rng.IntN(4) {
		case 0:
			clear(p)
			zl = append(zl, e)
		case 1: // compressible, and often the same as elsewhere
			for i := range p {
				p[i] = byte(i/testChunk + rng.IntN(2))
			}
			dl = append(dl, e)
		default:
			for i := range p {
				p[i] = byte(rng.Uint32())
			}
			dl = append(dl, e)
		}
	}
	data = extent.Of(dl...)
	return data, extent.Of(zl...).Subtract(data)
}

func put(ctx context.Context, s *vault.Session, d *disk, data, zero extent.Set) error {
	out, err := s.PutDisk(ctx, vault.DiskInput{Size: int64(len(d.data)), Base: d.root, Of: d.of, BaseUsed: d.used,
		Data: data, Zero: zero, Source: bytes.NewReader(d.data)})
	if err != nil {
		return err
	}
	d.root, d.used = out.Root, out.Used
	return nil
}

func newPoint(vm string, disks ...*disk) *point.RecoveryPoint {
	p := &point.RecoveryPoint{ID: point.NewID(), VM: vm, Time: time.Now().UTC(), Consistency: point.Crash,
		ConsistencyReason: "test", Rung: point.Offline}
	for i, d := range disks {
		d.of = p.ID
		p.Disks = append(p.Disks, point.Disk{Name: fmt.Sprintf("vd%c", 'a'+i), Size: int64(len(d.data)), Used: d.used,
			Root: d.root})
	}
	return p
}

// writerAt is a disk in memory to restore to.
type writerAt []byte

func (w writerAt) WriteAt(p []byte, off int64) (int, error) { return copy(w[off:], p), nil }

func restore(ctx context.Context, v *vault.Vault, d point.Disk) ([]byte, error) {
	stored, err := v.OpenDisk(d.Root, d.Size)
	if err != nil {
		return nil, err
	}
	got := make(writerAt, d.Size)
	err = stored.Restore(ctx, got, nil)
	return got, err
}

// Every point of a machine reads back exactly, whole or at random offsets, whatever came before and
// after it; and its used size is what is not zero, in chunks.
func TestPointsReadBack(t *testing.T) {
	ctx := context.Background()
	for seed := range uint64(8) {
		rng := rand.New(rand.NewPCG(seed, 1))
		store, key, v := memVault(t)
		d := &disk{data: make([]byte, rng.IntN(150*testChunk)+1)}
		want := map[point.ID][]byte{}
		for range 5 {
			s, err := v.Begin(ctx, "")
			if err != nil {
				t.Fatal(err)
			}
			for range rng.IntN(3) + 1 { // several batches, as a sliced push hands them over
				data, zero := d.scribble(rng)
				if err := put(ctx, s, d, data, zero); err != nil {
					t.Fatal(err)
				}
			}
			p := newPoint("vm", d)
			if err := s.Commit(ctx, p); err != nil {
				t.Fatal(err)
			}
			want[p.ID] = bytes.Clone(d.data)
		}
		again := openVault(t, store, key)
		points, err := again.Points(ctx)
		if err != nil || len(points) != len(want) {
			t.Fatalf("seed %d: %d points, %v", seed, len(points), err)
		}
		for _, p := range points {
			requirePoint(t, again, p, want[p.ID], rng)
		}
	}
}

func requirePoint(t *testing.T, v *vault.Vault, p *point.RecoveryPoint, want []byte, rng *rand.Rand) {
	t.Helper()
	ctx := context.Background()
	got, err := restore(ctx, v, p.Disks[0])
	if err != nil || !bytes.Equal(got, want) {
		t.Fatalf("point %s differs: %v", p.ID, err)
	}
	d, err := v.OpenDisk(p.Disks[0].Root, p.Disks[0].Size)
	if err != nil {
		t.Fatal(err)
	}
	off := rng.IntN(len(want))
	part := make([]byte, rng.IntN(len(want)-off)+1)
	if _, err := d.ReadAt(part, int64(off)); err != nil || !bytes.Equal(part, want[off:off+len(part)]) {
		t.Fatalf("read at %d: %v", off, err)
	}
	data, err := d.Extents(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if data.Bytes() != p.Disks[0].Used {
		t.Fatalf("used %d, extents have %d", p.Disks[0].Used, data.Bytes())
	}
	for at := 0; at < len(want); at += testChunk {
		c := want[at:min(at+testChunk, len(want))]
		hole := len(data.Clip(extent.Extent{Off: int64(at), Len: 1})) == 0
		if hole != (len(bytes.Trim(c, "\x00")) == 0) {
			t.Fatalf("chunk at %d: hole is %v", at, hole)
		}
	}
	if bad, err := d.Verify(ctx, nil); err != nil || len(bad) > 0 {
		t.Fatalf("verify: %v %v", bad, err)
	}
}

// A second copy of what is stored adds next to nothing; a changed chunk adds a chunk and its path.
func TestOnlyNewBytesAreStored(t *testing.T) {
	ctx := context.Background()
	_, _, v := memVault(t)
	rng := rand.New(rand.NewPCG(1, 2))
	a := &disk{data: make([]byte, 500*testChunk)}
	for i := range a.data {
		a.data[i] = byte(rng.Uint32())
	}
	all := extent.Of(extent.Extent{Len: int64(len(a.data))})
	added := func(d *disk) int64 {
		s, err := v.Begin(ctx, "")
		if err != nil {
			t.Fatal(err)
		}
		out, err := s.PutDisk(ctx, vault.DiskInput{Size: int64(len(d.data)), Data: all,
			Source: bytes.NewReader(d.data)})
		if err != nil {
			t.Fatal(err)
		}
		d.root = out.Root
		if err := s.Commit(ctx, newPoint("vm", d)); err != nil {
			t.Fatal(err)
		}
		return out.Added
	}
	if n := added(a); n < int64(len(a.data)) {
		t.Fatalf("random bytes shrank to %d", n)
	}
	clone := &disk{data: bytes.Clone(a.data)}
	if n := added(clone); n != 0 || clone.root != a.root {
		t.Fatalf("clone added %d bytes", n)
	}
	clone.data[77*testChunk+5]++
	if n := added(clone); n > testChunk+3*4096 {
		t.Fatalf("one changed byte added %d bytes", n)
	}
}

func TestOpenSaysWhatIsWrong(t *testing.T) {
	ctx := context.Background()
	store := mem.New()
	key := newVault(t, store)
	other, _ := testKey(t)
	open := func(s blob.Store, k vault.Key) error { _, err := vault.Open(ctx, s, k, vault.Options{}); return err }
	if err := open(store, key); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		err  error
		want error
	}{
		{"another identity", open(store, vault.Key{Identity: other}), vault.ErrWrongKey},
		{"a passphrase", open(store, vault.Key{Passphrase: []byte("no")}), vault.ErrWrongKey},
		{"an empty store", open(mem.New(), key), vault.ErrNotVault},
		{"init twice", func() error {
			_, err := vault.Init(ctx, store, vault.InitOptions{Keys: []vault.NamedKey{{Name: "x", Key: key}}})
			return err
		}(), vault.ErrExists},
	} {
		if !errors.Is(tt.err, tt.want) {
			t.Errorf("%s: %v", tt.name, tt.err)
		}
	}
	store.Corrupt("vault.json", func(b []byte) []byte {
		return bytes.Replace(b, []byte("vault-2"), []byte("vault-9"), 1)
	})
	if err := open(store, key); !errors.Is(err, vault.ErrNewer) {
		t.Errorf("newer version: %v", err)
	}
	store.Corrupt("vault.json", func(b []byte) []byte {
		b = bytes.Replace(b, []byte("vault-9"), []byte("vault-2"), 1)
		return bytes.Replace(b, []byte("16384"), []byte("32768"), 1)
	})
	if err := open(store, key); !errors.Is(err, vault.ErrCorrupt) {
		t.Errorf("changed chunk size: %v", err)
	}
}

// The last key stays; any other can be added and removed, and opens the vault exactly while it is
// there.
func TestKeysComeAndGo(t *testing.T) {
	ctx := context.Background()
	store := mem.New()
	first := newVault(t, store)
	v := openVault(t, store, first)
	identity, recipient := testKey(t)
	if err := v.AddKey(ctx, vault.NamedKey{Name: "second", Key: vault.Key{Recipient: recipient}}); err != nil {
		t.Fatal(err)
	}
	openVault(t, store, vault.Key{Identity: identity})
	if err := v.RemoveKey(ctx, "test"); err != nil {
		t.Fatal(err)
	}
	if _, err := vault.Open(ctx, store, first, vault.Options{}); !errors.Is(err, vault.ErrWrongKey) {
		t.Fatalf("removed key: %v", err)
	}
	if err := v.RemoveKey(ctx, "second"); !errors.Is(err, vault.ErrLastKey) {
		t.Fatalf("last key: %v", err)
	}
	openVault(t, store, vault.Key{Identity: identity})
}

func TestPointReferences(t *testing.T) {
	ctx := context.Background()
	_, _, v := memVault(t)
	d := &disk{data: make([]byte, testChunk)}
	var last *point.RecoveryPoint
	for i, id := range []point.ID{"aa000000000000000000000000000000", "ab000000000000000000000000000000"} {
		s, err := v.Begin(ctx, "")
		if err != nil {
			t.Fatal(err)
		}
		last = newPoint("my vm", d)
		last.ID, last.Time = id, time.Unix(int64(i), 0).UTC()
		if err := s.Commit(ctx, last); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		ref  string
		want point.ID
		err  error
	}{
		{"ab", last.ID, nil}, {"my vm@latest", last.ID, nil}, {string(last.ID), last.ID, nil},
		{"a", "", vault.ErrAmbiguous}, {"c", "", vault.ErrNoPoint}, {"vm@latest", "", vault.ErrNoPoint},
		{"", "", vault.ErrNoPoint}, {"../x", "", vault.ErrNoPoint},
	} {
		p, err := v.Point(ctx, tt.ref)
		if !errors.Is(err, tt.err) || (err == nil && p.ID != tt.want) {
			t.Errorf("%q: %v %v", tt.ref, p, err)
		}
	}
}

// A point that was read is the reader's: what is done to it shows nowhere else, and one that was
// deleted is gone.
func TestPointsBelongToTheirReaders(t *testing.T) {
	ctx := context.Background()
	_, _, v := memVault(t)
	d := randomDisk(1, 1)
	want := backUpWhole(t, v, d)
	for range 2 {
		points, err := v.Points(ctx)
		if err != nil || len(points) != 1 {
			t.Fatal(len(points), err)
		}
		one, err := v.Point(ctx, "vm@latest")
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range append(points, one) {
			if p.VM != want.VM || p.Tags != nil || len(p.Disks) != 1 || p.Disks[0].Name != want.Disks[0].Name {
				t.Fatalf("it reads as %+v, want %+v", p, want)
			}
			p.VM, p.Tags, p.Disks[0].Name = "x", map[string]string{"a": "b"}, "x"
		}
	}
	deletePoint(t, v, want.ID)
	if points, err := v.Points(ctx); err != nil || len(points) > 0 {
		t.Errorf("%v are left: %v", points, err)
	}
	if p, err := v.Point(ctx, "vm@latest"); !errors.Is(err, vault.ErrNoPoint) {
		t.Errorf("%v is left: %v", p, err)
	}
}

// Objects that nobody of the vault's put there stand in nobody's way.
func TestStrayObjectsAreInNobodysWay(t *testing.T) {
	ctx := context.Background()
	store, key, v := memVault(t)
	p := backUpWhole(t, v, randomDisk(1, 4))
	for _, name := range []string{"pack/.nfs0001", "points/abc", "log/.nfs1", "log/0/0/x", "index/root/.nfs2",
		"index/x",
		"keys/.nfs3", "notes/.nfs4", "checkpoint/.nfs5", "state/.nfs6", "ledger/.nfs7", "part/x"} {
		if err := blob.Put(ctx, store, name, []byte("stray")); err != nil {
			t.Fatal(err)
		}
	}
	again := openVault(t, store, key)
	if points, err := again.Points(ctx); err != nil || len(points) != 1 || points[0].ID != p.ID {
		t.Errorf("%v, %v", points, err)
	}
	backUpWhole(t, again, randomDisk(2, 4))
	collect(t, again)
	if _, err := again.NotesByPoint(ctx, vault.NoteDrill); err != nil {
		t.Error(err)
	}
}

func testKey(t testing.TB) (identity, recipient string) {
	t.Helper()
	identity, recipient, err := keys.NewIdentity()
	if err != nil {
		t.Fatal(err)
	}
	return identity, recipient
}
