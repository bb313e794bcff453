package content_test

import (
	"bytes"
	"context"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/blob"
	"github.com/holdfast-vm/holdfast/internal/vault/chunk"
	"github.com/holdfast-vm/holdfast/internal/vault/content"
	"github.com/holdfast-vm/holdfast/internal/vault/index"
	"github.com/holdfast-vm/holdfast/internal/vault/log"
	"github.com/holdfast-vm/holdfast/internal/vault/pack"
	"github.com/holdfast-vm/holdfast/internal/vault/tree"
)

// Tests use chunks smaller than any vault has.
const testChunk = 1 << 10

var (
	dataKey  = [32]byte{1, 2, 3}
	chunkKey = [32]byte{4}
	nodeKey  = [32]byte{5}
	vaultID  = [16]byte{6}
	secret   = pack.NewSecret(dataKey)
)

// shelf is a log of packs, and those who write them.
type shelf struct {
	store blob.Store
	n     uint32

	mu    sync.Mutex // guards what follows
	added []log.Object
	gone  map[log.ObjectID]bool
}

func newShelf(store blob.Store) *shelf { return &shelf{store: store, gone: map[log.ObjectID]bool{}} }

// reader is a Source that has read the shelf up to an entry.
type reader struct {
	*content.Source
	shelf *shelf
	index *index.Index

	mu    sync.Mutex // guards what follows
	upTo  int
	gone  map[log.ObjectID]bool
	looks int
}

