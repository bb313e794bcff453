package index

import (
	"context"
	"encoding/binary"
	"flag"
	"math/bits"
	"math/rand/v2"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-vm/holdfast/internal/blob/dir"
	"github.com/holdfast-vm/holdfast/internal/vault/chunk"
	"github.com/holdfast-vm/holdfast/internal/vault/log"
	"github.com/holdfast-vm/holdfast/internal/vault/pack"
)

// benchRows is what the index of the benchmarks has: 100,000,000 is what the goals speak of.
var benchRows = flag.Int("index.rows", 10_000_000, "rows of the index that benchmarks look up in")

const benchPack = 2000 // rows

// made is packs whose rows follow from their numbers: as many as one likes.
type made struct{ rows int }

func (m made) packs() int { return m.rows / benchPack }

func madeObject(n int) log.Object {
	return log.Object{ID: log.NewObjectID(log.Volume{Number: 7}, log.Session{1}, uint32(n)), Kind: log.Pack,
		Size: 64 << 20}
}

func (m made) Since(_ context.Context, count uint64, do func(log.Object, uint64) bool) (uint64, error) {
	for n := int(count); n < m.packs(); n++ {
		if !do(madeObject(n), uint64(n+1)) {
			return uint64(n), nil
		}
	}
	return uint64(m.packs()), nil
}

func (m made) Good(_ context.Context, ids []log.ObjectID) ([]bool, error) {
	good := make([]bool, len(ids))
	for i := range good {
		good[i] = true
	}
	return good, nil
}

