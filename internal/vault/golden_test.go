package vault_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-vm/holdfast/internal/blob"
	"github.com/holdfast-vm/holdfast/internal/blob/dir"
	"github.com/holdfast-vm/holdfast/internal/extent"
	"github.com/holdfast-vm/holdfast/internal/point"
	"github.com/holdfast-vm/holdfast/internal/vault"
)

// The golden vault is of its format for ever. Only a new format gets a new one, beside it; -update
// is for that day.
var update = flag.Bool("update", false, "write testdata/golden anew")

const (
	golden       = "testdata/golden"
	goldenPhrase = "golden vaults keep no secrets"
	goldenHolder = "a test that holds it"
	goldenKind   = "golden-entry"
)

// goldenVault is what the golden vault must read as.
type goldenVault struct {
	Points  []goldenPoint  `json:"points"`
	Deleted []point.ID     `json:"deleted"` // softly
	Purged  []point.ID     `json:"purged"`  // and collected
	Held    []point.ID     `json:"held"`
	Inline  []point.ID     `json:"inline"` // whose manifests stand in their records
	Ledger  []vault.Entry  `json:"ledger"`
	Until   []time.Time    `json:"until"` // of Deleted
	Hashes  []goldenHashes `json:"deleted_disks"`
}

// goldenHashes are SHA-256 of disks by name, and of files by role/name.
type goldenHashes map[string]string

type goldenPoint struct {
	Point  point.RecoveryPoint `json:"point"`
	SHA256 goldenHashes        `json:"sha256"`
	Notes  []vault.Note        `json:"notes"`
}