// open returns a Source that has read all there is.
func (s *shelf) open(t testing.TB) *reader {
	t.Helper()
	r := &reader{shelf: s}
	var err error
	r.index, err = index.Open(t.Context(), index.Source{Store: s.store, Secret: secret, Key: dataKey, Vault: vaultID,
		Packs: r})
	if err == nil {
		_, err = r.look(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	r.Source = content.New(content.Parts{Index: r.index, Packs: pack.NewReader(secret, s.store), ChunkKey: chunkKey,
		ChunkSize: testChunk, Workers: 2, Look: r.look})
	return r
}

// look reads the shelf on.
func (r *reader) look(ctx context.Context) (bool, error) {
	r.shelf.mu.Lock()
	upTo, gone := len(r.shelf.added), map[log.ObjectID]bool{}
	for id := range r.shelf.gone {
		gone[id] = true
	}
	r.shelf.mu.Unlock()
	r.mu.Lock()
	more := upTo != r.upTo || len(gone) != len(r.gone)
	r.upTo, r.gone = upTo, gone
	r.looks++
	r.mu.Unlock()
	return more, r.index.Sync(ctx)
}

// Since implements index.Packs.
func (r *reader) Since(_ context.Context, count uint64, do func(log.Object, uint64) bool) (uint64, error) {
	r.mu.Lock()
	upTo := r.upTo
	r.mu.Unlock()
	r.shelf.mu.Lock()
	added := r.shelf.added[:upTo]
	r.shelf.mu.Unlock()
	for i := int(count); i < upTo; i++ {
		if !do(added[i], uint64(i+1)) {
			break
		}
	}
	return uint64(upTo), nil
}

// Good implements index.Packs.
func (r *reader) Good(_ context.Context, ids []log.ObjectID) ([]bool, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	good := make([]bool, len(ids))
	for i, id := range ids {
		good[i] = !r.gone[id]
	}
	return good, nil
}

// goodPack implements content.Good.
func (r *reader) goodPack(_ context.Context, id log.ObjectID) (o log.Object, ok bool, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, o := range r.shelf.added[:r.upTo] {
		if o.ID == id && !r.gone[id] {
			return o, true, nil
		}
	}
	return o, false, nil
}

// begin begins a pack.
func (s *shelf) begin() *pack.Writer {
	s.n++
	return secret.Begin(s.store, vaultID, log.NewObjectID(log.Volume{}, log.Session{7}, s.n))
}

// commit ends a pack, and says so in the log.
func (s *shelf) commit(t testing.TB, w *pack.Writer) (log.Object, []pack.Entry) {
	t.Helper()
	o, entries, err := w.Commit(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.added = append(s.added, o)
	return o, entries
}

// move puts all rows of a pack into another one, and deletes it.
func (s *shelf) move(t testing.TB, o log.Object, entries []pack.Entry) {
	t.Helper()
	w, from := s.begin(), pack.NewReader(secret, s.store)
	for i := range entries {
		e := &entries[len(entries)-1-i]
		sealed := make([]byte, e.Stored)
		err := from.ReadSealed(t.Context(), o, sealed, int64(e.Offset))
		if err == nil {
			_, err = w.Move(t.Context(), o.ID, e, sealed)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	s.commit(t, w)
	s.remove(t, o)
}

// remove deletes a pack, and says so in the log.
func (s *shelf) remove(t testing.TB, o log.Object) {
	t.Helper()
	s.mu.Lock()
	s.gone[o.ID] = true
	s.mu.Unlock()
	if err := s.store.Delete(t.Context(), o.Name()); err != nil {
		t.Fatal(err)
	}
}

// writer stores a disk into a pack.
type writer struct {
	t      testing.TB
	w      *pack.Writer
	codec  *chunk.Codec
	chunks *chunk.Hasher
	ids    *chunk.Hasher
	nodes  map[chunk.ID]*tree.Node
	has    map[chunk.ID]bool
}

func newWriter(t testing.TB, w *pack.Writer) *writer {
	return &writer{t: t, w: w, codec: chunk.NewCodec(chunk.Fast), chunks: chunk.NewHasher(chunkKey),
		ids: chunk.NewHasher(nodeKey), nodes: map[chunk.ID]*tree.Node{}, has: map[chunk.ID]bool{}}
}

// Node implements tree.Writer.
func (w *writer) Node(_ context.Context, id chunk.ID, _ int) (*tree.Node, error) {
	return w.nodes[id], nil
}

// PutNode implements tree.Writer.
func (w *writer) PutNode(_ context.Context, n *tree.Node) (chunk.ID, error) {
	raw := n.Append(nil)
	id := w.ids.ID(raw)
	c := *n
	w.nodes[id] = &c
	w.row(pack.Node, id, raw)
	return id, nil
}

func (w *writer) row(kind pack.Kind, id chunk.ID, plain []byte) {
	if w.has[id] {
		return
	}
	w.has[id] = true
	stored, enc, err := w.codec.Encode(plain)
	if err == nil {
		_, err = w.w.Append(w.t.Context(), kind, id, len(plain), stored, enc)
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

// chunk stores a chunk, filled up with zeros; one of zeros is a hole.
func (w *writer) chunk(data []byte) chunk.ID {
	p := make([]byte, testChunk)
	copy(p, data)
	if chunk.IsZero(p) {
		return chunk.ID{}
	}
	id := w.chunks.ID(p)
	w.row(pack.Data, id, p)
	return id
}

// disk stores those parts of a disk that are given by offset, which is that of a chunk, and returns
// its root.
func (w *writer) disk(size int64, parts map[int64][]byte) string {
	w.t.Helper()
	leaves := map[int64]*tree.Node{}
	for off, data := range parts {
		for ; len(data) > 0; off += testChunk {
			at, n := off/testChunk, min(testChunk, len(data))
			if leaves[at/tree.FanOut] == nil {
				leaves[at/tree.FanOut] = &tree.Node{}
			}
			leaves[at/tree.FanOut].Slots[at%tree.FanOut] = w.chunk(data[:n])
			data = data[n:]
		}
	}
	b := tree.NewBuilder(w, chunk.ID{}, (size+testChunk-1)/testChunk)
	for at := int64(0); len(leaves) > 0; at++ {
		n := leaves[at]
		if delete(leaves, at); n == nil || n.Count() == 0 {
			if len(leaves) > 0 && n == nil {
				at = leastKey(leaves) - 1
			}
			continue
		}
		id, err := w.PutNode(w.t.Context(), n)
		if err == nil {
			err = b.SetLeaf(w.t.Context(), at, id)
		}
		if err != nil {
			w.t.Fatal(err)
		}
	}
	root, err := b.Finish(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	return root.String()
}

func leastKey(m map[int64]*tree.Node) int64 {
	least := int64(-1)
	for k := range m {
		if least < 0 || k < least {
			least = k
		}
	}
	return least
}

// stored is a disk on a shelf.
type stored struct {
	data    []byte
	root    string
	object  log.Object
	entries []pack.Entry
}

// store puts a disk into a pack of its own.
func (s *shelf) put(t testing.TB, data []byte) *stored {
	t.Helper()
	w := newWriter(t, s.begin())
	d := &stored{data: data, root: w.disk(int64(len(data)), map[int64][]byte{0: data})}
	d.object, d.entries = s.commit(t, w.w)
	return d
}

// open opens the disk.
func (d *stored) open(t testing.TB, r *reader, cached bool) *content.Disk {
	t.Helper()
	open := r.Disk
	if cached {
		open = r.CachedDisk
	}
	disk, err := open(d.root, int64(len(d.data)))
	if err != nil {
		t.Fatal(err)
	}
	return disk
}

// noise returns bytes that do not compress.
func noise(seed uint64, n int) []byte {
	p := make([]byte, n)
	rng := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), 1})
	_, _ = rng.Read(p) // it never fails
	return p
}

// patchy returns bytes of a disk some chunks of which are holes, some repeat and some compress.
func patchy(rng *rand.Rand, size int) []byte {
	data := make([]byte, size)
	for at := 0; at < size; at += testChunk {
		p := data[at:min(at+testChunk, size)]
		switch rng.IntN(4) {
		case 0:
		case 1:
			copy(p, bytes.Repeat([]byte{byte(1 + rng.IntN(3))}, len(p)))
		default:
			copy(p, noise(rng.Uint64(), len(p)))
		}
	}
	return data
}

// writerAt is a disk in memory to restore to.
type writerAt []byte

func (w writerAt) WriteAt(p []byte, off int64) (int, error) { return copy(w[off:], p), nil }