func mix(z uint64) uint64 {
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

// id is the ID of row n: spread like a hash, and ascending with n.
func (m made) id(n uint64) (id chunk.ID) {
	first, _ := bits.Div64(n, 0, uint64(m.rows))
	binary.BigEndian.PutUint64(id[:], first)
	for i := 8; i < chunk.IDSize; i += 8 {
		binary.LittleEndian.PutUint64(id[i:], mix(n+uint64(i)*0x9e3779b97f4a7c15))
	}
	return id
}

// entry is row n. Neighbours stand in packs far apart.
func (m made) entry(n uint64, slot int) pack.Entry {
	return pack.Entry{ID: m.id(n), Kind: pack.Data, Offset: uint32(slot) << 15, Stored: 30000, Plain: 65536,
		Nonce: uint32(slot)}
}

func (m made) table(_ context.Context, o log.Object) ([]pack.Entry, error) {
	p := int(binary.BigEndian.Uint32(o.ID[20:]))
	entries := make([]pack.Entry, benchPack)
	for i := range entries {
		entries[i] = m.entry(uint64(i*m.packs()+p), i)
	}
	return entries, nil
}

// benchStore is a store in a folder that goes with the benchmark.
func benchStore(b *testing.B) *dir.Store {
	b.Helper()
	store, err := dir.Create(b.TempDir() + "/vault")
	if err != nil {
		b.Fatal(err)
	}
	return store
}

// tiers writes m as a vault has it that grew: a segment of three quarters of the rows, one of three
// quarters of the rest, and so on.
func (m made) tiers(b *testing.B, src Source) {
	b.Helper()
	r := &root{}
	for from := 0; from < m.packs(); {
		n := max(min((m.packs()-from)*3/4, m.packs()-from), 1)
		if m.packs()-from < 100 {
			n = m.packs() - from
		}
		info, err := m.segment(src, from, from+n)
		if err != nil {
			b.Fatal(err)
		}
		r.segments = append(r.segments, info)
		from += n
	}
	if err := src.writeRoot(context.Background(), r); err != nil {
		b.Fatal(err)
	}
}

// segment writes packs from up to to.
func (m made) segment(src Source, from, to int) (segmentInfo, error) {
	w, err := newSegmentWriter(context.Background(), &src, span{uint64(from), uint64(to)})
	if err != nil {
		return segmentInfo{}, err
	}
	defer w.abort()
	var raw []byte
	for slot := range benchPack {
		for p := from; p < to; p++ {
			r := row{entry: m.entry(uint64(slot*m.packs()+p), slot), slot: uint16(slot), origin: uint32(p - from)}
			raw = r.append(raw[:0])
			if err := w.add(raw); err != nil {
				return segmentInfo{}, err
			}
		}
	}
	if err := w.endRows(); err != nil {
		return segmentInfo{}, err
	}
	for p := from; p < to; p++ {
		if err := w.addOrigin(&originOf{object: madeObject(p)}); err != nil {
			return segmentInfo{}, err
		}
	}
	return w.commit(context.Background())
}

func benchOpen(b *testing.B, src Source, m made) *Index {
	b.Helper()
	ix, err := Open(context.Background(), src)
	if err != nil {
		b.Fatal(err)
	}
	ix.tables = m.table
	return ix
}

// BenchmarkIndex has what an index costs that grew to -index.rows rows.
func BenchmarkIndex(b *testing.B) {
	m := made{*benchRows}
	src := source(benchStore(b), m)
	m.tiers(b, src)
	b.Run("Open", func(b *testing.B) {
		for b.Loop() {
			if err := benchOpen(b, src, m).Sync(context.Background()); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("OpenAndReadFilters", func(b *testing.B) {
		for b.Loop() {
			readPages(b, benchOpen(b, src, m))
		}
	})
	before := heap()
	ix := benchOpen(b, src, m)
	readPages(b, ix)
	perRow := float64(heap()-before) / float64(m.rows)
	b.Run("FindAbsent", func(b *testing.B) {
		n, start := uint64(0), processor()
		for b.Loop() {
			n++
			id := m.id(mix(n) % uint64(m.rows))
			binary.LittleEndian.PutUint64(id[8:], mix(n+1))
			binary.LittleEndian.PutUint64(id[16:], mix(n+2))
			if _, ok, err := ix.Find(context.Background(), id, nil); ok || err != nil {
				b.Fatal(ok, err)
			}
		}
		b.ReportMetric(float64(processor()-start)/float64(b.N), "cpu-ns/op")
		b.ReportMetric(perRow, "B/row")
		b.ReportMetric(float64(len(ix.segments)), "segments")
	})
	b.Run("FindPresent", func(b *testing.B) {
		start := processor()
		for b.Loop() {
			if _, ok, err := ix.Find(context.Background(), m.id(rand.Uint64N(uint64(m.rows))), nil); !ok || err != nil {
				b.Fatal(ok, err)
			}
		}
		b.ReportMetric(float64(processor()-start)/float64(b.N), "cpu-ns/op")
	})
	b.Run("Each", func(b *testing.B) { benchEach(b, ix, m) })
}

func benchEach(b *testing.B, ix *Index, m made) {
	s, err := ix.Snapshot(context.Background())
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	start := processor()
	for b.Loop() {
		n := 0
		if err := s.Each(context.Background(), func(*Loc) bool { n++; return true }); err != nil || n != m.rows {
			b.Fatal(n, err)
		}
	}
	b.ReportMetric(float64(processor()-start)/float64(b.N)/float64(m.rows), "cpu-ns/row")
}

// BenchmarkRebuild makes an index of a tenth of -index.rows from nothing but tables.
func BenchmarkRebuild(b *testing.B) {
	m := made{*benchRows / 10}
	for b.Loop() {
		stop, peak := make(chan struct{}), make(chan uint64)
		go watchMemory(stop, peak)
		start := processor()
		ix := benchOpen(b, source(benchStore(b), m), m)
		if err := ix.Sync(context.Background()); err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(processor()-start)/float64(m.rows), "cpu-ns/row")
		close(stop)
		b.ReportMetric(float64(<-peak)/(1<<20), "peak-MiB")
	}
}

func readPages(b *testing.B, ix *Index) {
	b.Helper()
	for _, s := range ix.segments {
		for n := range s.pages {
			if _, err := s.page(context.Background(), n); err != nil {
				b.Fatal(err)
			}
		}
	}
}

// processor returns the processor time that the process has used.
func processor() time.Duration {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func heap() uint64 {
	runtime.GC()
	var s runtime.MemStats
	runtime.ReadMemStats(&s)
	return s.HeapAlloc
}

func watchMemory(stop chan struct{}, peak chan uint64) {
	var most uint64
	for {
		var s runtime.MemStats
		runtime.ReadMemStats(&s)
		most = max(most, s.HeapSys-s.HeapReleased)
		select {
		case <-stop:
			peak <- most
			return
		case <-time.After(50 * time.Millisecond):
		}
	}
}