// Today's code reads, with either key, all that the code which wrote the golden vault was given.
func TestGolden(t *testing.T) {
	if *update {
		writeGolden(t)
	}
	var want goldenVault
	if err := json.Unmarshal(readFile(t, filepath.Join(golden, "expected.json")), &want); err != nil {
		t.Fatal(err)
	}
	store := openCopy(t, filepath.Join(golden, "vault"))
	for file, key := range goldenKeys(t) {
		v, err := vault.Open(t.Context(), store, key, vault.Options{Workers: 2})
		if err != nil {
			t.Fatalf("open with %s: %v", file, err)
		}
		requireGoldenPoints(t, v, want.Points)
		requireGoldenDeleted(t, v, &want)
		requireGoldenLedger(t, v, want.Ledger)
		r, err := v.Check(t.Context(), vault.CheckOptions{ReadData: true})
		if err != nil || len(r.Damage)+len(r.Warnings) > 0 {
			t.Errorf("check with %s: %+v, %v", file, r, err)
		}
		if err := v.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func requireGoldenPoints(t *testing.T, v *vault.Vault, want []goldenPoint) {
	t.Helper()
	points, err := v.Points(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(points) != len(want) {
		t.Fatalf("%d points, want %d", len(points), len(want))
	}
	for i, p := range points {
		if !reflect.DeepEqual(*p, want[i].Point) {
			t.Errorf("point %s reads as %+v, want %+v", p.ID, *p, want[i].Point)
		}
		if got := hashes(t, v, p); !reflect.DeepEqual(goldenHashes(got), want[i].SHA256) {
			t.Errorf("point %s holds %v, want %v", p.ID, got, want[i].SHA256)
		}
		if got := notes(t, v, p.ID, ""); !sameNotes(got, want[i].Notes, true) {
			t.Errorf("point %s has notes %v, want %v", p.ID, got, want[i].Notes)
		}
	}
}

func requireGoldenDeleted(t *testing.T, v *vault.Vault, want *goldenVault) {
	t.Helper()
	deleted, err := v.Deleted(t.Context())
	if err != nil || len(deleted) != len(want.Deleted) {
		t.Fatalf("%d points are deleted, want %d: %v", len(deleted), len(want.Deleted), err)
	}
	for i, d := range deleted {
		if d.Point.ID != want.Deleted[i] || !d.Until.Equal(want.Until[i]) {
			t.Errorf("point %s is deleted until %s, want %s until %s", d.Point.ID, d.Until, want.Deleted[i],
				want.Until[i])
		}
		if got := hashes(t, v, d.Point); !reflect.DeepEqual(goldenHashes(got), want.Hashes[i]) {
			t.Errorf("deleted point %s holds %v, want %v", d.Point.ID, got, want.Hashes[i])
		}
	}
	for _, id := range want.Purged {
		if err := v.UndeletePoint(t.Context(), id); !errors.Is(err, vault.ErrNoPoint) {
			t.Errorf("purged point %s can be brought back: %v", id, err)
		}
	}
	for _, id := range want.Held {
		err := v.PurgePoint(t.Context(), id)
		if !errors.Is(err, vault.ErrHeld) || !strings.Contains(err.Error(), goldenHolder) {
			t.Errorf("held point %s is not refused: %v", id, err)
		}
	}
}

func requireGoldenLedger(t *testing.T, v *vault.Vault, want []vault.Entry) {
	t.Helper()
	got, err := v.Ledger(t.Context(), goldenKind)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("the ledger reads as %+v, want %+v: %v", got, want, err)
	}
}

func readFile(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func openCopy(t *testing.T, from string) blob.Store {
	t.Helper()
	to := filepath.Join(t.TempDir(), "vault")
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
	store, err := dir.Open(to)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { store.Close() })
	return store
}

func goldenKeys(t *testing.T) map[string]vault.Key {
	t.Helper()
	text := func(name string) string { return strings.TrimSpace(string(readFile(t, filepath.Join(golden, name)))) }
	return map[string]vault.Key{
		"identity.txt":   {Identity: text("identity.txt")},
		"passphrase.txt": {Passphrase: []byte(text("passphrase.txt"))},
	}
}

// writer writes the golden vault.
type writer struct {
	*testing.T
	v    *vault.Vault
	want goldenVault
	day  int // of the last point
}

// writeGolden makes a vault that has one of everything: plain and compressed chunks, one stored
// once for two places, holes, a disk of holes, trees of one and of two levels, a last chunk that is
// cut, a file, two machines, a snapshot, a point that stored nothing, notes, an entry of the
// ledger, a hold, a deleted point, and one that was purged and collected, so that rows of its pack
// were moved.
func writeGolden(t *testing.T) {
	if err := os.RemoveAll(golden); err != nil {
		t.Fatal(err)
	}
	root := filepath.Join(t.TempDir(), "vault")
	store, err := dir.Create(root)
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	identity, recipient := testKey(t)
	w := &writer{T: t, v: initGolden(t, store, identity, recipient)}
	w.web()
	w.database()
	w.requireNil(w.v.Close())
	keep(t, root, filepath.Join(golden, "vault"))
	raw, err := json.MarshalIndent(w.want, "", "  ")
	w.requireNil(err)
	for name, data := range map[string][]byte{"expected.json": raw, "identity.txt": []byte(identity),
		"passphrase.txt": []byte(goldenPhrase)} {
		w.requireNil(os.WriteFile(filepath.Join(golden, name), append(data, '\n'), 0o644))
	}
}

func initGolden(t *testing.T, store blob.Store, identity, recipient string) *vault.Vault {
	t.Helper()
	_, err := vault.Init(t.Context(), store, vault.InitOptions{ChunkSize: testChunk, Keys: []vault.NamedKey{
		{Name: "age", Key: vault.Key{Recipient: recipient}},
		{Name: "passphrase", Key: vault.Key{Passphrase: []byte(goldenPhrase)}}}})
	if err != nil {
		t.Fatal(err)
	}
	v, err := vault.Open(t.Context(), store, vault.Key{Identity: identity}, vault.Options{Workers: 1, Who: "golden"})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func (w *writer) requireNil(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

// web is a machine with three points: the first is held, the last stored nothing.
func (w *writer) web() {
	vda, vdb := goldenDisk(70*testChunk+100), &disk{data: make([]byte, 5*testChunk)}
	nvram := &disk{data: bytes.Repeat([]byte("holdfast"), 3*testChunk/16)}
	first := w.commit("web", nvram, whole, vda, vdb)
	w.requireNil(w.v.Hold(w.Context(), first.ID, goldenHolder))
	w.want.Held = append(w.want.Held, first.ID)
	copy(vda.data[66*testChunk:], "a change")
	second := w.commit("web", nvram, func(d *disk) extent.Set {
		return extent.Of(extent.Extent{Off: 66 * testChunk,
			Len: min(testChunk, int64(len(d.data)))}).Intersect(whole(d))
	}, vda, vdb)
	w.addNotes(second.ID)
	third := w.commit("web", nvram, func(*disk) extent.Set { return nil }, vda, vdb)
	w.want.Inline = append(w.want.Inline, third.ID)
}

// database is a machine whose first point is purged; its pack has chunks that the second needs too.
func (w *writer) database() {
	sda := randomDisk(3, 7)
	gone := w.commit("database", nil, whole, sda)
	w.want.Points = w.want.Points[:len(w.want.Points)-1]
	w.want.Purged = append(w.want.Purged, gone.ID)
	left := &disk{data: bytes.Clone(sda.data[:2*testChunk])}
	w.commit("database", nil, whole, left)
	w.requireNil(w.v.Enter(w.Context(), gone.ID, goldenKind, []byte(`{"name":"a point that is gone"}`)))
	w.requireNil(w.v.PurgePoint(w.Context(), gone.ID))
	for range 2 {
		_, err := w.v.CollectGarbage(w.Context(), vault.GCOptions{})
		w.requireNil(err)
	}
	var err error
	w.want.Ledger, err = w.v.Ledger(w.Context(), goldenKind)
	w.requireNil(err)
	copy(left.data, "what the deleted point has")
	w.delete(w.commit("database", nil, whole, left))
	w.snapshot(left)
}

// delete deletes the newest point softly.
func (w *writer) delete(p *point.RecoveryPoint) {
	w.requireNil(w.v.DeletePoint(w.Context(), p.ID, vault.MaxKeep))
	last := len(w.want.Points) - 1
	w.want.Deleted = append(w.want.Deleted, p.ID)
	w.want.Hashes = append(w.want.Hashes, w.want.Points[last].SHA256)
	w.want.Points = w.want.Points[:last]
	deleted, err := w.v.Deleted(w.Context())
	w.requireNil(err)
	w.want.Until = append(w.want.Until, deleted[0].Until)
}

// snapshot takes one of a disk that is stored already.
func (w *writer) snapshot(d *disk) {
	w.commitPoint("database", nil, func(*disk) extent.Set { return nil }, func(p *point.RecoveryPoint) {
		p.Kind, p.Name = point.Snapshot, "before the update"
	}, d)
	w.want.Inline = append(w.want.Inline, w.want.Points[len(w.want.Points)-1].Point.ID)
}

func whole(d *disk) extent.Set { return extent.Of(extent.Extent{Len: int64(len(d.data))}) }

func (w *writer) commit(vm string, nvram *disk, data func(*disk) extent.Set, disks ...*disk) *point.RecoveryPoint {
	w.Helper()
	return w.commitPoint(vm, nvram, data, func(*point.RecoveryPoint) {}, disks...)
}

func (w *writer) commitPoint(vm string, nvram *disk, data func(*disk) extent.Set, edit func(*point.RecoveryPoint),
	disks ...*disk,
) *point.RecoveryPoint {
	w.Helper()
	ctx := w.Context()
	s, err := w.v.Begin(ctx, "")
	w.requireNil(err)
	all := disks
	if nvram != nil {
		all = append(all[:len(all):len(all)], nvram)
	}
	for _, d := range all {
		w.requireNil(put(ctx, s, d, data(d), nil))
	}
	w.day++
	p := newPoint(vm, disks...)
	p.Time = time.Date(2026, 1, w.day, 12, 0, 0, 0, time.UTC)
	p.Tags = map[string]string{"n": string(rune('0' + w.day))}
	p.Definition = point.Definition{Kind: "qemu", Args: []string{"qemu-system-x86_64", "-nodefaults"},
		MachineType: "pc-q35-7.2"}
	sums := goldenHashes{}
	for i, d := range disks {
		sums[p.Disks[i].Name] = hashOf(d.data)
	}
	if nvram != nil {
		nvram.of = p.ID
		p.Files = []point.File{{Role: "nvram", Path: "/var/lib/VARS.fd", Name: "VARS.fd", Mode: 0o600,
			Size: int64(len(nvram.data)), Root: nvram.root}}
		sums["nvram/VARS.fd"] = hashOf(nvram.data)
	}
	edit(p)
	w.requireNil(s.Commit(ctx, p))
	w.want.Points = append(w.want.Points, goldenPoint{Point: *p, SHA256: sums})
	return p
}

func (w *writer) addNotes(id point.ID) {
	last := &w.want.Points[len(w.want.Points)-1]
	for kind, body := range map[string]string{vault.NoteDrill: `{"verified":true,"reason":""}`, vault.NoteScreenshot: ""} {
		last.Notes = append(last.Notes, addNote(w.T, w.v, id, kind, []byte(body)))
	}
}

func goldenDisk(size int) *disk {
	d := &disk{data: make([]byte, size)}
	rng := rand.New(rand.NewPCG(1, 1))
	for i := range testChunk { // does not compress
		d.data[i] = byte(rng.Uint32())
	}
	copy(d.data[3*testChunk:], bytes.Repeat([]byte("words that compress\n"), 2*testChunk/20))
	copy(d.data[69*testChunk:], d.data[:testChunk]) // stored already
	copy(d.data[70*testChunk:], "the last chunk is cut")
	return d
}

// keep copies a store's objects, all but the reserve.
func keep(t *testing.T, from, to string) {
	t.Helper()
	err := fs.WalkDir(os.DirFS(from), ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || path == "gc/reserve" || strings.HasPrefix(path, "tmp/") {
			return err
		}
		target := filepath.Join(to, path)
		if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
			return err
		}
		return os.WriteFile(target, readFile(t, filepath.Join(from, path)), 0o644)
	})
	if err != nil {
		t.Fatal(err)
	}
}
