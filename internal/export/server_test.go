package export_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-vm/holdfast/internal/blob"
	"github.com/holdfast-vm/holdfast/internal/blob/mem"
	"github.com/holdfast-vm/holdfast/internal/export"
	"github.com/holdfast-vm/holdfast/internal/extent"
	"github.com/holdfast-vm/holdfast/internal/nbd"
	"github.com/holdfast-vm/holdfast/internal/point"
	"github.com/holdfast-vm/holdfast/internal/vault"
	"github.com/holdfast-vm/holdfast/internal/vault/keys"
)

const testChunk = 16 << 10

// lab is a vault with a machine's disk in it.
type lab struct {
	store *counting
	vault *vault.Vault
	point *point.RecoveryPoint
	data  []byte
}

// counting counts reads of data packs.
type counting struct {
	blob.Store
	reads atomic.Int64
}

func (c *counting) ReadAt(ctx context.Context, name string, p []byte, off int64) (int, error) {
	if name[:2] == "pa" {
		c.reads.Add(1)
	}
	return c.Store.ReadAt(ctx, name, p, off)
}

func newLab(t testing.TB, data []byte) *lab {
	t.Helper()
	store := &counting{Store: mem.New()}
	identity, _, err := keys.NewIdentity()
	if err != nil {
		t.Fatal(err)
	}
	key := vault.Key{Identity: identity}
	o := vault.InitOptions{ChunkSize: testChunk, Keys: []vault.NamedKey{{Name: "test", Key: key}}}
	if _, err := vault.Init(t.Context(), store, o); err != nil {
		t.Fatal(err)
	}
	v, err := vault.Open(t.Context(), store, key, vault.Options{Workers: 2})
	if err != nil {
		t.Fatal(err)
	}
	l := &lab{store: store, vault: v, data: data}
	l.point = l.backUp(t, "")
	return l
}

