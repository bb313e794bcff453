package index

import (
	"bytes"
	"context"
	"encoding/binary"
	"hash/crc32"
	"slices"
	"testing"

	"github.com/zeebo/blake3"

	"github.com/holdfast-vm/holdfast/internal/blob"
	"github.com/holdfast-vm/holdfast/internal/blob/mem"
	"github.com/holdfast-vm/holdfast/internal/vault/chunk"
	"github.com/holdfast-vm/holdfast/internal/vault/pack"
)

// idOf is a chunk ID as real ones are spread.
func idOf(n int) chunk.ID {
	return blake3.Sum256(binary.LittleEndian.AppendUint64(nil, uint64(n)))
}

// writeSegment writes entries rows of one pack per 1024 entries and returns the segment as it is kept in memory.
func writeSegment(t testing.TB, store blob.Store, entries int) *segment {
	t.Helper()
	ctx := context.Background()
	rows := make([]row, entries)
	for i := range rows {
		rows[i] = row{id: idOf(i), pack: uint32(i / 1024), offset: 64, stored: 100, plain: 1000}
	}
	slices.SortFunc(rows, func(a, b row) int { return bytes.Compare(a.id[:], b.id[:]) })
	sw, err := newSegmentWriter(ctx, store, "index/x", [16]byte{1}, int64(entries))
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range rows {
		if err := sw.add(r); err != nil {
			t.Fatal(err)
		}
	}
	packs := make([]packRow, (entries+1023)/1024)
	for i := range packs {
		packs[i] = packRow{pack.Ref{ID: pack.ID{byte(i), byte(i >> 8)}, Kind: pack.Data}, 1 << 20}
	}
	if err := sw.commit(ctx, packs); err != nil {
		t.Fatal(err)
	}
	info, err := store.Stat(ctx, "index/x")
	if err != nil {
		t.Fatal(err)
	}
	s, err := loadSegment(ctx, store, info, [16]byte{1})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// What a segment keeps in memory is under two bytes an entry, packs of 1024 chunks included.
func TestMemoryPerEntry(t *testing.T) {
	for _, entries := range []int{1 << 12, 1 << 15, 1 << 17} {
		s := writeSegment(t, mem.New(), entries)
		const packBytes = 16 + 8 + 8 + 8 // packRow with padding, and its size now
		kept := cap(s.filter) + 8*cap(s.fence) + packBytes*len(s.packs)
		if perEntry := float64(kept) / float64(entries); perEntry >= 2 {
			t.Errorf("%d entries keep %.2f bytes each", entries, perEntry)
		}
	}
}

// The filter denies nothing that is there, and all but about one in fifty of what is not.
func TestFilter(t *testing.T) {
	const entries = 20_000
	s := writeSegment(t, mem.New(), entries)
	wrong := 0
	for n := range 2 * entries {
		id := idOf(n)
		switch has := s.mayHave(&id); {
		case n < entries && !has:
			t.Fatalf("entry %d is denied", n)
		case n >= entries && has:
			wrong++
		}
	}
	if wrong > entries/50 {
		t.Errorf("%d of %d strangers pass the filter", wrong, entries)
	}
}

// Any bytes at all, with right checksums or not, load as a segment that can be searched, or are refused: no panic, and no more memory
// than the object is long.
func FuzzSegment(f *testing.F) {
	for _, entries := range []int{1, 85, 200} {
		store := mem.New()
		writeSegment(f, store, entries)
		whole, err := blob.Get(context.Background(), store, "index/x")
		if err != nil {
			f.Fatal(err)
		}
		f.Add(whole, false)
		f.Add(whole, true)
	}
	f.Add([]byte{}, false)
	f.Fuzz(func(t *testing.T, b []byte, fix bool) {
		ctx := context.Background()
		if fix {
			fixSums(b)
		}
		store := mem.New()
		if err := blob.Put(ctx, store, "index/x", b); err != nil {
			t.Fatal(err)
		}
		s, err := loadSegment(ctx, store, blob.Info{Name: "index/x", Size: int64(len(b))}, [16]byte{1})
		if err != nil {
			if !isDamaged(err) {
				t.Fatalf("refused with %v", err)
			}
			return
		}
		if len(s.filter)+8*len(s.fence)+packRowSize*len(s.packs) > len(b) {
			t.Fatalf("%d bytes make %d", len(b), len(s.filter))
		}
		search(t, store, s)
	})
}

func search(t *testing.T, store blob.Store, s *segment) {
	ix := &Index{src: Source{Store: store}, blocks: newBlockCache(), segments: []*segment{s}}
	for i := range s.now {
		s.now[i].Store(s.packs[i].size)
	}
	for n := range 4 {
		id := idOf(n)
		_, err := ix.eachIn(context.Background(), s, id, func(l Loc) bool {
			if l.Stored > chunk.MaxSize+pack.TagSize || l.Plain > chunk.MaxSize {
				t.Fatalf("a chunk of %d bytes is found", l.Plain)
			}
			return true
		})
		if err != nil && !isDamaged(err) {
			t.Fatal(err)
		}
	}
}

// fixSums makes the checksums of b right, if it is long enough to have some.
func fixSums(b []byte) {
	if len(b) < headSize+footSize {
		return
	}
	foot := b[len(b)-footSize:]
	blocks := binary.LittleEndian.Uint64(foot[8:])
	if blocks > uint64(len(b)-headSize-footSize)/blockSize {
		return
	}
	tail := b[headSize+blocks*blockSize:]
	binary.LittleEndian.PutUint32(foot[footSize-12:], crc32.Checksum(tail[:len(tail)-12], castagnoli))
	for i := range blocks {
		p := b[headSize+i*blockSize:]
		binary.LittleEndian.PutUint32(p[blockSize-4:], crc32.Checksum(p[:blockSize-4], castagnoli))
	}
}
