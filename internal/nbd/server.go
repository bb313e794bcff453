package nbd

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"
)

// Backend is what an export serves. Its methods are called by many goroutines at once. An error
// that wraps a syscall.Errno of the protocol reaches the client as that, any other as EIO, and a
// panic too. Slices passed in are never kept.
type Backend interface {
	Size() int64
	// ReadAt fills p.
	ReadAt(ctx context.Context, p []byte, off int64) error
	// Status returns what is known of the n bytes at off: at least one extent, the first of which
	// starts at off. They may cover less or more than n bytes. Flags are those of base:allocation;
	// what has AllocationZero is sent as a hole, mostly without reading it.
	Status(ctx context.Context, off, n int64) ([]StatusExtent, error)
}

// WritableBackend is a Backend that takes writes.
type WritableBackend interface {
	Backend
	WriteAt(ctx context.Context, p []byte, off int64) error
	// WriteZeroes makes n bytes at off zeros; with mayTrim they may become a hole.
	WriteZeroes(ctx context.Context, off, n int64, mayTrim bool) error
	Trim(ctx context.Context, off, n int64) error
	// Flush makes every write that has returned, on any connection, durable.
	Flush(ctx context.Context) error
}

// TryReader is a Backend that knows which bytes it can deliver without waiting. Reads of those cost
// no switch of goroutines.
type TryReader interface {
	// TryReadAt fills p and reports true, or reports false at once if that means I/O, decoding or
	// waiting. It never blocks.
	TryReadAt(p []byte, off int64) bool
}

// FastZeroer is a WritableBackend that knows whether WriteZeroes, with mayTrim or not, is always
// much faster than writing.
type FastZeroer interface {
	FastZeroes() bool
}

// ServedExport is one export of a server. Without a WritableBackend, or with ReadOnly, writes are
// refused with EPERM.
type ServedExport struct {
	Name        string
	Description string
	Backend     Backend
	ReadOnly    bool

	PreferredBlock int64 // of requests, a power of two; 0 means 4096
	MinBlock       int64 // to which requests must be aligned, a power of two up to 64 KiB; 0 means 1
}

// Exports says what a server serves. Its methods are called by many goroutines at once.
type Exports interface {
	// Lookup returns the export that a client asks for. If there is none, the error wraps
	// ErrNoExport.
	Lookup(ctx context.Context, name string) (ServedExport, error)
	// List returns the exports that clients are told of.
	List(ctx context.Context) []Export
}

// ExportList is a fixed set of exports. A client that asks for the empty name gets the only export,
// if there is one alone.
type ExportList []ServedExport

// Lookup returns the export of that name.
func (l ExportList) Lookup(_ context.Context, name string) (ServedExport, error) {
	for _, e := range l {
		if e.Name == name {
			return e, nil
		}
	}
	if name == "" && len(l) == 1 {
		return l[0], nil
	}
	return ServedExport{}, fmt.Errorf("%w: %q", ErrNoExport, name)
}

// List returns all.
func (l ExportList) List(context.Context) []Export {
	var all []Export
	for _, e := range l {
		all = append(all, Export{Name: e.Name, Description: e.Description})
	}
	return all
}

// ServerOptions tunes a Server. The zero value of each field but Exports is its default.
type ServerOptions struct {
	Exports Exports
	// if set, nothing is said before STARTTLS, and TLS is 1.2 or later; client certificates are as
	// it says
	TLS *tls.Config

	// past the handshake; 0 means 128. As many may be in the handshake, where the oldest makes way
	// for a new one
	MaxConnections int
	MaxRequests    int // under way at once, of one connection; 0 means 64
	// bytes of requests under way, of all connections; 0 means 256 MiB. Each connection may have
	// one request beyond it
	MemoryLimit      int64
	HandshakeTimeout time.Duration // for the whole handshake; 0 means 10 seconds
	IdleTimeout      time.Duration // longest time between requests; 0 means no limit
	// longest time for a client to finish sending a request, or to take an answer; 0 means 5
	// minutes
	StallTimeout time.Duration
	DrainTimeout time.Duration // for requests under way when Serve is told to end; 0 means 5 seconds
	Log          *slog.Logger  // nil discards
}

func (o ServerOptions) withDefaults() ServerOptions {
	defaultTo(&o.MaxConnections, 128)
	defaultTo(&o.MaxRequests, 64)
	defaultTo(&o.MemoryLimit, 256<<20)
	defaultTo(&o.HandshakeTimeout, 10*time.Second)
	defaultTo(&o.StallTimeout, 5*time.Minute)
	defaultTo(&o.DrainTimeout, 5*time.Second)
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.TLS != nil {
		o.TLS = o.TLS.Clone()
		o.TLS.MinVersion = max(o.TLS.MinVersion, tls.VersionTLS12)
		o.TLS.DynamicRecordSizingDisabled = true // clients want whole blocks, not first bytes
	}
	return o
}

func defaultTo[T int | int64 | time.Duration](v *T, d T) {
	if *v <= 0 {
		*v = d
	}
}

// Server serves exports to any number of connections, each with many requests under way at once.
// Clients are not trusted: time and memory are bounded, and one that is slow to take its answers
// keeps nobody else waiting.
type Server struct {
	opts   ServerOptions
	memory *semaphore.Weighted

	mu          sync.Mutex
	shaking     []*connection // in the handshake, oldest first
	established int           // past the handshake
}

// NewServer returns a Server. Call Serve to start it.
func NewServer(o ServerOptions) *Server {
	o = o.withDefaults()
	return &Server{opts: o, memory: semaphore.NewWeighted(o.MemoryLimit)}
}

// Serve accepts connections until ctx ends, and returns nil, or until l fails. It closes l. Then
// requests under way have DrainTimeout to end, new ones are refused with ESHUTDOWN, and connections
// that have none are closed. Everything that Serve started has stopped when it returns. Several
// listeners may be served at once.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	base, cancel := context.WithCancel(context.WithoutCancel(ctx)) // requests outlive ctx by the drain
	defer cancel()
	serving, drain := context.WithCancel(ctx)
	defer drain()
	var conns sync.WaitGroup
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	err := s.accept(ctx, l, func(conn net.Conn) {
		conns.Go(func() { s.serveConn(serving, base, conn) })
	})
	l.Close()
	drain()
	conns.Wait()
	return err
}

// accept hands every connection to handle. It returns when l is closed; for want of file
// descriptors it waits a little.
func (s *Server) accept(ctx context.Context, l net.Listener, handle func(net.Conn)) error {
	const longest = time.Second
	for wait := time.Duration(0); ; {
		conn, err := l.Accept()
		var temporary interface{ Temporary() bool }
		switch {
		case err == nil:
			wait = 0
			handle(conn)
			continue
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, net.ErrClosed) || !errors.As(err, &temporary) || !temporary.Temporary():
			return fmt.Errorf("accept NBD connections at %v: %w", l.Addr(), err)
		}
		wait = min(max(2*wait, 5*time.Millisecond), longest)
		s.opts.Log.WarnContext(ctx, "accept NBD connection", "err", err, "retry_in", wait)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
	}
}
