package pack

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"math/rand/v2"
	"testing"

	"pgregory.net/rapid"

	"github.com/holdfast-vm/holdfast/internal/blob"
	"github.com/holdfast-vm/holdfast/internal/blob/mem"
	"github.com/holdfast-vm/holdfast/internal/vault/chunk"
)

var (
	testSecret = NewSecret([32]byte{7})
	testVault  = [16]byte{8}
	testRef    = Ref{ID: ID{1, 15: 2}, Kind: Data}
)

// writePack stores chunks as a pack and returns its table.
func writePack(t interface{ Fatal(...any) }, store blob.Store, chunks [][]byte) []Entry {
	w, err := testSecret.Create(context.Background(), store, testRef, testVault)
	if err != nil {
		t.Fatal(err)
	}
	for i, c := range chunks {
		if _, err := w.Append(chunk.ID{byte(i), 1}, len(c), c, chunk.Plain); err != nil {
			t.Fatal(err)
		}
	}
	entries, err := w.Commit(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return entries
}

func tableOf(store blob.Store) ([]Entry, error) {
	info, err := store.Stat(context.Background(), testRef.Name())
	if err != nil {
		return nil, err
	}
	return testSecret.Table(context.Background(), store, testRef, testVault, info.Size)
}

// unseal reads one chunk of the pack.
func unseal(store blob.Store, e *Entry) ([]byte, error) {
	r := NewReader(testSecret, store)
	sealed := make([]byte, e.Stored)
	if err := r.ReadSealed(context.Background(), testRef, sealed, int64(e.Offset)); err != nil {
		return nil, err
	}
	if !e.SumOK(sealed) {
		return nil, ErrCorrupt
	}
	return r.Unseal(testRef, e, sealed)
}

// Whatever is appended is in the table, in order, without gaps, under offsets that differ, and opens to what it was.
func TestPackHoldsWhatWasAppended(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		store := mem.New()
		chunks := rapid.SliceOfN(rapid.SliceOfN(rapid.Byte(), 1, 3000), 0, 20).Draw(t, "chunks")
		written := writePack(t, store, chunks)
		read, err := tableOf(store)
		if err != nil || len(read) != len(chunks) {
			t.Fatalf("%d entries for %d chunks: %v", len(read), len(chunks), err)
		}
		next := uint32(HeaderSize)
		for i := range read {
			e := &read[i]
			if *e != written[i] || e.Offset != next {
				t.Fatalf("entry %d is %+v, written as %+v", i, *e, written[i])
			}
			next += e.Stored
			if got, err := unseal(store, e); err != nil || !bytes.Equal(got, chunks[i]) {
				t.Fatalf("chunk %d opens to %d bytes: %v", i, len(got), err)
			}
		}
	})
}

// Any flipped bit and any cut is found in the table or in exactly the chunk that it hit.
func TestAnyDamageIsFound(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	for range 300 {
		store := mem.New()
		entries := writePack(t, store, [][]byte{make([]byte, 100), make([]byte, 50)})
		at := 0
		err := store.Corrupt(testRef.Name(), func(b []byte) []byte {
			if at = rng.IntN(len(b)); rng.IntN(3) == 0 {
				return b[:at]
			}
			b[at] ^= 1 << rng.IntN(8)
			return b
		})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := tableOf(store); errors.Is(err, ErrCorrupt) {
			continue
		} else if err != nil {
			t.Fatal(err)
		}
		for i := range entries {
			e := &entries[i]
			hit := at >= int(e.Offset) && at < int(e.Offset+e.Stored)
			if _, err := unseal(store, e); errors.Is(err, ErrCorrupt) != hit {
				t.Fatalf("byte %d changed: chunk %d says %v", at, i, err)
			}
		}
	}
}

