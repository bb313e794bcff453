package session_test

import (
	"bytes"
	"context"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/holdfast-vm/holdfast/internal/blob"
	"github.com/holdfast-vm/holdfast/internal/extent"
	"github.com/holdfast-vm/holdfast/internal/point"
	"github.com/holdfast-vm/holdfast/internal/vault/chunk"
	"github.com/holdfast-vm/holdfast/internal/vault/content"
	"github.com/holdfast-vm/holdfast/internal/vault/index"
	"github.com/holdfast-vm/holdfast/internal/vault/journal"
	"github.com/holdfast-vm/holdfast/internal/vault/log"
	"github.com/holdfast-vm/holdfast/internal/vault/pack"
	"github.com/holdfast-vm/holdfast/internal/vault/row"
	"github.com/holdfast-vm/holdfast/internal/vault/session"
	"github.com/holdfast-vm/holdfast/internal/vault/state"
	"github.com/holdfast-vm/holdfast/internal/vault/tree"
)

// Tests use small chunks.
const testChunk = 16 << 10

var (
	dataKey = [32]byte{1, 2, 3}
	vaultID = [16]byte{4, 5, 6}
)

// packs is what an index asks of a journal.
type packs struct{ j *journal.Journal }

func (p packs) Since(ctx context.Context, count uint64, do func(log.Object, uint64) bool) (upTo uint64, err error) {
	err = p.j.View(ctx, func(st *state.State) error {
		upTo = st.Count()
		return st.AddedSince(ctx, count, do)
	})
	return upTo, err
}

func (p packs) Good(ctx context.Context, ids []log.ObjectID) ([]bool, error) {
	good := make([]bool, len(ids))
	err := p.j.View(ctx, func(st *state.State) (err error) {
		for i, id := range ids {
			if _, good[i], err = st.Good(ctx, id); err != nil {
				return err
			}
		}
		return nil
	})
	return good, err
}

// room is an open room.
type room struct{ *session.Room }

