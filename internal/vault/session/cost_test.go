package session_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-vm/holdfast/internal/blob/mem"
	"github.com/holdfast-vm/holdfast/internal/extent"
	"github.com/holdfast-vm/holdfast/internal/point"
	"github.com/holdfast-vm/holdfast/internal/vault/row"
	"github.com/holdfast-vm/holdfast/internal/vault/session"
	"github.com/holdfast-vm/holdfast/internal/vault/state"
	"github.com/holdfast-vm/holdfast/internal/vault/tree"
)

func newReader(p []byte) io.ReaderAt { return bytes.NewReader(p) }

// A small point from an open vault is a pack and an entry, in three round trips; one that changes
// nothing is an entry, in two.
func TestRoundTrips(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near := mem.New()
		initLog(t, near)
		s := &far{Store: near}
		r, err := openRoom(t, s)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Journal.Close()
		d := randomDisk(1, 300)
		r.backUp(t, d)
		small := extent.Of(extent.Extent{Len: 2 * testChunk}, extent.Extent{Off: 200 * testChunk, Len: testChunk})
		for i := range 3 {
			fill(rand.New(rand.NewPCG(uint64(i), 9)), d.data[:2*testChunk])
			fill(rand.New(rand.NewPCG(uint64(i), 8)), d.data[200*testChunk:][:testChunk])
			for _, tt := range []struct {
				what           string
				data           extent.Set
				trips, objects int
			}{{"a small point", small, 3, 2}, {"no change", nil, 2, 1}} {
				s.puts.Store(0)
				n := trips(func() {
					x := r.begin(t, "vm")
					if err := put(t.Context(), x, d, tt.data, nil); err != nil {
						t.Fatal(err)
					}
					if _, err := commit(t.Context(), x, d); err != nil {
						t.Fatal(err)
					}
				})
				if n > tt.trips || int(s.puts.Load()) > tt.objects {
					t.Errorf("%s takes %d round trips and %d objects", tt.what, n, s.puts.Load())
				}
			}
		}
	})
}

// A point that counts on more packs, and adds more, than an entry has room for is told of in
// pieces.
func TestLargePoint(t *testing.T) {
	session.SetPieceSize(t, manyPacks*54)
	r := newRoom(t, mem.New())
	r.PackSize = 1 // a pack for each chunk
	d := &disk{data: make([]byte, manyPacks*testChunk)}
	for i := range manyPacks {
		copy(d.data[i*testChunk:], fmt.Sprint("chunk ", i))
	}
	r.backUp(t, d)
	again := d.again()
	copy(again.data, "of its own")
	p := r.backUp(t, again)
	if n := len(r.packsOf(t)); n < manyPacks {
		t.Fatalf("%d packs", n)
	}
	r.require(t, p.ID, again.data)
	r.requireSharedChunk(t, again, 7, true)
	r.view(t, func(ctx ctxt, st *state.State) error {
		if open, err := st.Sessions(ctx); err != nil || len(open) > 0 {
			t.Errorf("%d sessions are open: %v", len(open), err)
		}
		return nil
	})
}

// What is collected before a point is told of in pieces is missed, whichever piece it is in.
func TestCollectedUnderALargePoint(t *testing.T) {
	session.SetPieceSize(t, 2000)
	for which := 0; which < 150; which += 31 {
		r := newRoom(t, mem.New())
		r.PackSize = 1
		d := &disk{data: make([]byte, 150*testChunk)}
		for i := range 150 {
			copy(d.data[i*testChunk:], fmt.Sprint("chunk ", i))
		}
		p := r.backUp(t, d)
		s := r.begin(t, "other")
		again := d.again()
		if err := put(t.Context(), s, again, whole(again), nil); err != nil {
			t.Fatal(err)
		}
		r.purge(t, p.ID)
		r.condemn(t, r.packsOf(t)[which])
		if _, err := commit(t.Context(), s, again); !errors.Is(err, session.ErrLost) {
			t.Fatalf("committed a point that cannot be read: %v", err)
		}
	}
}

