package index

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"flag"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/zeebo/blake3"

	"github.com/holdfast-vm/holdfast/internal/blob/dir"
	"github.com/holdfast-vm/holdfast/internal/vault/chunk"
)

// The golden index is of format 1 for ever; -update is for the day on which a new format gets a new
// one.
var update = flag.Bool("update", false, "write testdata/golden anew")

const golden = "testdata/golden"

// goldenTruth is what the golden index was made of.
func goldenTruth() *truth {
	w, rng := &truth{}, rand.New(rand.NewPCG(11, 12))
	for range 6 {
		w.commit(w.add(rng, 90, chunks))
	}
	return w
}

func writeGolden(t *testing.T, w *truth) {
	t.Helper()
	if err := os.RemoveAll(golden); err != nil {
		t.Fatal(err)
	}
	store, err := dir.Create(golden)
	if err != nil {
		t.Fatal(err)
	}
	ix := open(t, source(store, w), w)
	if err := errors.Join(ix.Sync(context.Background()), ix.Flush(context.Background()), store.Close()); err != nil {
		t.Fatal(err)
	}
	w.reads = 0
}

// The golden index reads as ever, and no table is read.
func TestGolden(t *testing.T) {
	w := goldenTruth()
	if *update {
		writeGolden(t, w)
	}
	store, err := dir.Open(golden)
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	ix := open(t, source(store, w), w)
	if err := ix.Sync(context.Background()); err != nil {
		t.Fatal(err)
	}
	requireRows(t, ix, w, chunks, isGood)
	if w.reads > 0 || len(ix.segments) == 0 {
		t.Errorf("%d tables are read", w.reads)
	}
}

// second reads the golden index by the text of docs/formats/index.md alone.
type second struct {
	t *testing.T
}

func (s second) file(pattern string) (name string, raw []byte) {
	s.t.Helper()
	found, err := filepath.Glob(filepath.Join(golden, pattern))
	if err != nil || len(found) != 1 {
		s.t.Fatalf("%s is %v, %v", pattern, found, err)
	}
	raw, err = os.ReadFile(found[0])
	if err != nil {
		s.t.Fatal(err)
	}
	return strings.TrimPrefix(filepath.ToSlash(found[0]), golden+"/"), raw
}

func (s second) unseal(name string, section uint32, number uint64, sealed, beside []byte) []byte {
	s.t.Helper()
	h, err := blake3.NewKeyed(append([]byte{1}, make([]byte, 31)...))
	if err != nil {
		s.t.Fatal(err)
	}
	vault := [16]byte{2}
	h.WriteString("holdfast index v1 " + string(vault[:]) + name)
	block, err := aes.NewCipher(h.Sum(nil)[:32])
	if err != nil {
		s.t.Fatal(err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		s.t.Fatal(err)
	}
	nonce := binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint32(nil, section), number)
	plain, err := aead.Open(nil, nonce, sealed, beside)
	if err != nil {
		s.t.Fatalf("block %d of section %d of %s: %v", number, section, name, err)
	}
	return plain
}

func TestSecondReaderReadsGolden(t *testing.T) {
	s, u32, u64 := second{t}, binary.LittleEndian.Uint32, binary.LittleEndian.Uint64
	rootName, raw := s.file("index/root/*")
	root := s.unseal(rootName, 4, 0, raw[8:], raw[:8])
	rows, origins := int(u64(root[36:])), int(u64(root[44:]))
	if string(raw[:8]) != "HFINDX01" || u32(root) != 1 || u64(root[20:]) != 0 || u64(root[28:]) != 6 || rows != 540 ||
		len(root) != 4+16+4*8+8+4+4 || !strings.HasPrefix(rootName, "index/root/fffffffffffffff9-") {
		t.Fatalf("the root %s has %d rows: %x", rootName, rows, root)
	}
	name, raw := s.file("index/seg/*")
	if name != "index/seg/"+hex.EncodeToString(root[4:20]) {
		t.Fatalf("the root names another segment than %s", name)
	}
	var plain, fences, list []byte
	for b := 0; b*64 < rows; b++ {
		size := min(rows-b*64, 64)*60 + 16
		block := s.unseal(name, 1, uint64(b), raw[:size], nil)
		first := binary.BigEndian.Uint64(block)
		fences = binary.LittleEndian.AppendUint64(fences, first)
		plain, raw = append(plain, block...), raw[size:]
	}
	size := len(fences) + (rows*12/512+1)*64 + 16
	page := s.unseal(name, 2, 0, raw[:size], nil)
	raw = raw[size:]
	if string(page[:len(fences)]) != string(fences) || string(root[52:60]) != string(fences[:8]) {
		t.Error("the fences are others")
	}
	for b := 0; b*48 < origins; b++ {
		size := min(origins-b*48, 48)*82 + 16
		list, raw = append(list, s.unseal(name, 3, uint64(b), raw[:size], nil)...), raw[size:]
	}
	if len(raw) > 0 {
		t.Errorf("%d bytes are left", len(raw))
	}
	requireAsMade(t, plain, list, page[len(fences):])
}

// requireAsMade compares what the second reader has read.
func requireAsMade(t *testing.T, rows, origins, filter []byte) {
	w := goldenTruth()
	u16, u32, u64 := binary.LittleEndian.Uint16, binary.LittleEndian.Uint32, binary.LittleEndian.Uint64
	for r := range len(rows) / 60 {
		b := rows[60*r:]
		o := origins[82*u32(b[32:]):]
		p := w.packs[binary.BigEndian.Uint32(o[20:])]
		e := p.entries[u16(b[52:])]
		if string(o[:24]) != string(p.object.ID[:]) || o[24] != byte(p.object.Kind) || o[25] != p.object.Copy ||
			u64(o[26:]) != p.object.Size || string(o[34:66]) != string(p.object.Sum[:]) ||
			string(o[66:82]) != string(e.Salt[:]) {
			t.Fatalf("row %d has the origin %x", r, o[:82])
		}
		if chunk.ID(b[:32]) != e.ID || u32(b[36:]) != e.Offset || u32(b[40:]) != e.Stored || u32(b[44:]) != e.Plain ||
			u32(b[48:]) != e.Sum || uint32(u16(b[54:])) != e.Nonce || b[56] != byte(e.Kind) ||
			b[57] != byte(e.Encoding) {
			t.Fatalf("row %d is %x", r, b[:60])
		}
		line := filter[64*(u64(b[8:])%uint64(len(filter)/64)):]
		for k := range 7 {
			if p := u64(b[16:]) >> (9 * k) % 512; line[p/8]>>(p%8)&1 == 0 {
				t.Fatalf("row %d is not in the filter", r)
			}
		}
	}
}
