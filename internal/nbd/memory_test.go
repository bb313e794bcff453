package nbd_test

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/nbd"
)

const page = 4096

// memory is a disk of pages, each of which is data or a hole.
type memory struct {
	mu    sync.RWMutex
	data  []byte
	holes []bool
}

func newMemory(size int) *memory {
	m := &memory{data: make([]byte, size), holes: make([]bool, (size+page-1)/page)}
	for i := range m.holes {
		m.holes[i] = true
	}
	return m
}

func (m *memory) Size() int64 { return int64(len(m.data)) }

func (m *memory) ReadAt(_ context.Context, p []byte, off int64) error {
	m.mu.RLock()
	defer m.mu.RUnlock()
	copy(p, m.data[off:])
	return nil
}

func (m *memory) WriteAt(_ context.Context, p []byte, off int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	copy(m.data[off:], p)
	for i := off / page; i <= (off+int64(len(p))-1)/page; i++ {
		m.holes[i] = false
	}
	return nil
}

func (m *memory) WriteZeroes(_ context.Context, off, n int64, mayTrim bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	clear(m.data[off : off+n])
	for i := off / page; i <= (off+n-1)/page; i++ {
		whole := i*page >= off && min((i+1)*page, m.Size()) <= off+n
		m.holes[i] = mayTrim && whole || !whole && m.holes[i]
	}
	return nil
}

func (m *memory) Trim(ctx context.Context, off, n int64) error {
	return m.WriteZeroes(ctx, off, n, true)
}

func (m *memory) Flush(context.Context) error { return nil }

func (m *memory) Status(_ context.Context, off, n int64) ([]nbd.StatusExtent, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	var list []nbd.StatusExtent
	for end := off + n; off < end; {
		next := min((off/page+1)*page, m.Size()) // a page at a time, not merged and past the end of what was asked
		e := nbd.StatusExtent{Length: next - off}
		if m.holes[off/page] {
			e.Flags = nbd.AllocationHole | nbd.AllocationZero
		}
		list = append(list, e)
		off = next
	}
	return list, nil
}

// quick is a memory that can tell that it does not wait.
type quick struct{ *memory }

func (q quick) TryReadAt(p []byte, off int64) bool {
	if !q.mu.TryRLock() {
		return false
	}
	defer q.mu.RUnlock()
	copy(p, q.data[off:])
	return true
}

func (q quick) FastZeroes() bool { return true }

// only is an export list of one.
func only(b nbd.Backend) nbd.ServerOptions {
	return nbd.ServerOptions{Exports: nbd.ExportList{{Name: "disk", Description: "the only one", Backend: b}}}
}

// serve serves until the test ends, or until stop is called, and returns when Serve has.
func serve(t testing.TB, l net.Listener, o nbd.ServerOptions) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- nbd.NewServer(o).Serve(ctx, l) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	t.Cleanup(stop)
	return stop
}

// onSocket serves on a unix socket.
func onSocket(t testing.TB, o nbd.ServerOptions) (socket string, stop func()) {
	t.Helper()
	dir, err := os.MkdirTemp("", "hf")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket = filepath.Join(dir, "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	return socket, serve(t, l, o)
}

// pipes is a listener whose connections are in memory and hold no byte that nobody reads.
type pipes struct {
	conns  chan net.Conn
	closed chan struct{}
	close  func()
}

func newPipes() *pipes {
	p := &pipes{conns: make(chan net.Conn), closed: make(chan struct{})}
	p.close = sync.OnceFunc(func() { close(p.closed) })
	return p
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error {
	p.close()
	return nil
}

func (p *pipes) Addr() net.Addr { return &net.UnixAddr{Name: "pipe", Net: "unix"} }

func (p *pipes) dial() net.Conn {
	client, server := net.Pipe()
	p.conns <- server
	return client
}