// A point whose manifest is large has it in its pack, whole; its row is short, and can be built on.
func TestLargeManifest(t *testing.T) {
	r := newRoom(t, mem.New())
	d := randomDisk(1, 3)
	s := r.begin(t, "vm")
	if err := put(t.Context(), s, d, whole(d), nil); err != nil {
		t.Fatal(err)
	}
	p := newPoint("vm", d)
	for i := range 3000 {
		p.Warnings = append(p.Warnings, fmt.Sprintf("%d %x", i, rand.New(rand.NewPCG(uint64(i), 1)).Uint64()))
	}
	if err := s.Commit(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	_, of := r.rowOf(t, p.ID)
	m, err := r.manifest(t.Context(), of)
	if err != nil || !of.Short || len(m.Point.Warnings) != 3000 {
		t.Fatalf("short: %v, %v", of.Short, err)
	}
	d.of = p.ID
	q := r.backUp(t, d)
	if _, next := r.rowOf(t, q.ID); next.Trees[0].Line != m.Trees[0].Line {
		t.Error("the disk has another line")
	}
}

// Words by which a point is found are in its entry.
func TestFinds(t *testing.T) {
	r := newRoom(t, mem.New())
	r.Room.Finds = func(p *point.RecoveryPoint) []string { return []string{"vm/" + p.VM} }
	p := r.backUp(t, randomDisk(1, 3))
	if of, _ := r.rowOf(t, p.ID); len(of.Finds) != 1 || of.Finds[0] != "vm/vm" {
		t.Errorf("it is found by %v", of.Finds)
	}
}

// Each tree of a point has a line of its own, whatever it was made from, and a disk that goes on
// from a point's keeps its line. Only what cannot have the line of its base is shared throughout.
func TestLines(t *testing.T) {
	r := newRoom(t, mem.New())
	a := randomDisk(1, 5)
	b := a.again()
	lines := func(p *point.RecoveryPoint) map[row.Line]bool {
		_, of := r.rowOf(t, p.ID)
		all := map[row.Line]bool{}
		for _, x := range of.Trees {
			all[x.Line] = true
		}
		if len(all) != len(of.Trees) {
			t.Errorf("%d trees have %d lines", len(of.Trees), len(all))
		}
		return all
	}
	first := lines(r.backUp(t, a, b))
	if second := lines(r.backUp(t, a, b)); !maps.Equal(first, second) {
		t.Errorf("two disks of one content go on in other lines")
	}
	c := randomDisk(2, 5)
	lines(r.backUp(t, c))
	r.requireShared(t, c, false)
	clone := c.fork()
	third := lines(r.backUp(t, c, clone))
	if len(third) != 2 {
		t.Errorf("a disk and its clone have %d lines", len(third))
	}
	r.requireShared(t, c, true)
}

// patternReader reads as bytes that differ from chunk to chunk.
type patternReader struct{}

func (patternReader) ReadAt(p []byte, off int64) (int, error) {
	for i := range p {
		p[i] = byte((off+int64(i))/testChunk) | 1
	}
	return len(p), nil
}

// A batch costs what has data, now or in the last point: holes that were holes before are not gone
// through, however large the disk is.
func TestHolesThatStayHolesCostNothing(t *testing.T) {
	const width = testChunk * tree.FanOut // of a leaf
	s := newRoom(t, mem.New()).begin(t, "")
	for _, size := range []int64{1 << 30, 8 << 40} {
		in := session.DiskInput{Size: size, Source: patternReader{}, Data: extent.Of(
			extent.Extent{Off: 3 * width, Len: 2 * width}, extent.Extent{Off: size - testChunk, Len: testChunk},
		)}
		in.Zero = wholeOf(size).Subtract(in.Data)
		first, err := s.Spans(t.Context(), in)
		if err != nil {
			t.Fatal(err)
		}
		out, err := s.PutDisk(t.Context(), in)
		if err != nil || out.Used != 2*width+testChunk {
			t.Errorf("%d bytes are used: %v", out.Used, err)
		}
		again := in // the next batch: what had data at the end is a hole now
		again.Base, again.BaseUsed = out.Root, out.Used
		again.Data = again.Data[:1]
		again.Zero = wholeOf(size).Subtract(again.Data)
		second, err := s.Spans(t.Context(), again)
		if err != nil || first != 3 || second != 3 {
			t.Errorf("workers look at %d and %d leaves of a disk of %d bytes; 3 have data: %v", first, second, size,
				err)
		}
		if out, err = s.PutDisk(t.Context(), again); err != nil || out.Used != 2*width {
			t.Errorf("%d bytes are used: %v", out.Used, err)
		}
	}
}

// A session remembers what it stores only as long as the index does not know it.
func TestMemoryIsBounded(t *testing.T) {
	r := newRoom(t, mem.New())
	r.PackSize = 4 * testChunk
	d := randomDisk(1, 300)
	s := r.begin(t, "")
	if err := put(t.Context(), s, d, whole(d), nil); err != nil {
		t.Fatal(err)
	}
	if err := s.Tell(t.Context()); err != nil { // once all full packs are stored
		t.Fatal(err)
	}
	if n := s.Claims(); n > 2*5+10 {
		t.Errorf("it remembers %d chunks and nodes of 300", n)
	}
}

// slow takes minutes to read.
type slow struct{ io.ReaderAt }

func (s slow) ReadAt(p []byte, off int64) (int, error) {
	time.Sleep(3 * time.Minute)
	return s.ReaderAt.ReadAt(p, off)
}

// A long session tells of its progress: what it builds on is not purged meanwhile.
func TestLongSessionTells(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRoom(t, mem.New())
		defer r.Journal.Close()
		d := randomDisk(1, 64*4)
		p := r.backUp(t, d)
		s := r.begin(t, "vm")
		fill(rand.New(rand.NewPCG(2, 2)), d.data)
		for range 2 {
			out, err := s.PutDisk(t.Context(), session.DiskInput{Size: int64(len(d.data)), Base: d.root, Of: p.ID,
				Data: whole(d), Source: slow{newReader(d.data)}})
			if err != nil {
				t.Fatal(err)
			}
			d.root = out.Root
		}
		synctest.Wait()
		r.view(t, func(ctx ctxt, st *state.State) error {
			err := (&state.Purge{Points: []state.Purged{{ID: stateID(t, p.ID)}}}).Check(ctx, st, 0)
			if !errors.Is(err, state.ErrInUse) {
				t.Errorf("its base can be purged: %v", err)
			}
			open, err := st.Sessions(ctx)
			if err != nil || len(open) != 1 || open[0].Progress[0].Machine != "vm" ||
				string(open[0].Progress[0].Holder) != "us" {
				t.Errorf("open sessions: %+v %v", open, err)
			}
			return nil
		})
		if _, err := commit(t.Context(), s, d); err != nil {
			t.Fatal(err)
		}
	})
}