// backUp takes a point of the disk as it is.
func (l *lab) backUp(t testing.TB, parent point.ID) *point.RecoveryPoint {
	t.Helper()
	s, err := l.vault.Begin(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	size := int64(len(l.data))
	out, err := s.PutDisk(t.Context(),
		vault.DiskInput{Size: size, Data: extent.Of(extent.Extent{Len: size}), Source: bytes.NewReader(l.data)})
	if err != nil {
		t.Fatal(err)
	}
	p := &point.RecoveryPoint{ID: point.NewID(), VM: "vm", Time: time.Now().UTC(), Consistency: point.Crash,
		ConsistencyReason: "test", Rung: point.Offline,
		Parent: parent, Disks: []point.Disk{{Name: "vda", Size: size, Used: out.Used, Root: out.Root}}}
	p.Files = []point.File{{Role: "nvram", Name: "vars.fd", Size: size, Root: out.Root}}
	if err := s.Commit(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	return p
}

// someData is a disk with holes and repeated chunks in it.
func someData(seed uint64, chunks int) []byte {
	rng, random := rand.New(rand.NewPCG(seed, 5)), rand.NewChaCha8([32]byte{byte(seed)})
	data := make([]byte, chunks*testChunk+int(seed)%3*512)
	for at := 0; at < len(data); at += testChunk {
		chunk := data[at:min(at+testChunk, len(data))]
		switch rng.IntN(4) {
		case 0: // a hole
		case 1:
			for i := range chunk {
				chunk[i] = byte(at/testChunk%3 + 1)
			}
		default:
			random.Read(chunk)
		}
	}
	return data
}

func openServer(t testing.TB, l *lab, o export.Options) *export.Server {
	t.Helper()
	s, err := export.Open(t.Context(), l.vault, o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// shortDir returns a directory whose path is short enough for sockets.
func shortDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "hf")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// serve serves until the test ends and returns the socket.
func serve(t testing.TB, s *export.Server) string {
	t.Helper()
	socket := filepath.Join(shortDir(t), "s")
	l, err := export.ListenUnix(socket, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	serveOn(t, s, l)
	return socket
}

func serveOn(t testing.TB, s *export.Server, l net.Listener) {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
		if err := s.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
}

func dial(t testing.TB, socket, name string) *nbd.Client {
	t.Helper()
	c, err := nbd.Dial(t.Context(),
		nbd.Options{Network: "unix", Address: socket, Export: name, MetaContexts: []string{"base:allocation"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// Clients of any number read at whatever offsets what was backed up, however small the cache is;
// holes are where the disk has them.
func TestServesWhatWasBackedUp(t *testing.T) {
	for seed, cache := range []int64{1, 20 * testChunk, 1 << 30} {
		l := newLab(t, someData(uint64(seed), 400))
		s := openServer(t, l, export.Options{CacheSize: cache})
		e, err := s.Add(t.Context(), export.Request{Point: l.point, Disk: "vda"})
		if err != nil {
			t.Fatal(err)
		}
		if want := l.point.ID.Short() + "/vda"; e.Name != want || e.Writable {
			t.Fatalf("the export is %+v, want the name %s", e, want)
		}
		socket := serve(t, s)
		var clients sync.WaitGroup
		for n := range uint64(4) {
			c := dial(t, socket, e.Name)
			clients.Go(func() { readRandomly(t, c, l.data, rand.New(rand.NewPCG(uint64(seed), n))) })
		}
		clients.Wait()
		var holes int64
		for r, err := range dial(t, socket, e.Name).Extents(t.Context(), "base:allocation") {
			if err != nil {
				t.Fatal(err)
			}
			if r.Flags&nbd.AllocationZero == 0 {
				continue
			}
			holes += r.Len
			if len(bytes.Trim(l.data[r.Off:r.Off+r.Len], "\x00")) > 0 {
				t.Fatalf("the hole at %d holds data", r.Off)
			}
		}
		if want := int64(len(l.data)) - l.point.Disks[0].Used; holes != want {
			t.Fatalf("%d bytes are holes, want %d", holes, want)
		}
		if kept := s.Stats().CachedBytes; kept > max(cache, testChunk) {
			t.Errorf("%d bytes are cached, the limit is %d", kept, cache)
		}
	}
}

func readRandomly(t *testing.T, r io.ReaderAt, want []byte, rng *rand.Rand) {
	for range 150 {
		off := rng.IntN(len(want))
		n := min(rng.IntN(6*testChunk)+1, len(want)-off)
		if rng.IntN(10) == 0 { // a run of neighbours, as a sequential reader asks
			n = min(40*testChunk, len(want)-off)
		}
		got := make([]byte, n)
		if _, err := r.ReadAt(got, int64(off)); err != nil || !bytes.Equal(got, want[off:off+n]) {
			t.Errorf("%d bytes at %d differ: %v", n, off, err)
			return
		}
	}
}

// A point that is served is not deleted, and is freed once it was served and is purged.
func TestAServedPointIsNotDeleted(t *testing.T) {
	l := newLab(t, someData(7, 200))
	s := openServer(t, l, export.Options{CacheSize: 1})
	e, err := s.Add(t.Context(), export.Request{Point: l.point, Disk: "vda"})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.vault.DeletePoint(t.Context(), l.point.ID, 0); !errors.Is(err, vault.ErrHeld) {
		t.Fatalf("delete a point that is served: %v, want ErrHeld", err)
	}
	if err := l.vault.PurgePoint(t.Context(), l.point.ID); !errors.Is(err, vault.ErrHeld) {
		t.Fatalf("purge a point that is served: %v, want ErrHeld", err)
	}
	if r, err := l.vault.CollectGarbage(t.Context(), vault.GCOptions{}); err != nil || r.FreedBytes > 0 {
		t.Fatalf("collected what is being served: %+v, %v", r, err)
	}
	readRandomly(t, export.ReaderAt(t.Context(), e.Backend), l.data, rand.New(rand.NewPCG(1, 1)))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := l.vault.PurgePoint(t.Context(), l.point.ID); err != nil {
		t.Fatalf("purge a point that was served: %v", err)
	}
	s = openServer(t, l, export.Options{})
	defer s.Close()
	if _, err := s.Add(t.Context(), export.Request{Point: l.point, Disk: "vda"}); !errors.Is(err, vault.ErrNoPoint) {
		t.Errorf("a purged point was opened: %v", err)
	}
	// Disk and file of the point are alike, and so are shared: a full collection frees them.
	if r, err := l.vault.CollectGarbage(t.Context(), vault.GCOptions{Full: true}); err != nil || r.FreedBytes == 0 {
		t.Errorf("nothing was freed after the point was purged: %+v, %v", r, err)
	}
}

// What many ask for at once is fetched once, and what two disks share as well.
func TestFetchesOnce(t *testing.T) {
	l := newLab(t, someData(3, 64))
	s := openServer(t, l, export.Options{})
	defer s.Close()
	one, err := s.Add(t.Context(), export.Request{Point: l.point, Disk: "vda"})
	if err != nil {
		t.Fatal(err)
	}
	two, err := s.Add(t.Context(), export.Request{Point: l.backUp(t, ""), Disk: "vda"})
	if err != nil {
		t.Fatal(err)
	}
	var readers sync.WaitGroup
	for _, b := range []nbd.Backend{one.Backend, two.Backend, one.Backend, two.Backend} {
		readers.Go(func() {
			got := make([]byte, len(l.data))
			if err := b.ReadAt(t.Context(), got, 0); err != nil || !bytes.Equal(got, l.data) {
				t.Errorf("the disk differs: %v", err)
			}
		})
	}
	readers.Wait()
	distinct := map[string]bool{}
	for at := 0; at < len(l.data); at += testChunk {
		if c := l.data[at:min(at+testChunk, len(l.data))]; len(bytes.Trim(c, "\x00")) > 0 {
			distinct[string(c)] = true
		}
	}
	if got := s.Stats().FetchedBytes; got != int64(len(distinct))*testChunk {
		t.Errorf("%d bytes were fetched, the disk has %d different chunks", got, len(distinct))
	}
	before := l.store.reads.Load()
	if p := make([]byte, 5000); !one.Backend.(nbd.TryReader).TryReadAt(p, 12345) ||
		!bytes.Equal(p, l.data[12345:][:5000]) {
		t.Error("what is in the cache is not answered at once")
	}
	if l.store.reads.Load() != before {
		t.Error("a read of what is in the cache asked the store")
	}
}

// A sequential reader finds what it wants in the cache, fetched in a few large pieces.
func TestReadsAheadOfSequentialReaders(t *testing.T) {
	data := make([]byte, 2000*testChunk)
	rand.NewChaCha8([32]byte{}).Read(data)
	l := newLab(t, data)
	s := openServer(t, l, export.Options{})
	e, err := s.Add(t.Context(), export.Request{Point: l.point, Disk: "vda"})
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, testChunk)
	for off := int64(0); off < e.Size; off += testChunk {
		if err := e.Backend.ReadAt(t.Context(), got, off); err != nil || !bytes.Equal(got, data[off:off+testChunk]) {
			t.Fatalf("the chunk at %d differs: %v", off, err)
		}
		s.Idle() // as fast as the slowest reader
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if st := s.Stats(); st.AheadBytes < e.Size/2 {
		t.Errorf("of %d bytes %d were read ahead", e.Size, st.AheadBytes)
	}
	if n := l.store.reads.Load(); n > 100 {
		t.Errorf("2000 chunks in a row took %d reads of the store", n)
	}
}

// What a machine reads when it boots is kept with the point, and fetched ahead when the point, or a
// later one of the machine, is opened.
func TestABootIsRememberedAndPrefetched(t *testing.T) {
	l := newLab(t, someData(11, 300))
	record := func(p *point.RecoveryPoint, offs ...int64) {
		s := openServer(t, l, export.Options{})
		e, err := s.Add(t.Context(), export.Request{Point: p, Disk: "vda", RecordBoot: true})
		if err != nil {
			t.Fatal(err)
		}
		for _, off := range offs {
			if err := e.Backend.ReadAt(t.Context(), make([]byte, 4096), off); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	record(l.point, 50*testChunk, 3*testChunk)
	record(l.point, 100*testChunk) // the first one stays
	later := l.backUp(t, l.point.ID)
	unrelated := l.backUp(t, "")
	if err := l.vault.PurgePoint(t.Context(), unrelated.ID); err != nil {
		t.Fatal(err)
	}
	for _, p := range []*point.RecoveryPoint{l.point, later, l.backUp(t, unrelated.ID)} {
		notes, err := l.vault.Notes(t.Context(), l.point.ID, vault.NoteBootSet)
		if err != nil || len(notes) != 1 {
			t.Fatalf("%d notes, %v", len(notes), err)
		}
		s := openServer(t, l, export.Options{})
		if _, err := s.Add(t.Context(), export.Request{Point: p, Disk: "vda"}); err != nil {
			t.Fatal(err)
		}
		s.Settle()
		if st := s.Stats(); st.AheadBytes == 0 || st.AheadBytes > 10*testChunk {
			t.Errorf("%d bytes were fetched ahead", st.AheadBytes)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// A layer keeps what a client wrote and flushed; the point below, and a server without the layer,
// never change.
func TestWritableExportsKeepWhatWasWritten(t *testing.T) {
	l := newLab(t, someData(5, 100))
	dir := t.TempDir()
	want := bytes.Clone(l.data)
	copy(want[1000:], "written")
	for range 2 {
		s := openServer(t, l, export.Options{})
		e, err := s.Add(t.Context(), export.Request{Point: l.point, Disk: "vda", WritableDir: dir})
		if err != nil {
			t.Fatal(err)
		}
		plain, err := s.Add(t.Context(), export.Request{Point: l.point, Disk: "nvram", Name: "plain"})
		if err != nil {
			t.Fatal(err)
		}
		t.Run("", func(t *testing.T) {
			c := dial(t, serve(t, s), e.Name)
			if c.Flags()&nbd.ReadOnly != 0 || c.Flags()&nbd.CanMultiConn == 0 {
				t.Errorf("flags %#x", c.Flags())
			}
			if _, err := c.WriteAt([]byte("written"), 1000); err != nil {
				t.Fatal(err)
			}
			if err := c.Flush(t.Context()); err != nil {
				t.Fatal(err)
			}
			got := make([]byte, len(want))
			if err := c.Read(t.Context(), got, 0); err != nil || !bytes.Equal(got, want) {
				t.Fatalf("the layer differs: %v", err)
			}
			if err := plain.Backend.ReadAt(t.Context(), got, 0); err != nil || !bytes.Equal(got, l.data) {
				t.Fatalf("the point differs: %v", err)
			}
		})
	}
	other := l.backUp(t, "")
	l.data[0] ^= 1
	changed := l.backUp(t, "")
	s := openServer(t, l, export.Options{})
	defer s.Close()
	if _, err := s.Add(t.Context(), export.Request{Point: changed, Disk: "vda", WritableDir: dir}); !errors.Is(err,
		export.ErrOtherDisk) {
		t.Errorf("a layer of another disk: %v", err)
	}
	if _, err := s.Add(t.Context(), export.Request{Point: other, Disk: "vda", WritableDir: dir}); err != nil {
		t.Errorf("a layer of the same disk in another point: %v", err)
	}
}

// What cannot be served is refused, and nothing else is hurt.
func TestAddRefuses(t *testing.T) {
	l := newLab(t, someData(1, 10))
	s := openServer(t, l, export.Options{})
	defer s.Close()
	gone := *l.point
	gone.ID = point.NewID()
	for _, tt := range []struct {
		name string
		r    export.Request
		want error
	}{
		{"first", export.Request{Point: l.point, Disk: "vda"}, nil},
		{"the same name", export.Request{Point: l.point, Disk: "vda"}, export.ErrExists},
		{"no such disk", export.Request{Point: l.point, Disk: "vdz"}, point.ErrNoDisk},
		{"no such point", export.Request{Point: &gone, Disk: "vda", Name: "x"}, vault.ErrNoPoint},
		{"a file", export.Request{Point: l.point, Disk: "nvram/vars.fd"}, nil},
	} {
		if _, err := s.Add(t.Context(), tt.r); !errors.Is(err, tt.want) {
			t.Errorf("%s: error %v, want %v", tt.name, err, tt.want)
		}
	}
	if n := len(s.Exports()); n != 2 {
		t.Errorf("%d exports", n)
	}
	if err := s.Remove("nothing"); !errors.Is(err, nbd.ErrNoExport) {
		t.Errorf("remove: %v", err)
	}
	if err := s.Remove(l.point.ID.Short() + "/vda"); err != nil || len(s.Exports()) != 1 {
		t.Errorf("remove: %v, %v", err, s.Exports())
	}
}

// A socket of a living process is respected, one of a dead process replaced, and any other file
// left alone.
func TestListenUnix(t *testing.T) {
	dir := shortDir(t)
	path := filepath.Join(dir, "s")
	first, err := export.ListenUnix(path, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("the socket is %v, %v", info, err)
	}
	if _, err := export.ListenUnix(path, 0o600); !errors.Is(err, export.ErrSocketInUse) {
		t.Fatalf("a living socket was taken: %v", err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("the socket is still there: %v", err)
	}
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	dead.SetUnlinkOnClose(false)
	dead.Close()
	second, err := export.ListenUnix(path, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	if second.Addr().String() != path {
		t.Errorf("the address is %s", second.Addr())
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := export.ListenUnix(file, 0o600); !errors.Is(err, os.ErrExist) {
		t.Errorf("a file was taken: %v", err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 2 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
}
