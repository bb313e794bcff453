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
	"maps"
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

// goldenVault is what the golden vault must read as.
type goldenVault struct {
	Points []struct {
		Point  struct{ ID string }
		SHA256 map[string]string
		Notes  []note
	}
	Deleted, Purged, Held, Inline []string
	DeletedDisks                  []map[string]string `json:"deleted_disks"`
	Ledger                        []struct {
		Point string
		note
	}
}

// The golden vault reads as it must, with either of its keys.
func TestGoldenVault(t *testing.T) {
	var want goldenVault
	if err := json.Unmarshal(readFile(t, filepath.Join(golden, "expected.json")), &want); err != nil {
		t.Fatal(err)
	}
	for _, keyFile := range []string{"identity.txt", "passphrase.txt"} {
		v, err := open(filepath.Join(golden, "vault"), readFile(t, filepath.Join(golden, keyFile)))
		if err != nil {
			t.Fatalf("%s: %v", keyFile, err)
		}
		for _, p := range want.Points {
			requireDisks(t, v, p.Point.ID, p.SHA256)
			if got, err := v.notes(p.Point.ID); err != nil || !slices.EqualFunc(got, p.Notes, sameNote) {
				t.Errorf("point %s has notes %v, want %v: %v", p.Point.ID, got, p.Notes, err)
			}
			if got, want := v.has("H", p.Point.ID), slices.Contains(want.Held, p.Point.ID); got != want {
				t.Errorf("point %s is held: %v, want %v", p.Point.ID, got, want)
			}
			r, err := v.record(p.Point.ID)
			if want := slices.Contains(want.Inline, p.Point.ID); err != nil || (r.Inline != nil) != want {
				t.Errorf("the manifest of point %s stands in its record: %v, want %v: %v", p.Point.ID, !want, want, err)
			}
		}
		requireOneTruth(t, v)
		requireGone(t, v, &want)
		requireLedger(t, v, &want)
	}
}

