package row

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-vm/holdfast/internal/point"
	"github.com/holdfast-vm/holdfast/internal/vault/chunk"
	"github.com/holdfast-vm/holdfast/internal/vault/log"
	"github.com/holdfast-vm/holdfast/internal/vault/pack"
)

var update = flag.Bool("update", false, "write the golden files")

func randomPoint(rng *rand.Rand, disks int) point.RecoveryPoint {
	p := point.RecoveryPoint{ID: point.NewID(), VM: fmt.Sprint("vm ", rng.IntN(9)),
		Time:       time.Unix(rng.Int64N(1e9), 0).UTC(),
		Definition: point.Definition{Kind: point.ForLibvirt, InactiveXML: strings.Repeat("<a/>", rng.IntN(100))}}
	for i := range disks {
		root := make([]byte, chunk.IDSize)
		for j := range root {
			root[j] = byte(rng.Uint32())
		}
		p.Disks = append(p.Disks, point.Disk{Name: fmt.Sprint("vd", i), Size: rng.Int64N(1 << 40),
			Root: fmt.Sprintf("%x", root)})
	}
	return p
}

func randomTrees(rng *rand.Rand, n int) (ts []Tree) {
	for range n {
		t := Tree{Chunks: rng.Int64()}
		for i := range t.Line {
			t.Line[i] = byte(rng.Uint32())
		}
		for i := range t.Root {
			t.Root[i] = byte(rng.Uint32())
		}
		ts = append(ts, t)
	}
	return ts
}

func randomPlace(rng *rand.Rand) Place {
	p := Place{Slot: rng.Uint32(), Entry: pack.Entry{Kind: pack.Manifest, Encoding: chunk.Zstd, Offset: rng.Uint32(),
		Stored: rng.Uint32(), Plain: rng.Uint32(), Sum: rng.Uint32(), Nonce: rng.Uint32()}}
	for i := range p.Pack {
		p.Pack[i] = byte(rng.Uint32())
	}
	for i := range p.ID {
		p.ID[i] = byte(rng.Uint32())
	}
	for i := range p.Salt {
		p.Salt[i] = byte(rng.Uint32())
	}
	return p
}

// A record reads back as it was written; one of a point that is too large for an entry of the log
// says so, is small enough, and keeps what finds the point and its manifest.
func TestRecordsReadBack(t *testing.T) {
	for seed := range uint64(60) {
		rng := rand.New(rand.NewPCG(seed, 1))
		n := rng.IntN(5)
		if seed%10 == 0 {
			n = 1000
		}
		want := Row{Point: Summary(ptr(randomPoint(rng, n))), Trees: randomTrees(rng, n), Manifest: randomPlace(rng)}
		b, err := want.Encode()
		if err != nil || len(b) > MaxSize {
			t.Fatalf("seed %d: %d bytes, %v", seed, len(b), err)
		}
		got, err := Decode(b)
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		if got.Short != (n == 1000) {
			t.Fatalf("seed %d: of %d disks it is short: %v", seed, n, got.Short)
		}
		if got.Short {
			want.Short, want.Trees, want.Point = true, nil, Brief(&want.Point)
		}
		if !reflect.DeepEqual(*got, want) {
			t.Fatalf("seed %d: %+v\nreads back as\n%+v", seed, want, *got)
		}
	}
}

func ptr[T any](v T) *T { return &v }

// A manifest reads back whole, also through a record that carries it.
func TestManifestsReadBack(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	want := Manifest{Point: randomPoint(rng, 3), Trees: randomTrees(rng, 3)}
	b, err := EncodeManifest(&want)
	if err != nil {
		t.Fatal(err)
	}
	r := Row{Point: Summary(&want.Point), Trees: want.Trees, Inline: b}
	raw, err := r.Encode()
	if err != nil {
		t.Fatal(err)
	}
	back, err := Decode(raw)
	if err != nil || !bytes.Equal(back.Inline, b) {
		t.Fatalf("the manifest in the record differs: %v", err)
	}
	got, err := DecodeManifest(back.Inline)
	if err != nil || !reflect.DeepEqual(*got, want) {
		t.Fatalf("%+v, %v", got, err)
	}
}

// The stored form of a record does not change by itself.
func TestGoldenRecord(t *testing.T) {
	r := Row{Point: point.RecoveryPoint{ID: "000102030405060708090a0b0c0d0e0f", VM: "web",
		Time:        time.Unix(1700000000, 0).UTC(),
		Consistency: point.Crash, ConsistencyReason: "test", Rung: point.Offline,
		Disks: []point.Disk{{Name: "vda", Size: 5}}}}
	r.Trees = []Tree{{Line: Line{1}, Root: chunk.ID{2}, Chunks: 3}}
	r.Manifest = Place{Pack: log.ObjectID{4}, Slot: 5, Entry: pack.Entry{ID: chunk.ID{6}, Kind: pack.Manifest,
		Encoding: chunk.Zstd, Offset: 7, Stored: 8, Plain: 9, Sum: 10, Nonce: 11, Salt: log.Salt{12}}}
	path := filepath.Join("testdata", "record.golden")
	if *update {
		b, err := r.Encode()
		if err == nil {
			err = os.MkdirAll("testdata", 0o755)
		}
		if err == nil {
			err = os.WriteFile(path, b, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	got, err := Decode(b)
	if err != nil || !reflect.DeepEqual(*got, r) {
		t.Fatalf("the golden record reads as %+v, %v", got, err)
	}
}

// Any bytes are a record or ErrCorrupt, and what reads can be written again.
func FuzzDecode(f *testing.F) {
	rng := rand.New(rand.NewPCG(3, 3))
	r := Row{Point: Summary(ptr(randomPoint(rng, 2))), Trees: randomTrees(rng, 2), Manifest: randomPlace(rng)}
	whole, err := r.Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(whole, false)
	f.Add([]byte(`{"point":{"id":"x"},"inline":"AA=="}`), true)
	f.Add([]byte(`{"point":null}`), true)
	f.Add([]byte(`{"point":{},"trees":"AAAA","manifest":{}}`), true)
	f.Fuzz(func(t *testing.T, b []byte, squeezed bool) {
		if squeezed {
			b = encoder.EncodeAll(b, nil)
		}
		for _, read := range []func([]byte) error{
			func(b []byte) error { _, err := DecodeManifest(b); return err },
			func(b []byte) error {
				r, err := Decode(b)
				if err == nil {
					_, err = r.Encode()
				}
				return err
			},
		} {
			if err := read(b); err != nil && !errors.Is(err, ErrCorrupt) {
				t.Fatal(err)
			}
		}
	})
}
