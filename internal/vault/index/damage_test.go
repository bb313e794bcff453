package index

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/blob"
	"github.com/holdfast-vm/holdfast/internal/blob/mem"
	"github.com/holdfast-vm/holdfast/internal/vault/log"
	"github.com/holdfast-vm/holdfast/internal/vault/pack"
)

// threeSegments returns a store with an index of three segments of 40 packs each.
func threeSegments(t *testing.T) (*mem.Store, *truth) {
	t.Helper()
	store, w := mem.New(), &truth{}
	ix := open(t, source(store, w), w)
	ix.limits.most = 1 << 20
	rng := rand.New(rand.NewPCG(5, 6))
	for range 3 {
		for range 40 {
			w.commit(w.add(rng, 30, chunks))
		}
		if err := errors.Join(ix.Sync(context.Background()), ix.Flush(context.Background())); err != nil {
			t.Fatal(err)
		}
	}
	if len(ix.segments) != 3 {
		t.Fatalf("there are %d segments", len(ix.segments))
	}
	return store, w
}

// A bit that is not as it was written is noticed, and costs no more than the tables of its
// segment's packs; one in the root costs all.
func TestFlippedBitCostsOneSegment(t *testing.T) {
	store, w := threeSegments(t)
	ctx := context.Background()
	for _, name := range (&world{store: store}).names(t, "index/") {
		whole, err := blob.Get(ctx, store, name)
		if err != nil {
			t.Fatal(err)
		}
		for at := 0; at < len(whole); at += 1 + len(whole)/5 {
			flip := func(b []byte) []byte { b[at] ^= 4; return b }
			if err := store.Corrupt(name, flip); err != nil {
				t.Fatal(err)
			}
			w.reads = 0
			ix := open(t, source(store, w), w)
			ix.limits.most = 1 << 20
			if err := ix.Sync(ctx); err != nil {
				t.Fatal(err)
			}
			requireRows(t, ix, w, chunks, isGood)
			want, damaged := 40, []string{name}
			if strings.HasPrefix(name, rootPrefix) {
				want, damaged = 120, nil
			}
			if w.reads != want || !slices.Equal(ix.Damaged(), damaged) {
				t.Errorf("byte %d of %s costs %d tables, not %d; damaged is %v", at, name, w.reads, want, ix.Damaged())
			}
			if err := store.Corrupt(name, flip); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// Who has not the key, or another vault's, reads no chunk's ID or pack in the index, and none of
// its rows.
func TestIndexTellsNothingWithoutTheKey(t *testing.T) {
	store, w := threeSegments(t)
	ctx := context.Background()
	for _, name := range (&world{store: store}).names(t, "index/") {
		raw, err := blob.Get(ctx, store, name)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range w.packs {
			session := p.object.ID.Session()
			if id := p.entries[0].ID; slices.Contains([]bool{strings.Contains(string(raw), string(id[:8])),
				strings.Contains(string(raw), string(session[:]))}, true) {
				t.Fatalf("%s shows a chunk or a pack", name)
			}
		}
	}
	other := source(store, w)
	other.Vault[0]++
	w.reads = 0
	ix := open(t, other, w)
	if err := ix.Sync(ctx); err != nil {
		t.Fatal(err)
	}
	if w.reads != len(w.packs) {
		t.Errorf("another vault takes rows from the index: only %d tables of %d are read", w.reads, len(w.packs))
	}
}

// A pack whose table cannot be read is named, and found once it can be: also by who opens the index
// later, and after segments that cover it were written and merged.
func TestUnreadableTableIsReadLater(t *testing.T) {
	ctx := context.Background()
	rng := rand.New(rand.NewPCG(7, 8))
	for _, broken := range []error{pack.ErrCorrupt, fmt.Errorf("read: %w", blob.ErrNotExist)} {
		store, w := mem.New(), &truth{}
		ix := open(t, source(store, w), w)
		flush := func() {
			t.Helper()
			if err := errors.Join(ix.Sync(ctx), ix.Flush(ctx)); err != nil {
				t.Fatal(err)
			}
			requireRows(t, ix, w, chunks, isGood)
		}
		bad := w.add(rng, 30, chunks)
		bad.broken = broken
		w.commit(bad)
		for range 3 {
			w.commit(w.add(rng, 400, chunks))
			flush()
		}
		if !slices.Equal(ix.Damaged(), []string{bad.object.Name()}) {
			t.Fatalf("damaged is %v", ix.Damaged())
		}
		bad.broken = nil
		for range 2 { // the second time by what the root says
			ix = open(t, source(store, w), w)
			w.commit(w.add(rng, 400, chunks))
			flush()
			if len(ix.Damaged()) > 0 {
				t.Fatalf("damaged is %v", ix.Damaged())
			}
		}
		ix = open(t, source(store, w), w)
		w.reads = 0
		flush()
		if w.reads > 1 {
			t.Errorf("%d tables are read once segments have all", w.reads)
		}
	}
}

// A table that cannot be read now is an error, and what else was read is kept.
func TestSyncKeepsWhatItRead(t *testing.T) {
	ctx := context.Background()
	rng := rand.New(rand.NewPCG(9, 10))
	w := &truth{}
	ix := open(t, source(mem.New(), w), w)
	for range 8 {
		w.commit(w.add(rng, 30, chunks))
	}
	w.packs[7].broken = errFault
	if err := ix.Sync(ctx); !errors.Is(err, errFault) {
		t.Fatalf("Sync says %v", err)
	}
	w.packs[7].broken, w.reads = nil, 0
	if err := ix.Sync(ctx); err != nil {
		t.Fatal(err)
	}
	if w.reads > 4 {
		t.Errorf("%d tables are read again", w.reads)
	}
	requireRows(t, ix, w, chunks, isGood)
}

// Rows that no writer makes do not crash a reader.
func FuzzSegment(f *testing.F) {
	f.Add([]byte{}, []byte{}, uint16(1))
	f.Fuzz(func(t *testing.T, blocks, origins []byte, rows uint16) {
		ctx := context.Background()
		w := &truth{}
		ix := open(t, source(mem.New(), w), w)
		sw, err := newSegmentWriter(ctx, &ix.src, span{0, 1})
		if err != nil {
			t.Fatal(err)
		}
		for i := range int(rows%500) + 1 {
			raw := make([]byte, rowSize)
			copy(raw, blocks[min(len(blocks), i*rowSize):])
			if err := sw.add(raw); err != nil {
				t.Fatal(err)
			}
		}
		if err := sw.endRows(); err != nil {
			t.Fatal(err)
		}
		for i := range 1 + len(origins)/originSize%sw.rows() {
			raw := make([]byte, originSize)
			copy(raw, origins[min(len(origins), i*originSize):])
			o := parseOrigin(raw)
			if err := sw.addOrigin(&o); err != nil {
				t.Fatal(err)
			}
		}
		info, err := sw.commit(ctx)
		if err != nil {
			t.Fatal(err)
		}
		w.count = 1
		if err := ix.adopt(&root{segments: []segmentInfo{info}}); err != nil {
			t.Fatal(err)
		}
		ix.done = 1
		for n := range int64(3) {
			raw := make([]byte, rowSize)
			copy(raw, blocks[min(int64(len(blocks)), n*rowSize):])
			if _, err := ix.FindAll(ctx, parseRow(raw).entry.ID); err != nil {
				t.Fatal(err)
			}
		}
		s, err := ix.Snapshot(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Each(ctx, func(*Loc) bool { return true }); err != nil && !errors.Is(err, ErrStale) {
			t.Fatal(err)
		}
	})
}

func (w *segmentWriter) rows() int { return int(w.info.rows) }

// A root that reads is as it is written again, and takes no more memory than it has bytes.
func FuzzRoot(f *testing.F) {
	r := &root{segments: []segmentInfo{{name: segmentPrefix + strings.Repeat("ab", 16), span: span{3, 7}, rows: 70_000,
		origins: 3, fences: []uint64{5, 6}}}, holes: []hole{{log.Object{Size: 4}, 5}},
		suspects: []string{segmentPrefix + strings.Repeat("cd", 16)}}
	f.Add(r.encode())
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := decodeRoot(b)
		if err != nil {
			return
		}
		if got := r.encode(); string(got) != string(b) {
			t.Fatalf("%x is written as %x", b, got)
		}
		for _, s := range r.segments {
			if _, err := newSegment(&Source{Store: mem.New()}, s); err != nil {
				t.Fatal(err)
			}
		}
	})
}