// A chunk does not open as another one, in another pack, or with another secret, even when its checksum is right.
func TestChunksAreBoundToTheirPlace(t *testing.T) {
	store := mem.New()
	entries := writePack(t, store, [][]byte{make([]byte, 100), make([]byte, 100)})
	for name, e := range map[string]Entry{
		"other ID":       {ID: chunk.ID{9}, Offset: entries[0].Offset, Stored: entries[0].Stored, Plain: entries[0].Plain},
		"other size":     {ID: entries[0].ID, Offset: entries[0].Offset, Stored: entries[0].Stored, Plain: 99},
		"other encoding": {ID: entries[0].ID, Offset: entries[0].Offset, Stored: entries[0].Stored, Plain: 100, Encoding: chunk.Zstd},
		"other place":    {ID: entries[0].ID, Offset: entries[1].Offset, Stored: entries[0].Stored, Plain: entries[0].Plain},
	} {
		sealed := make([]byte, e.Stored)
		r := NewReader(testSecret, store)
		if err := r.ReadSealed(context.Background(), testRef, sealed, int64(e.Offset)); err != nil {
			t.Fatal(err)
		}
		if _, err := r.Unseal(testRef, &e, sealed); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, open := range map[string]func(sealed []byte) ([]byte, error){
		"other pack": func(p []byte) ([]byte, error) {
			return NewReader(testSecret, store).Unseal(Ref{ID: ID{3}}, &entries[0], p)
		},
		"other secret": func(p []byte) ([]byte, error) {
			return NewReader(NewSecret([32]byte{}), store).Unseal(testRef, &entries[0], p)
		},
	} {
		sealed := make([]byte, entries[0].Stored)
		if err := NewReader(testSecret, store).ReadSealed(context.Background(), testRef, sealed, int64(entries[0].Offset)); err != nil {
			t.Fatal(err)
		}
		if _, err := open(sealed); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestNames(t *testing.T) {
	for _, k := range []Kind{Data, Meta} {
		r := Ref{ID: ID{0xab, 15: 3}, Kind: k}
		if got, err := ParseName(r.Name()); err != nil || got != r {
			t.Errorf("%s reads as %v, %v", r.Name(), got, err)
		}
	}
	for _, name := range []string{"", "data/", "data/ab/abab", "data/aa/ab000000000000000000000000000003", "data/AB/AB000000000000000000000000000003", "other/ab/ab000000000000000000000000000003"} {
		if _, err := ParseName(name); err == nil {
			t.Errorf("%q is taken for a pack", name)
		}
	}
}

// FuzzEntry: every row reads as an entry that is written as the same row.
func FuzzEntry(f *testing.F) {
	e := Entry{ID: chunk.ID{1}, Offset: 64, Stored: 116, Plain: 100, Encoding: chunk.Zstd, Sum: 5}
	f.Add(e.append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < EntrySize {
			return
		}
		e := parseEntry(b)
		if got := e.append(nil); !bytes.Equal(got, b[:EntrySize]) {
			t.Fatalf("%x is written as %x", b[:EntrySize], got)
		}
	})
}

// FuzzPackTable: any bytes are a pack with a table that fits them, or ErrCorrupt; with seal, the table is one that a writer with the key
// made of them.
func FuzzPackTable(f *testing.F) {
	store := mem.New()
	writePack(f, store, [][]byte{[]byte("one"), []byte("two")})
	whole, err := blob.Get(context.Background(), store, testRef.Name())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(whole, false)
	f.Add(whole, true)
	f.Add(whole[:len(whole)-1], false)
	f.Add([]byte{}, false)
	f.Fuzz(func(t *testing.T, b []byte, seal bool) {
		if seal {
			resign(t, b)
		}
		store := mem.New()
		if err := blob.Put(context.Background(), store, testRef.Name(), b); err != nil {
			t.Fatal(err)
		}
		entries, err := tableOf(store)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Fatalf("refused with %v", err)
			}
			return
		}
		if HeaderSize+len(entries)*(EntrySize+TagSize)+FooterSize > len(b) {
			t.Fatalf("%d entries in %d bytes", len(entries), len(b))
		}
		for i := range entries {
			if e := &entries[i]; int(e.Offset)+int(e.Stored) > len(b) || e.Plain > chunk.MaxSize {
				t.Fatalf("entry %d is %+v", i, *e)
			}
			if _, err := unseal(store, &entries[i]); err != nil && !errors.Is(err, ErrCorrupt) {
				t.Fatal(err)
			}
		}
	})
}

// resign makes header, checksum and MAC of b right, if there is a place for them.
func resign(t *testing.T, b []byte) {
	if len(b) < HeaderSize+FooterSize {
		return
	}
	copy(b, header(testRef, testVault))
	foot := b[len(b)-FooterSize:]
	copy(foot[FooterSize-8:], footMagic)
	count, off, err := parseFooter(foot, int64(len(b)))
	if err != nil {
		return
	}
	table := b[off : len(b)-FooterSize]
	k, err := testSecret.derive(testRef.ID)
	if err != nil {
		t.Fatal(err)
	}
	copy(foot, footer(count, off, table, k.tableMAC(b[:HeaderSize], table)))
	if binary.LittleEndian.Uint32(foot[4:]) != crc32.Checksum(table, castagnoli) {
		t.Fatal("footer has no checksum of the table")
	}
}
