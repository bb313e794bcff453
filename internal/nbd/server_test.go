package nbd_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"syscall"
	"testing"

	"pgregory.net/rapid"

	"github.com/holdfast-vm/holdfast/internal/nbd"
)

func dial(t testing.TB, socket string) *nbd.Client {
	t.Helper()
	c, err := nbd.Dial(t.Context(),
		nbd.Options{Network: "unix", Address: socket, Export: "disk", MetaContexts: []string{"base:allocation"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// Whatever is done over whichever connection, every connection reads what a slice of bytes holds,
// and holes are where zeros are.
func TestServerIsASliceOfBytes(t *testing.T) {
	const size = mib + 100*1024 + 512 // more than a piece
	for name, wrap := range map[string]func(*memory) nbd.Backend{
		"waits": func(m *memory) nbd.Backend { return m },
		"quick": func(m *memory) nbd.Backend { return quick{m} },
	} {
		t.Run(name, func(t *testing.T) {
			disk := newMemory(size)
			socket, _ := onSocket(t, only(wrap(disk)))
			clients := []*nbd.Client{dial(t, socket), dial(t, socket)}
			model := make([]byte, size)
			rapid.Check(t, func(t *rapid.T) {
				for range rapid.IntRange(1, 10).Draw(t, "steps") {
					step(t, clients[rapid.IntRange(0, 1).Draw(t, "connection")], model)
				}
			})
			checkAllocation(t, clients[0], model)
		})
	}
}

func step(t *rapid.T, c *nbd.Client, model []byte) {
	ctx := context.Background()
	off := rapid.IntRange(0, len(model)-1).Draw(t, "off")
	n := rapid.OneOf(rapid.IntRange(1, 9000), rapid.IntRange(1, 9000), rapid.IntRange(1, 100_000),
		rapid.IntRange(1, len(model))).Draw(t, "n")
	n = min(n, len(model)-off)
	var err error
	switch op := rapid.SampledFrom([]string{"read", "write", "zero", "keep", "trim", "flush"}).Draw(t, "op"); op {
	case "read":
		got := make([]byte, n)
		if err = c.Read(ctx, got, int64(off)); err == nil && !bytes.Equal(got, model[off:off+n]) {
			t.Fatalf("%d bytes at %d differ", n, off)
		}
	case "write":
		p := bytes.Repeat([]byte{rapid.ByteRange(1, 255).Draw(t, "byte")}, n)
		copy(model[off:], p)
		_, err = c.Write(ctx, p, int64(off))
	case "zero", "keep":
		clear(model[off : off+n])
		err = c.WriteZeroes(ctx, int64(off), int64(n), op == "keep")
	case "trim":
		clear(model[off : off+n])
		err = c.Trim(ctx, int64(off), int64(n))
	case "flush":
		err = c.Flush(ctx)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func checkAllocation(t *testing.T, c *nbd.Client, model []byte) {
	t.Helper()
	end := int64(0)
	for r, err := range c.Extents(t.Context(), "base:allocation") {
		if err != nil {
			t.Fatal(err)
		}
		if r.Off != end {
			t.Fatalf("extent at %d, the last one ended at %d", r.Off, end)
		}
		end += r.Len
		if r.Flags == 3 && bytes.Count(model[r.Off:end], []byte{0}) != int(r.Len) {
			t.Errorf("%+v is said to be zeros", r)
		}
	}
	if end != int64(len(model)) {
		t.Errorf("extents end at %d of %d", end, len(model))
	}
}

// Requests of many goroutines over many connections, more of them than may be under way and in
// memory, all end, each with its own bytes.
func TestManyAtOnce(t *testing.T) {
	const size = 16 * mib
	disk := newMemory(size)
	o := only(quick{disk})
	o.MaxRequests, o.MemoryLimit = 4, mib
	socket, _ := onSocket(t, o)
	var wg sync.WaitGroup
	for i := range 4 {
		c := dial(t, socket)
		for k := range 16 {
			wg.Go(func() {
				from := int64(i*16+k) * size / 64
				want := bytes.Repeat([]byte{byte(i*16 + k + 1)}, size/64)
				if _, err := c.WriteAt(want, from); err != nil {
					t.Error(err)
				}
				for _, n := range []int{1, 512, 4096, 40000, len(want)} {
					got := make([]byte, n)
					if err := c.Read(t.Context(), got, from); err != nil || !bytes.Equal(got, want[:n]) {
						t.Errorf("%d bytes at %d: %v, or they differ", n, from, err)
					}
				}
			})
		}
	}
	wg.Wait()
}

// asked is a disk that tells what it was asked to read and to flush.
type asked struct {
	*memory
	mu    sync.Mutex
	calls []string
}

func (a *asked) note(format string, args ...any) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.calls = append(a.calls, fmt.Sprintf(format, args...))
}

func (a *asked) ReadAt(ctx context.Context, p []byte, off int64) error {
	a.note("read %d at %d", len(p), off)
	return a.memory.ReadAt(ctx, p, off)
}

func (a *asked) Flush(context.Context) error {
	a.note("flush")
	return nil
}

func (a *asked) WriteZeroes(ctx context.Context, off, n int64, mayTrim bool) error {
	a.note("zero %d at %d %v", n, off, mayTrim)
	return a.memory.WriteZeroes(ctx, off, n, mayTrim)
}

func (a *asked) told() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	defer func() { a.calls = nil }()
	return a.calls
}

func (a *asked) require(t *testing.T, want ...string) {
	t.Helper()
	if got := a.told(); !slices.Equal(got, want) {
		t.Errorf("the disk was asked %q, want %q", got, want)
	}
}

// Holes are answered without being read.
func TestHolesAreNotRead(t *testing.T) {
	disk := &asked{memory: newMemory(8 * mib)}
	socket, _ := onSocket(t, only(disk))
	c := dial(t, socket)
	disk.memory.WriteAt(t.Context(), []byte("x"), 3*mib)
	got := make([]byte, 8*mib)
	if err := c.Read(t.Context(), got, 0); err != nil || got[3*mib] != 'x' {
		t.Fatal(err)
	}
	disk.require(t, fmt.Sprintf("read %d at %d", page, 3*mib))
}

func TestZeroesKeepOrTrim(t *testing.T) {
	disk := &asked{memory: newMemory(mib)}
	socket, _ := onSocket(t, only(disk))
	c := dial(t, socket)
	err := errors.Join(c.WriteZeroes(t.Context(), 0, page, true), c.WriteZeroes(t.Context(), page, page, false),
		c.Flush(t.Context()))
	if err != nil {
		t.Fatal(err)
	}
	disk.require(t, "zero 4096 at 0 false", "zero 4096 at 4096 true", "flush")
}

// faulty fails as it is told to.
type faulty struct {
	*memory
	err error // nil panics
}

func (f faulty) ReadAt(context.Context, []byte, int64) error {
	if f.err == nil {
		panic("a fault")
	}
	return f.err
}

func (f faulty) TryReadAt([]byte, int64) bool {
	if f.err == nil {
		panic("a fault")
	}
	return false
}

// What goes wrong in a backend is the error of one request.
func TestBackendFaults(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want syscall.Errno
	}{
		{nil, syscall.EIO}, {io.ErrUnexpectedEOF, syscall.EIO},
		{fmt.Errorf("read: %w", syscall.ENOSPC), syscall.ENOSPC},
		{syscall.EROFS, syscall.EPERM}, {syscall.ENOMEM, syscall.ENOMEM}, {syscall.EBADF, syscall.EIO},
		{syscall.EDQUOT, syscall.ENOSPC},
		{context.Canceled, syscall.ESHUTDOWN},
	} {
		t.Run(fmt.Sprint(tt.err), func(t *testing.T) {
			disk := newMemory(2 * mib)
			disk.WriteAt(t.Context(), bytes.Repeat([]byte{1}, 2*mib), 0)
			socket, _ := onSocket(t, only(faulty{disk, tt.err}))
			c := dial(t, socket)
			for _, n := range []int{1, 4096, 2 * mib} {
				if err := c.Read(t.Context(), make([]byte, n), 0); !errors.Is(err, tt.want) {
					t.Errorf("read of %d bytes: %v, want %v", n, err, tt.want)
				}
			}
			if _, err := c.WriteAt([]byte{1}, 0); err != nil {
				t.Errorf("the connection does not go on: %v", err)
			}
		})
	}
}

func TestReadOnlyExport(t *testing.T) {
	o := nbd.ServerOptions{Exports: nbd.ExportList{{Name: "disk", Backend: newMemory(mib), ReadOnly: true}}}
	socket, _ := onSocket(t, o)
	c := dial(t, socket)
	if want := nbd.HasFlags | nbd.ReadOnly | nbd.CanMultiConn | nbd.SendCache | nbd.SendDF |
		nbd.StatusPayload; c.Flags() != want {
		t.Errorf("flags are %#x, want %#x", c.Flags(), want)
	}
}

func TestLookup(t *testing.T) {
	o := nbd.ServerOptions{Exports: nbd.ExportList{
		{Name: "a", Description: "the first", Backend: newMemory(mib)}, {Name: "b", Backend: newMemory(2 * mib)},
		{Name: "bad", Backend: newMemory(mib), MinBlock: 3}, {Name: "none"},
	}}
	socket, _ := onSocket(t, o)
	with := func(name string) nbd.Options { return nbd.Options{Network: "unix", Address: socket, Export: name} }
	list, err := nbd.List(t.Context(), with(""))
	want := []nbd.Export{{Name: "a", Description: "the first"}, {Name: "b"}, {Name: "bad"}, {Name: "none"}}
	if err != nil || !slices.Equal(list, want) {
		t.Errorf("List = %v, %v", list, err)
	}
	for name, ok := range map[string]bool{"a": true, "b": true, "c": false, "": false, "bad": false, "none": false} {
		c, err := nbd.Dial(t.Context(), with(name))
		if (err == nil) != ok {
			t.Errorf("%q: %v", name, err)
		}
		if err == nil {
			c.Close()
		}
	}
}

// When Serve is told to end, what is under way ends well and what comes then is refused.
func TestShutdown(t *testing.T) {
	disk := &stuck{memory: newMemory(mib), reading: make(chan struct{}), release: make(chan struct{}),
		gone: make(chan struct{})}
	socket, stop := onSocket(t, only(disk))
	c, idle := dial(t, socket), dial(t, socket)
	first := make(chan error)
	go func() { first <- c.Read(t.Context(), make([]byte, page), 0) }()
	<-disk.reading
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		stop()
	}()
	for { // until the news has reached the connection
		if err := c.Read(t.Context(), make([]byte, page), stuckAt+page); errors.Is(err, syscall.ESHUTDOWN) {
			break
		} else if err != nil {
			t.Fatalf("a read while the server ends: %v", err)
		}
	}
	if err := idle.Flush(t.Context()); !errors.Is(err, nbd.ErrDisconnected) {
		t.Errorf("a connection without requests: %v", err)
	}
	close(disk.release)
	if err := <-first; err != nil {
		t.Errorf("the read under way: %v", err)
	}
	<-stopped
}

const stuckAt = 0

// stuck is a disk whose first page waits.
type stuck struct {
	*memory
	reading, release, gone chan struct{}
}

func (s *stuck) ReadAt(ctx context.Context, p []byte, off int64) error {
	if off == stuckAt {
		close(s.reading)
		select {
		case <-s.release:
		case <-ctx.Done():
			close(s.gone)
			return ctx.Err()
		}
	}
	return s.memory.ReadAt(ctx, p, off)
}

// When a client goes away, what it had asked for is given up.
func TestClientGone(t *testing.T) {
	disk := &stuck{memory: newMemory(mib), reading: make(chan struct{}), release: make(chan struct{}),
		gone: make(chan struct{})}
	l := newPipes()
	serve(t, l, only(disk))
	r := enterRaw(t, l.dial(), optStructured)
	r.request(0, cmdRead, 1, stuckAt, page)
	<-disk.reading
	r.conn.Close()
	<-disk.gone
}

// A listener that fails ends Serve, and the connections with it.
func TestListenerFails(t *testing.T) {
	l := newPipes()
	done := make(chan error)
	go func() { done <- nbd.NewServer(only(newMemory(mib))).Serve(t.Context(), l) }()
	r := enterRaw(t, l.dial(), 0)
	l.Close()
	r.requireEnd()
	if err := <-done; err == nil {
		t.Error("Serve has ended without a reason")
	}
}
