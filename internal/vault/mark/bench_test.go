package mark_test

import (
	"context"
	"flag"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/blob/dir"
	"github.com/holdfast-vm/holdfast/internal/vault/chunk"
	"github.com/holdfast-vm/holdfast/internal/vault/index"
	"github.com/holdfast-vm/holdfast/internal/vault/log"
	"github.com/holdfast-vm/holdfast/internal/vault/mark"
	"github.com/holdfast-vm/holdfast/internal/vault/pack"
	"github.com/holdfast-vm/holdfast/internal/vault/row"
)

// benchChunks is how many chunks the disk of the benchmark has: 10,000,000 is what the goals speak
// of.
var benchChunks = flag.Int("mark.chunks", 1_000_000, "chunks of the disk that benchmarks mark")

const (
	benchPoints = 100
	benchPack   = 2000 // rows
)

// told is packs as an index is told of them.
type told struct{ all []log.Object }

// Since implements index.Packs.
func (p *told) Since(_ context.Context, count uint64, do func(log.Object, uint64) bool) (uint64, error) {
	for i := int(count); i < len(p.all); i++ {
		if !do(p.all[i], uint64(i+1)) {
			break
		}
	}
	return uint64(len(p.all)), nil
}

// Good implements index.Packs.
func (p *told) Good(_ context.Context, ids []log.ObjectID) ([]bool, error) {
	return slices.Repeat([]bool{true}, len(ids)), nil
}

// indexOf makes an index of all rows, in a folder.
func (w *world) indexOf(b *testing.B) *index.Index {
	b.Helper()
	store, err := dir.Create(b.TempDir() + "/vault")
	if err != nil {
		b.Fatal(err)
	}
	packs := &told{}
	ix, err := index.Open(b.Context(), index.Source{Store: store, Secret: pack.NewSecret([32]byte{1}), Packs: packs})
	if err != nil {
		b.Fatal(err)
	}
	for rows := range slices.Chunk(w.rows, benchPack) {
		o := log.Object{ID: packID(len(packs.all)), Kind: log.Pack, Size: 64 << 20}
		entries := make([]pack.Entry, len(rows))
		for i := range rows {
			entries[i] = pack.Entry{ID: rows[i].ID, Kind: pack.Data, Offset: uint32(i) << 15, Stored: 30000,
				Plain: 65536,
				Nonce: uint32(i)}
		}
		ix.Know(o, entries)
		packs.all = append(packs.all, o)
		if len(packs.all)%100 == 0 {
			if err = ix.Sync(b.Context()); err == nil {
				err = ix.Flush(b.Context())
			}
			if err != nil {
				b.Fatal(err)
			}
		}
	}
	return ix
}

// BenchmarkMark marks what 100 points need that differ in a thousandth each, by an index in a
// folder.
func BenchmarkMark(b *testing.B) {
	w, rng := newWorld(), rand.New(rand.NewPCG(1, 1))
	chunks := make([]chunk.ID, *benchChunks)
	for i := range chunks {
		chunks[i] = w.fresh()
		w.rows = append(w.rows, index.Loc{Entry: pack.Entry{ID: chunks[i]}})
	}
	points := []mark.Point{{Trees: []row.Tree{w.put(b, 0, chunks).tree()}}}
	for len(points) < benchPoints {
		changed := map[int]chunk.ID{}
		for range len(chunks) / 10000 { // in runs of ten
			at := rng.IntN(len(chunks) - 10)
			for i := range 10 {
				changed[at+i] = w.fresh()
			}
		}
		for at, id := range changed {
			chunks[at] = id
			w.rows = append(w.rows, index.Loc{Entry: pack.Entry{ID: id}})
		}
		points = append(points, mark.Point{Trees: []row.Tree{w.put(b, 0, chunks).tree()}})
	}
	ix := w.indexOf(b)
	rows := len(w.rows)
	w.rows, w.byID, w.reads = nil, nil, map[chunk.ID]int{}
	for b.Loop() {
		snap, err := ix.Snapshot(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		live, err := mark.Mark(b.Context(), mark.Options{Rows: snap, Nodes: w, Points: pointsOf(points...)})
		if err != nil {
			b.Fatal(err)
		}
		if int(live.Count()) != rows {
			b.Fatalf("%d of %d rows are marked", live.Count(), rows)
		}
		snap.Close()
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(rows), "ns/row")
	b.ReportMetric(float64(rows), "rows")
}
