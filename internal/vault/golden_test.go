package vault_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
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

// The golden vault is of format 1 for ever. Only a new format gets a new one, beside it; -update is for that day.
var update = flag.Bool("update", false, "write testdata/golden anew")

const golden = "testdata/golden"

// goldenPoint is what a point of the golden vault must read as.
type goldenPoint struct {
	Point  point.RecoveryPoint `json:"point"`
	SHA256 map[string]string   `json:"sha256"` // of disks by name, and of files by role/name
	Notes  []vault.Note        `json:"notes"`
}

// Today's code reads, with either key, every byte that the code which wrote the golden vault was given.
func TestGolden(t *testing.T) {
	if *update {
		writeGolden(t)
	}
	store := openCopy(t, filepath.Join(golden, "vault"))
	for file, key := range goldenKeys(t) {
		v, err := vault.Open(context.Background(), store, key, vault.Options{Workers: 2})
		if err != nil {
			t.Fatalf("open with %s: %v", file, err)
		}
		requireGoldenPoints(t, v)
		r, err := v.Check(context.Background(), vault.CheckOptions{ReadData: true})
		if err != nil || len(r.Damage)+len(r.Warnings) > 0 {
			t.Errorf("check with %s: %+v, %v", file, r, err)
		}
	}
}

func requireGoldenPoints(t *testing.T, v *vault.Vault) {
	t.Helper()
	points, err := v.Points(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	var want []goldenPoint
	if err := json.Unmarshal(readFile(t, filepath.Join(golden, "expected.json")), &want); err != nil {
		t.Fatal(err)
	}
	if len(points) != len(want) {
		t.Fatalf("%d points, want %d", len(points), len(want))
	}
	for i, p := range points {
		if !reflect.DeepEqual(*p, want[i].Point) {
			t.Errorf("point %s reads as %+v, want %+v", p.ID, *p, want[i].Point)
		}
		if got := hashes(t, v, p); !reflect.DeepEqual(got, want[i].SHA256) {
			t.Errorf("point %s holds %v, want %v", p.ID, got, want[i].SHA256)
		}
		if got := notes(t, v, p.ID, ""); !sameNotes(got, want[i].Notes, true) {
			t.Errorf("point %s has notes %v, want %v", p.ID, got, want[i].Notes)
		}
	}
}

func hashes(t *testing.T, v *vault.Vault, p *point.RecoveryPoint) map[string]string {
	t.Helper()
	out := map[string]string{}
	read := func(name, root string, size int64) {
		b, err := restore(context.Background(), v, point.Disk{Root: root, Size: size})
		if err != nil {
			t.Fatalf("point %s, %s: %v", p.ID, name, err)
		}
		out[name] = hashOf(b)
	}
	for _, d := range p.Disks {
		read(d.Name, d.Root, d.Size)
	}
	for _, f := range p.Files {
		read(f.Role+"/"+f.Name, f.Root, f.Size)
	}
	return out
}

func hashOf(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
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

// writeGolden makes a vault that has one of everything: plain and compressed chunks, one stored once for two places, holes, a disk of
// holes, a tree of two levels, a last chunk that is cut, a file, notes, an index segment and a pack that none covers.
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
	const passphrase = "golden vaults keep no secrets"
	v := initGolden(t, store, vault.Key{Recipient: recipient}, vault.Key{Passphrase: []byte(passphrase)}, vault.Key{Identity: identity})
	vda, vdb := goldenDisk(70*testChunk+100), &disk{data: make([]byte, 5*testChunk)}
	nvram := &disk{data: bytes.Repeat([]byte("holdfast"), 3*testChunk/16)}
	want := []goldenPoint{commitGolden(t, v, 1, vda, vdb, nvram)}
	if _, err := v.CollectGarbage(context.Background(), vault.GCOptions{}); err != nil { // writes the index segment
		t.Fatal(err)
	}
	copy(vda.data[66*testChunk:], "a change")
	want = append(want, commitGolden(t, v, 2, vda, vdb, nvram))
	addGoldenNotes(t, v, &want[1])
	raw, err := json.MarshalIndent(want, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	keep(t, root, filepath.Join(golden, "vault"))
	for name, data := range map[string][]byte{"expected.json": raw, "identity.txt": []byte(identity), "passphrase.txt": []byte(passphrase)} {
		if err := os.WriteFile(filepath.Join(golden, name), append(data, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func initGolden(t *testing.T, store blob.Store, recipient, passphrase, identity vault.Key) *vault.Vault {
	t.Helper()
	_, err := vault.Init(context.Background(), store, vault.InitOptions{ChunkSize: testChunk, Keys: []vault.NamedKey{
		{Name: "age", Key: recipient}, {Name: "passphrase", Key: passphrase}}})
	if err != nil {
		t.Fatal(err)
	}
	return openVault(t, store, identity)
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

func commitGolden(t *testing.T, v *vault.Vault, n int, vda, vdb, nvram *disk) goldenPoint {
	t.Helper()
	ctx := context.Background()
	s := begin(t, v)
	for _, d := range []*disk{vda, vdb, nvram} {
		if err := put(ctx, s, d, extent.Of(extent.Extent{Len: int64(len(d.data))}), nil); err != nil {
			t.Fatal(err)
		}
	}
	p := newPoint("golden machine", vda, vdb)
	p.Time = time.Date(2026, 1, n, 12, 0, 0, 0, time.UTC)
	p.Tags = map[string]string{"n": string(rune('0' + n))}
	p.Definition = point.Definition{Kind: "qemu", Args: []string{"qemu-system-x86_64", "-nodefaults"}, MachineType: "pc-q35-7.2"}
	p.Files = []point.File{{Role: "nvram", Path: "/var/lib/VARS.fd", Name: "VARS.fd", Mode: 0o600, Size: int64(len(nvram.data)), Root: nvram.root}}
	if err := s.Commit(ctx, p); err != nil {
		t.Fatal(err)
	}
	return goldenPoint{Point: *p, SHA256: map[string]string{"vda": hashOf(vda.data), "vdb": hashOf(vdb.data), "nvram/VARS.fd": hashOf(nvram.data)}}
}

func addGoldenNotes(t *testing.T, v *vault.Vault, p *goldenPoint) {
	t.Helper()
	for kind, body := range map[string]string{vault.NoteDrill: `{"verified":true,"reason":""}`, vault.NoteScreenshot: ""} {
		p.Notes = append(p.Notes, addNote(t, v, p.Point.ID, kind, []byte(body)))
	}
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