func keysOf(t testing.TB) *state.Keys {
	t.Helper()
	k, err := state.NewKeys(dataKey, vaultID)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// initLog begins the log of an empty store.
func initLog(t testing.TB, s blob.Store) {
	t.Helper()
	if err := log.Init(context.Background(), s, keysOf(t).Log()); err != nil {
		t.Fatal(err)
	}
}

// newRoom begins a vault in a store and opens it.
func newRoom(t testing.TB, s blob.Store) *room {
	t.Helper()
	initLog(t, s)
	r, err := openRoom(t, s)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func openRoom(t testing.TB, s blob.Store) (*room, error) {
	t.Helper()
	ctx := context.Background()
	j, err := journal.Open(ctx, s, keysOf(t), journal.Options{})
	if err != nil {
		return nil, err
	}
	t.Cleanup(j.Close)
	secret := pack.NewSecret(dataKey)
	ix, err := index.Open(ctx, index.Source{Store: s, Secret: secret, Key: dataKey, Vault: vaultID, Packs: packs{j}})
	if err != nil {
		return nil, err
	}
	c := content.New(content.Parts{Index: ix, Packs: pack.NewReader(secret, s), ChunkKey: dataKey, ChunkSize: testChunk,
		Workers: 2})
	r := &room{Room: &session.Room{Store: s, Vault: vaultID, Secret: secret, Journal: j, Index: ix,
		Content: c, ChunkKey: dataKey, NodeKey: [32]byte{9}, ChunkSize: testChunk, Workers: 2, PackSize: 64 << 20,
		Level: chunk.Fast, Holder: []byte("us")}}
	return r, nil
}

func (r *room) begin(t testing.TB, machine string) *session.Session {
	t.Helper()
	s, err := r.Begin(context.Background(), machine)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Abort)
	return s
}

// view shows the state as it is in the store.
func (r *room) view(t testing.TB, f func(context.Context, *state.State) error) {
	t.Helper()
	ctx := context.Background()
	err := r.Journal.Read(ctx)
	if err == nil {
		err = r.Journal.View(ctx, func(st *state.State) error { return f(ctx, st) })
	}
	if err != nil {
		t.Fatal(err)
	}
}

// op appends an operation.
func (r *room) op(t testing.TB, judge func(context.Context, *state.State) (log.Op, error)) {
	t.Helper()
	_, err := r.Journal.Append(context.Background(), func(ctx context.Context, st *state.State) ([]log.Op, error) {
		op, err := judge(ctx, st)
		return []log.Op{op}, err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func (r *room) purge(t testing.TB, id point.ID) {
	t.Helper()
	p := state.Purge{Points: []state.Purged{{ID: stateID(t, id)}}}
	r.op(t, func(ctx context.Context, st *state.State) (log.Op, error) {
		err := p.Check(ctx, st, 0)
		return p.Op(), err
	})
}

func (r *room) condemn(t testing.TB, ids ...log.ObjectID) {
	t.Helper()
	r.op(t, func(ctx context.Context, st *state.State) (log.Op, error) {
		c := state.Condemn{Packs: ids, Mark: st.At(), MarkAt: st.Count(), Last: st.LastCondemn()}
		err := c.Prune(ctx, st)
		return c.Op(), err
	})
	for _, id := range ids {
		o := log.Object{ID: id, Kind: log.Pack}
		if err := r.Store.Delete(context.Background(), o.Name()); err != nil {
			t.Fatal(err)
		}
	}
}

func stateID(t testing.TB, id point.ID) (out state.ID) {
	t.Helper()
	b, err := hex.DecodeString(string(id))
	if err != nil {
		t.Fatal(err)
	}
	return state.ID(b)
}

// rowOf returns what the state keeps of a point.
func (r *room) rowOf(t testing.TB, id point.ID) (p state.Point, out *row.Row) {
	t.Helper()
	r.view(t, func(ctx context.Context, st *state.State) (err error) {
		var ok bool
		if p, ok, err = st.Point(ctx, stateID(t, id)); err == nil && !ok {
			err = fmt.Errorf("point %s: %w", id, state.ErrNoPoint)
		}
		if err == nil {
			out, err = row.Decode(p.Manifest)
		}
		return err
	})
	return p, out
}

// disk is a model of a disk: what it holds, and what the vault said of it.
type disk struct {
	data []byte
	root string
	of   point.ID
	used int64
}

func (d *disk) fork() *disk {
	c := *d
	c.data = bytes.Clone(d.data)
	return &c
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
		case 2: // the same as elsewhere
			for i := range p {
				p[i] = byte(1 + i/testChunk)
			}
			dl = append(dl, e)
		default:
			fill(rng, p)
			dl = append(dl, e)
		}
	}
	data = extent.Of(dl...)
	return data, extent.Of(zl...).Subtract(data)
}

func fill(rng *rand.Rand, p []byte) {
	for i := range p {
		p[i] = byte(rng.Uint32())
	}
}

func whole(d *disk) extent.Set { return wholeOf(int64(len(d.data))) }

func wholeOf(size int64) extent.Set { return extent.Of(extent.Extent{Len: size}) }

func put(ctx context.Context, s *session.Session, d *disk, data, zero extent.Set) error {
	out, err := s.PutDisk(ctx, session.DiskInput{Size: int64(len(d.data)), Base: d.root, Of: d.of, BaseUsed: d.used,
		Data: data, Zero: zero, Source: bytes.NewReader(d.data)})
	if err != nil {
		return err
	}
	d.root, d.used = out.Root, out.Used
	return nil
}

func newPoint(vm string, disks ...*disk) *point.RecoveryPoint {
	p := &point.RecoveryPoint{ID: point.NewID(), VM: vm, Time: time.Unix(1e9, 0).UTC(), Consistency: point.Crash,
		ConsistencyReason: "test", Rung: point.Offline}
	for i, d := range disks {
		p.Disks = append(p.Disks, point.Disk{Name: fmt.Sprintf("vd%c", 'a'+i), Size: int64(len(d.data)), Used: d.used,
			Root: d.root})
	}
	return p
}

// commit commits a point of some disks, which go on from it.
func commit(ctx context.Context, s *session.Session, disks ...*disk) (*point.RecoveryPoint, error) {
	p := newPoint("vm", disks...)
	if err := s.Commit(ctx, p); err != nil {
		return p, err
	}
	for _, d := range disks {
		d.of = p.ID
	}
	return p, nil
}

// backUp stores disks whole, each against what it was, as a point.
func (r *room) backUp(t testing.TB, disks ...*disk) *point.RecoveryPoint {
	t.Helper()
	ctx := context.Background()
	s := r.begin(t, "vm")
	for _, d := range disks {
		if err := put(ctx, s, d, whole(d), nil); err != nil {
			t.Fatal(err)
		}
	}
	p, err := commit(ctx, s, disks...)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// writerAt is a disk in memory to restore to.
type writerAt []byte

func (w writerAt) WriteAt(p []byte, off int64) (int, error) { return copy(w[off:], p), nil }

// read returns what a disk of a point holds.
func (r *room) read(ctx context.Context, d point.Disk) ([]byte, error) {
	stored, err := r.Content.Disk(d.Root, d.Size)
	if err != nil {
		return nil, err
	}
	got := make(writerAt, d.Size)
	return got, stored.Restore(ctx, got, nil)
}

// manifest reads the manifest of a point.
func (r *room) manifest(ctx context.Context, of *row.Row) (*row.Manifest, error) {
	return r.Content.Manifest(ctx, of, func(ctx context.Context, id log.ObjectID) (o log.Object, ok bool, err error) {
		err = r.Journal.View(ctx, func(st *state.State) error {
			o, ok, err = st.Good(ctx, id)
			return err
		})
		return o, ok, err
	})
}

// require demands that a point is in the vault and that its disks hold something.
func (r *room) require(t testing.TB, id point.ID, want ...[]byte) {
	t.Helper()
	ctx := context.Background()
	_, row := r.rowOf(t, id)
	if err := r.Index.Sync(ctx); err != nil {
		t.Fatal(err)
	}
	for i, w := range want {
		got, err := r.read(ctx, row.Point.Disks[i])
		if err != nil || !bytes.Equal(got, w) {
			t.Fatalf("disk %d of point %s reads back as something else: %v", i, id, err)
		}
	}
}

type ctxt = context.Context

func rootID(t *testing.T, d *disk) chunk.ID {
	t.Helper()
	id, err := chunk.ParseID(d.root)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// packOf returns the pack that has the manifest of a point.
func packOf(t *testing.T, r *room, id point.ID) log.ObjectID {
	t.Helper()
	_, of := r.rowOf(t, id)
	return of.Manifest.Pack
}

// requireShared demands that the copies of a disk's root in sound packs have the shared bit, or do
// not.
func (r *room) requireShared(t *testing.T, d *disk, want bool) {
	t.Helper()
	r.requireBit(t, rootID(t, d), want)
}

// requireSharedChunk is requireShared of a chunk of the disk.
func (r *room) requireSharedChunk(t *testing.T, d *disk, at int64, want bool) {
	t.Helper()
	id, err := tree.Lookup(t.Context(), r.Content, rootID(t, d), int64(len(d.data))/testChunk, at)
	if err != nil {
		t.Fatal(err)
	}
	r.requireBit(t, id, want)
}

func (r *room) requireBit(t *testing.T, id chunk.ID, want bool) {
	t.Helper()
	if err := r.Index.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	all, err := r.Index.FindAll(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	found := false
	r.view(t, func(ctx ctxt, st *state.State) error {
		for _, l := range all {
			damaged, err := st.IsDamaged(ctx, l.Pack.ID)
			if err != nil {
				return err
			}
			if damaged {
				continue
			}
			shared, _, err := st.Bits(ctx, l.Pack.ID)
			if err != nil {
				return err
			}
			found = found || int(l.Slot/8) < len(shared) && shared[l.Slot/8]>>(l.Slot%8)&1 == 1
		}
		return nil
	})
	if found != want {
		t.Errorf("shared bit of one of %d copies of %s: %v", len(all), id, found)
	}
}