func readFile(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func requireDisks(t *testing.T, v *vaultDir, id string, sums map[string]string) {
	t.Helper()
	if len(sums) == 0 {
		t.Errorf("of point %s no disk is known", id)
	}
	for name, sum := range sums {
		got := sha256.Sum256(readDisk(t, v, id, name))
		if hex.EncodeToString(got[:]) != sum {
			t.Errorf("point %s, %s: it holds other bytes", id, name)
		}
	}
}

// requireGone checks which points were deleted, and which are gone.
func requireGone(t *testing.T, v *vaultDir, want *goldenVault) {
	t.Helper()
	if n := len(v.pointIDs()); n != len(want.Points)+len(want.Deleted) {
		t.Errorf("%d points live, want %d and %d that are deleted", n, len(want.Points), len(want.Deleted))
	}
	for i, id := range want.Deleted {
		requireDisks(t, v, id, want.DeletedDisks[i])
	}
	for _, id := range v.pointIDs() {
		if got, want := v.has("D", id), slices.Contains(want.Deleted, id); got != want {
			t.Errorf("point %s is deleted: %v, want %v", id, got, want)
		}
	}
	for _, id := range want.Purged {
		if _, err := v.point(id); err == nil || v.has("G", id) {
			t.Errorf("point %s is there, or was not walked to its end", id)
		}
	}
}

func requireLedger(t *testing.T, v *vaultDir, want *goldenVault) {
	t.Helper()
	got, err := v.ledger()
	if err != nil || len(got) != len(want.Ledger) {
		t.Fatalf("the ledger has %d entries, want %d: %v", len(got), len(want.Ledger), err)
	}
	for i, e := range want.Ledger {
		if got[i].of != e.Point || !sameNote(got[i], e.note) {
			t.Errorf("the ledger has %+v, want %+v", got[i], e)
		}
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

// written is a vault that today's code wrote, and what it was given.
type written struct {
	dir   string
	key   string
	disks map[string][]byte // by point and disk name
	notes map[string][]byte // by point and note
}

// writeVault writes points of two random disks of size bytes and up into a fresh vault, with some
// checkpoints.
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
		vault.Options{Workers: 2, PackSize: int64(chunkSize)})
	if err != nil {
		t.Fatal(err)
	}
	vda := make([]byte, size+rng.IntN(size))
	vdb := make([]byte, size/2+rng.IntN(size))
	for i := range 4 {
		scribble(rng, vda)
		scribble(rng, vdb)
		id := w.commit(t, v, map[string][]byte{"vda": vda, "vdb": vdb})
		if i == 2 {
			w.purge(t, v, id)
		}
		if i == 0 {
			holdOften(t, v, id)
		}
		if _, err := v.CollectGarbage(ctx, vault.GCOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	return w
}

// holdOften holds a point and lets it go so often that a checkpoint is due: one each 64 entries.
func holdOften(t *testing.T, v *vault.Vault, id point.ID) {
	t.Helper()
	for range 35 {
		if err := v.Hold(context.Background(), id, "somebody"); err != nil {
			t.Fatal(err)
		}
		if err := v.Release(context.Background(), id, "somebody"); err != nil {
			t.Fatal(err)
		}
	}
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

// purge removes a point, of which nothing is to be read any more.
func (w *written) purge(t *testing.T, v *vault.Vault, id point.ID) {
	t.Helper()
	if err := v.PurgePoint(context.Background(), id); err != nil {
		t.Fatal(err)
	}
	of := func(key string, _ []byte) bool { return strings.HasPrefix(key, string(id)) }
	maps.DeleteFunc(w.disks, of)
	maps.DeleteFunc(w.notes, of)
}

func (w *written) commit(t *testing.T, v *vault.Vault, disks map[string][]byte) point.ID {
	t.Helper()
	ctx := context.Background()
	s, err := v.Begin(ctx, "")
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
	return p.ID
}

// Every byte that today's code stores reads back through the text.
func TestFreshVaults(t *testing.T) {
	indexed := 0
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
		if n := len(v.pointIDs()); n != 3 {
			t.Errorf("seed %d: %d points live, want 3", seed, n)
		}
		requireOneTruth(t, v)
		indexed += requireIndex(t, v)
	}
	if indexed == 0 {
		t.Error("no vault has an index")
	}
}

// requireOneTruth checks that the newest checkpoint and the entries after it come to what all
// entries do.
func requireOneTruth(t *testing.T, v *vaultDir) {
	t.Helper()
	names, err := v.objects("checkpoint")
	if err != nil || len(names) == 0 {
		t.Fatalf("%d checkpoints: %v", len(names), err)
	}
	all, err := v.log.entries()
	if err != nil {
		t.Fatal(err)
	}
	want, err := foldLog(all)
	if err != nil {
		t.Fatal(err)
	}
	if !maps.EqualFunc(v.state.living(), want.living(), bytes.Equal) || v.state.sums != want.sums {
		t.Error("the entries fold to other than the newest checkpoint and what follows it")
	}
}

// A vault whose log was lost and made anew reads back: another tenure of the log is its truth.
func TestRepairedVaults(t *testing.T) {
	w := writeVault(t, 4, 200<<10)
	for _, lost := range []string{"log", "checkpoint", "state"} {
		if err := os.RemoveAll(filepath.Join(w.dir, lost)); err != nil {
			t.Fatal(err)
		}
	}
	store, err := dir.Open(w.dir)
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	if _, err := vault.Repair(t.Context(), store, vault.Key{Identity: w.key}, vault.RepairOptions{}); err != nil {
		t.Fatal(err)
	}
	v, err := open(w.dir, []byte(w.key))
	if err != nil {
		t.Fatal(err)
	}
	for which, want := range w.disks {
		id, name, _ := strings.Cut(which, " ")
		if !bytes.Equal(readDisk(t, v, id, name), want) {
			t.Errorf("%s holds other bytes", which)
		}
	}
	requireOneTruth(t, v)
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
