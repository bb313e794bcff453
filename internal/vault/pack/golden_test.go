package pack

import (
	"bytes"
	"context"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/blob"
	"github.com/holdfast-vm/holdfast/internal/blob/dir"
	"github.com/holdfast-vm/holdfast/internal/vault/chunk"
	"github.com/holdfast-vm/holdfast/internal/vault/log"
)

// The golden packs are of format 1 for ever; -update is for the day on which a new format gets new
// ones.
var update = flag.Bool("update", false, "write testdata/golden anew")

const golden = "testdata/golden"

// goldenPack is what a golden pack must read as. Bytes are hexadecimal digits.
type goldenPack struct {
	Name string      `json:"name"`
	Size uint64      `json:"size"`
	Sum  string      `json:"sum"`
	Rows []goldenRow `json:"rows"`
}

type goldenRow struct {
	ID       string         `json:"id"`
	Kind     Kind           `json:"kind"`
	Encoding chunk.Encoding `json:"encoding"`
	Nonce    uint32         `json:"nonce"`
	Salt     string         `json:"salt"`
	Sum      uint32         `json:"sum"`
	Plain    string         `json:"plain"`
}

// goldenKeys returns the keys that a vault derives from the data key 1, 0, 0, ..., its ID being 2,
// 0, 0, ....
func goldenKey(t *testing.T, what string) [32]byte {
	t.Helper()
	dataKey, vault := [32]byte{1}, [16]byte{2}
	k, err := hkdf.Key(sha256.New, dataKey[:], vault[:], "holdfast vault v1 "+what, 32)
	if err != nil {
		t.Fatal(err)
	}
	return [32]byte(k)
}

// goldenBytes are what the rows hold, and as what they are stored: the second is a frame of zstd
// that says "100 times x".
func goldenBytes() (plain, encoded [][]byte) {
	plain = [][]byte{[]byte("the first chunk"), bytes.Repeat([]byte("x"), 100), []byte("a node"),
		[]byte(`{"a":"manifest"}`), noise(1, 300)}
	encoded = append(encoded, plain...)
	encoded[1] = []byte{0x28, 0xb5, 0x2f, 0xfd, 0x20, 100, 0x23, 0x03, 0x00, 'x'}
	return plain, encoded
}

// goldenWriter is a writer of golden packs.
type goldenWriter struct {
	*Writer
	t     *testing.T
	plain map[chunk.ID][]byte
}

func (w *goldenWriter) row(i int, kind Kind) {
	w.t.Helper()
	plain, encoded := goldenBytes()
	key := "chunk id"
	if kind != Data {
		key = "node id"
	}
	id := chunk.NewHasher(goldenKey(w.t, key)).ID(plain[i])
	enc := chunk.Encoding(min(1, len(plain[i])-len(encoded[i])))
	if _, err := w.Append(context.Background(), kind, id, len(plain[i]), encoded[i], enc); err != nil {
		w.t.Fatal(err)
	}
	w.plain[id] = plain[i]
}

