package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"go/parser"
	"go/token"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-vm/holdfast/internal/blob/dir"
	"github.com/holdfast-vm/holdfast/internal/extent"
	"github.com/holdfast-vm/holdfast/internal/point"
	"github.com/holdfast-vm/holdfast/internal/vault"
	"github.com/holdfast-vm/holdfast/internal/vault/keys"
)

const golden = "../../../internal/vault/testdata/golden"

// The reader knows nothing but the text: it imports nothing of the project.
func TestReaderIsIndependent(t *testing.T) {
	allowed := []string{"filippo.io/age", "github.com/zeebo/blake3", "github.com/klauspost/compress/zstd",
		"golang.org/x/crypto/argon2"}
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ImportsOnly)
		if err != nil {
			t.Fatal(err)
		}
		for _, imp := range f.Imports {
			path := strings.Trim(imp.Path.Value, `"`)
			if strings.Contains(path, ".") && !slices.Contains(allowed, path) {
				t.Errorf("%s imports %s", name, path)
			}
		}
	}
}

// The golden vault reads as it must, with either of its keys.
func TestGoldenVault(t *testing.T) {
	var want []struct {
		Point  struct{ ID string }
		SHA256 map[string]string
		Notes  []note
	}
	raw, err := os.ReadFile(filepath.Join(golden, "expected.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(raw, &want); err != nil {
		t.Fatal(err)
	}
	for _, keyFile := range []string{"identity.txt", "passphrase.txt"} {
		key, err := os.ReadFile(filepath.Join(golden, keyFile))
		if err != nil {
			t.Fatal(err)
		}
		v, err := open(filepath.Join(golden, "vault"), key)
		if err != nil {
			t.Fatalf("%s: %v", keyFile, err)
		}
		for _, p := range want {
			for name, sum := range p.SHA256 {
				got := sha256.Sum256(readDisk(t, v, p.Point.ID, name))
				if hex.EncodeToString(got[:]) != sum {
					t.Errorf("%s, point %s, %s: it holds other bytes", keyFile, p.Point.ID, name)
				}
			}
			if got, err := v.notes(p.Point.ID); err != nil || !slices.EqualFunc(got, p.Notes, sameNote) {
				t.Errorf("%s, point %s has notes %v, want %v: %v", keyFile, p.Point.ID, got, p.Notes, err)
			}
		}
		requireSegments(t, v, 1)
	}
}

func sameNote(a, b note) bool {
	return a.ID == b.ID && a.Kind == b.Kind && a.Time.Equal(b.Time) && bytes.Equal(a.Body, b.Body)
}

func readDisk(t *testing.T, v *vaultDir, id, name string) []byte {
	t.Helper()
	b, err := v.disk(id, name)
	if err != nil {
		t.Fatalf("point %s, %s: %v", id, name, err)
	}
	return b
}

// disk returns a whole disk of a point.
func (v *vaultDir) disk(id, name string) ([]byte, error) {
	p, err := v.point(id)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	if err := v.copyDisk(&out, p, name); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// requireSegments checks that every row of every index segment stands in the table of its pack, and
// that no pack of a segment has more.
func requireSegments(t *testing.T, v *vaultDir, atLeast int) {
	t.Helper()
	names, err := v.objects("index")
	if err != nil {
		t.Fatal(err)
	}
	if len(names) < atLeast {
		t.Fatalf("%d index segments, want %d", len(names), atLeast)
	}
	for _, name := range names {
		s, err := v.readSegment(name)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		got := map[place]bool{}
		for _, r := range s.rows {
			got[r] = true
			if !s.mayHave(r.id) {
				t.Errorf("%s: the filter denies %x", name, r.id)
			}
		}
		if want := v.rowsOf(s.packs); !equalSets(got, want) || len(s.rows) != len(want) {
			t.Errorf("%s: %d rows, the tables of its packs have %d, or others", name, len(s.rows), len(want))
		}
		for i, p := range s.packs {
			if info, err := os.Stat(filepath.Join(v.dir, p)); err != nil || uint64(info.Size()) != s.sizes[i] {
				t.Errorf("%s: pack %s has not %d bytes", name, p, s.sizes[i])
			}
		}
	}
}

// rowsOf returns the rows of the tables of packs, as a segment has them.
func (v *vaultDir) rowsOf(packs []string) map[place]bool {
	out := map[place]bool{}
	for id, places := range v.places {
		for _, p := range places {
			if slices.Contains(packs, p.pack) {
				out[place{id: id, pack: p.pack, offset: p.offset, stored: p.stored, plainWord: p.plainWord}] = true
			}
		}
	}
	return out
}

func equalSets(a, b map[place]bool) bool {
	for p := range a {
		if !b[p] {
			return false
		}
	}
	return len(a) == len(b)
}

// written is a vault that today's code wrote, and what it was given.
type written struct {
	dir   string
	key   string
	disks map[string][]byte // by point and disk name
	notes map[string][]byte // by point and note
}

// writeVault writes points of two random disks of size bytes and up into a fresh vault, with an
// index segment.
func writeVault(t *testing.T, seed uint64, size int) written {
	t.Helper()
	ctx := context.Background()
	rng := rand.New(rand.NewPCG(seed, 3))
	w := written{dir: t.TempDir(), disks: map[string][]byte{}, notes: map[string][]byte{}}
	store, err := dir.Open(w.dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { store.Close() })
	if w.key, _, err = keys.NewIdentity(); err != nil {
		t.Fatal(err)
	}
	chunkSize := []int{16 << 10, 64 << 10, 1 << 20}[seed%3]
	if _, err := vault.Init(ctx, store,
		vault.InitOptions{ChunkSize: chunkSize,
			Keys: []vault.NamedKey{{Name: "x", Key: vault.Key{Identity: w.key}}}}); err != nil {
		t.Fatal(err)
	}
	v, err := vault.Open(ctx, store, vault.Key{Identity: w.key},
		vault.Options{Workers: 2, PackSize: int64(chunkSize) * 20})
	if err != nil {
		t.Fatal(err)
	}
	vda := make([]byte, size+rng.IntN(size))
	vdb := make([]byte, size/2+rng.IntN(size))
	for range 3 {
		scribble(rng, vda)
		scribble(rng, vdb)
		w.commit(t, v, map[string][]byte{"vda": vda, "vdb": vdb})
		if _, err := v.CollectGarbage(ctx, vault.GCOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	return w
}

func scribble(rng *rand.Rand, disk []byte) {
	for range 10 {
		at := rng.IntN(len(disk))
		part := disk[at:min(len(disk), at+rng.IntN(300<<10)+1)]
		for i := range part {
			switch at % 3 {
			case 0:
				part[i] = byte(rng.Uint32())
			case 1:
				part[i] = "some words "[i%11]
			default:
				part[i] = 0
			}
		}
	}
}

func (w *written) commit(t *testing.T, v *vault.Vault, disks map[string][]byte) {
	t.Helper()
	ctx := context.Background()
	s, err := v.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	p := &point.RecoveryPoint{ID: point.NewID(), VM: "vm", Time: time.Now(), Consistency: point.Crash,
		ConsistencyReason: "test"}
	for name, data := range disks {
		size := int64(len(data))
		out, err := s.PutDisk(ctx, vault.DiskInput{Size: size, Data: extent.Of(extent.Extent{Len: size}),
			Source: bytes.NewReader(data)})
		if err != nil {
			t.Fatal(err)
		}
		p.Disks = append(p.Disks, point.Disk{Name: name, Size: size, Root: out.Root})
		w.disks[fmt.Sprintf("%s %s", p.ID, name)] = bytes.Clone(data)
	}
	if err := s.Commit(ctx, p); err != nil {
		t.Fatal(err)
	}
	for i := range 2 {
		body := bytes.Repeat([]byte(p.ID), 100*i)
		n, err := v.AddNote(ctx, p.ID, vault.NoteDrill, body)
		if err != nil {
			t.Fatal(err)
		}
		w.notes[fmt.Sprintf("%s %s", p.ID, n.ID)] = body
	}
}

// Every byte that today's code stores reads back through the text.
func TestFreshVaults(t *testing.T) {
	for seed := range uint64(3) {
		w := writeVault(t, seed, 70*16<<10)
		v, err := open(w.dir, []byte("# a comment\n"+w.key+"\n"))
		if err != nil {
			t.Fatal(err)
		}
		for which, want := range w.disks {
			id, name, _ := strings.Cut(which, " ")
			if !bytes.Equal(readDisk(t, v, id, name), want) {
				t.Errorf("seed %d, %s: it holds other bytes", seed, which)
			}
		}
		if !w.notesRight(t, v) {
			t.Errorf("seed %d: not all notes can be read", seed)
		}
		requireSegments(t, v, 1)
	}
}

// Whichever byte of whichever object is changed, the reader says so or gives the right bytes: never
// others.
func TestDamageIsNeverRead(t *testing.T) {
	w := writeVault(t, 9, 100<<10)
	whole, err := open(w.dir, []byte(w.key))
	if err != nil {
		t.Fatal(err)
	}
	names, err := whole.objects("")
	if err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(5, 5))
	refused := 0
	for range 60 {
		path := filepath.Join(w.dir, names[rng.IntN(len(names))])
		good, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		bad := bytes.Clone(good)
		bad[rng.IntN(len(bad))] ^= 1 << rng.IntN(8)
		replace(t, path, bad)
		if !w.readsRight(t, path) {
			refused++
		}
		replace(t, path, good)
	}
	if refused == 0 {
		t.Error("no damage was noticed")
	}
}

func replace(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// readsRight reports whether all disks can be read; bytes that differ fail the test.
func (w *written) readsRight(t *testing.T, damaged string) bool {
	t.Helper()
	v, err := open(w.dir, []byte(w.key))
	if err != nil {
		return false
	}
	all := true
	for which, want := range w.disks {
		id, name, _ := strings.Cut(which, " ")
		got, err := v.disk(id, name)
		if err == nil && !bytes.Equal(got, want) {
			t.Errorf("with a bit of %s flipped, %s reads as other bytes", damaged, which)
		}
		all = all && err == nil
	}
	return w.notesRight(t, v) && all
}

// notesRight reports whether all notes can be read; bytes that differ fail the test.
func (w *written) notesRight(t *testing.T, v *vaultDir) bool {
	t.Helper()
	all := true
	for which, want := range w.notes {
		point, id, _ := strings.Cut(which, " ")
		notes, err := v.notes(point)
		i := slices.IndexFunc(notes, func(n note) bool { return n.ID == id })
		if err == nil && (i < 0 || notes[i].Kind != vault.NoteDrill || !bytes.Equal(notes[i].Body, want)) {
			t.Errorf("note %s reads as another, or not at all", which)
		}
		all = all && err == nil
	}
	return all
}