// writeGolden writes the golden packs to a store: one with rows of its own, one with a row of its
// own, two that were moved from the first, and one that was joined.
func writeGolden(t *testing.T, store blob.Store) []goldenPack {
	t.Helper()
	secret := NewSecret(goldenKey(t, "pack"))
	plain := map[chunk.ID][]byte{}
	begin := func(n byte) *goldenWriter {
		return &goldenWriter{secret.begin(store, [16]byte{2}, testID(int(n)), log.Salt{n, 15: n}), t, plain}
	}
	first, second, third := begin(1), begin(2), begin(3)
	first.row(0, Data)
	first.row(1, Data)
	first.row(2, Node)
	first.row(3, Manifest)
	o, entries, err := first.Commit(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	second.row(4, Data)
	for _, i := range []int{1, 2} {
		p := make([]byte, entries[i].Stored)
		if err := NewReader(secret, store).ReadSealed(t.Context(), o, p, int64(entries[i].Offset)); err != nil {
			t.Fatal(err)
		}
		if _, err := second.Move(t.Context(), o.ID, &entries[i], p); err != nil {
			t.Fatal(err)
		}
	}
	third.row(3, Manifest)
	if _, ok, err := second.Join(t.Context(), third.Writer); !ok || err != nil {
		t.Fatalf("joined: %v, %v", ok, err)
	}
	o2, entries2, err := second.Commit(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return []goldenPack{describe(o, entries, plain), describe(o2, entries2, plain)}
}

func describe(o log.Object, entries []Entry, plain map[chunk.ID][]byte) goldenPack {
	p := goldenPack{Name: o.Name(), Size: o.Size, Sum: hex.EncodeToString(o.Sum[:])}
	for i := range entries {
		e := &entries[i]
		p.Rows = append(p.Rows, goldenRow{ID: e.ID.String(), Kind: e.Kind, Encoding: e.Encoding, Nonce: e.Nonce,
			Salt: e.Salt.String(), Sum: e.Sum, Plain: hex.EncodeToString(plain[e.ID])})
	}
	return p
}

// The golden packs read as they must, and what is put into a pack makes the same bytes as ever.
func TestGolden(t *testing.T) {
	store, err := dir.Create(t.TempDir() + "/store")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { store.Close() })
	made := writeGolden(t, store)
	facts := filepath.Join(golden, "expected.json")
	if *update {
		writeFacts(t, store, facts, made)
	}
	raw, err := os.ReadFile(facts)
	var want []goldenPack
	if err == nil {
		err = json.Unmarshal(raw, &want)
	}
	if err != nil || len(want) != len(made) {
		t.Fatalf("%d golden packs: %v", len(want), err)
	}
	for i := range want {
		file, err := os.ReadFile(filepath.Join(golden, filepath.FromSlash(want[i].Name)))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := blob.Get(t.Context(), store, made[i].Name); err != nil || !bytes.Equal(got, file) {
			t.Errorf("%s is written otherwise today: %v", want[i].Name, err)
		}
		requireGolden(t, want[i], file)
	}
}

func writeFacts(t *testing.T, store blob.Store, facts string, made []goldenPack) {
	t.Helper()
	if err := os.RemoveAll(golden); err != nil {
		t.Fatal(err)
	}
	for _, p := range made {
		b, err := blob.Get(t.Context(), store, p.Name)
		name := filepath.Join(golden, filepath.FromSlash(p.Name))
		if err == nil {
			err = os.MkdirAll(filepath.Dir(name), 0o755)
		}
		if err == nil {
			err = os.WriteFile(name, b, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	raw, err := json.MarshalIndent(made, "", "  ")
	if err == nil {
		err = os.WriteFile(facts, append(raw, '\n'), 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// requireGolden reads a golden pack with the key.
func requireGolden(t *testing.T, want goldenPack, file []byte) {
	t.Helper()
	s := newShelf()
	secret := NewSecret(goldenKey(t, "pack"))
	if err := blob.Put(t.Context(), s.store, want.Name, file); err != nil {
		t.Fatal(err)
	}
	o, ok := log.ParsePackName(want.Name)
	sum, err := hex.DecodeString(want.Sum)
	if !ok || err != nil {
		t.Fatalf("%+v", want)
	}
	o.Size, o.Sum = want.Size, log.Hash(sum)
	entries, err := secret.Table(t.Context(), s.store, [16]byte{2}, o)
	if err == nil {
		err = Check(t.Context(), s.store, o)
	}
	if err != nil || len(entries) != len(want.Rows) {
		t.Fatalf("%s has %d rows: %v", want.Name, len(entries), err)
	}
	plain := map[chunk.ID][]byte{}
	for i := range entries {
		e := &entries[i]
		encoded, err := NewReader(secret, s.store).Unseal(e, s.sealed(t, o, e))
		p := make([]byte, e.Plain)
		if err == nil {
			err = chunk.NewCodec(chunk.Fast).Decode(p, encoded, e.Encoding)
		}
		if err != nil {
			t.Fatalf("%s, row %d: %v", want.Name, i, err)
		}
		plain[e.ID] = p
	}
	got, _ := json.Marshal(describe(o, entries, plain))
	if w, _ := json.Marshal(want); !bytes.Equal(got, w) {
		t.Errorf("%s reads as\n%s, want\n%s", want.Name, got, w)
	}
}
