// Package export serves the disks of recovery points over NBD, as if they were there.
//
// A [Server] serves any number of disks of the points of one vault, read-only or with a private
// [Layer] that takes the writes. All share one [Cache] of decoded chunks. Opening costs the same
// whatever a disk's size: chunks are fetched, authenticated and decoded when they are read, ahead
// of sequential readers, and ahead of a machine that boots where an earlier boot was recorded. What
// is served stays readable while the Server is open, even if its point is deleted.
//
// Offsets and lengths are bytes. A Server is safe for concurrent use.
package export

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-vm/holdfast/internal/nbd"
	"github.com/holdfast-vm/holdfast/internal/point"
	"github.com/holdfast-vm/holdfast/internal/vault"
)

// Errors that callers decide by.
var (
	ErrExists = errors.New("an export of this name is served already")
)

// Options tunes a Server. The zero value of each field is its default.
type Options struct {
	CacheSize int64       // bytes of decoded chunks kept; 0 means 256 MiB
	TLS       *tls.Config // nil speaks in the clear
	// how long after its first read a boot is recorded, where that is asked for; 0 means 5 minutes
	BootTime time.Duration
	Log      *slog.Logger // nil discards
}

func (o Options) withDefaults() Options {
	if o.CacheSize <= 0 {
		o.CacheSize = 256 << 20
	}
	if o.BootTime <= 0 {
		o.BootTime = 5 * time.Minute
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return o
}

// Server serves disks of the points of one vault.
type Server struct {
	v      *vault.Vault
	opts   Options
	reader *vault.Reader
	cache  *Cache
	nbd    *nbd.Server
	stats  counters
	life   context.Context
	end    context.CancelFunc
	bg     *background

	bootRoom atomic.Int64 // bytes of the cache that boots yet to come may fill ahead

	mu      sync.Mutex
	exports map[string]*served
}

// served is an export with what is to be closed at its end.
type served struct {
	Export
	disk  *Disk
	layer *Layer // nil for one that is read-only
}

// Request asks for an export.
type Request struct {
	Point *point.RecoveryPoint
	Disk  string // name of the disk, or role of a file of the machine such as nvram, or ROLE/NAME of one
	Name  string // of the export; "" is the point's short ID, a slash and Disk

	// WritableDir is where a private layer takes the writes; "" serves the disk read-only. The
	// layer is kept, and found again when the same disk is served from there again.
	WritableDir string

	// RecordBoot keeps, with the point, which parts of the disk are read in Options.BootTime from
	// the first read on, if the point has no such record yet.
	RecordBoot bool
}

// Export is a disk that is served.
type Export struct {
	Name     string
	Disk     string
	Size     int64 // bytes
	Writable bool
	Backend  nbd.Backend // for readers in this process
}

// Open returns a Server of the points of v. It keeps from being deleted what points have that are
// there now; call Close to end that.
func Open(ctx context.Context, v *vault.Vault, o Options) (*Server, error) {
	reader, err := v.OpenReader(ctx)
	if err != nil {
		return nil, err
	}
	s := &Server{v: v, opts: o.withDefaults(), reader: reader, exports: make(map[string]*served)}
	s.cache = NewCache(s.opts.CacheSize)
	s.life, s.end = context.WithCancel(context.WithoutCancel(ctx))
	s.bg = newBackground()
	s.bootRoom.Store(s.cache.Limit() / 2)
	s.nbd = nbd.NewServer(nbd.ServerOptions{Exports: s, TLS: s.opts.TLS, Log: s.opts.Log})
	return s, nil
}

// Add serves a disk. The point must exist: what it needs is not deleted any more then. It returns
// point.ErrNoDisk, ErrExists, vault.ErrNoPoint, and for a layer the errors of OpenLayer.
func (s *Server) Add(ctx context.Context, r Request) (Export, error) {
	e, err := s.add(ctx, r)
	if err != nil {
		return Export{}, fmt.Errorf("serve %s: %w", r.Disk, err)
	}
	return e, nil
}

func (s *Server) add(ctx context.Context, r Request) (Export, error) {
	root, size, err := find(r.Point, r.Disk)
	if err != nil {
		return Export{}, err
	}
	if r.Name == "" {
		r.Name = r.Point.ID.Short() + "/" + r.Disk
	}
	// From here on nobody purges the point.
	if err := s.reader.RequirePoint(ctx, r.Point.ID); err != nil {
		return Export{}, err
	}
	disk, err := s.open(root, size)
	if err != nil {
		return Export{}, err
	}
	x := &served{disk: disk, Export: Export{Name: r.Name, Disk: r.Disk, Size: size, Backend: disk}}
	if r.RecordBoot {
		disk.rec = newRecorder(s.opts.BootTime, func(set bootSet) { s.bg.always(func() { s.keepBootSet(r, set) }) })
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.exports[r.Name] != nil {
		return Export{}, fmt.Errorf("%w: %s", ErrExists, r.Name)
	}
	if r.WritableDir != "" {
		of := LayerOf{Vault: s.v.ID(), Root: root, Size: size}
		if x.layer, err = OpenLayer(r.WritableDir, strings.ReplaceAll(r.Disk, "/", "-"), disk, of); err != nil {
			return Export{}, err
		}
		x.Backend, x.Writable = x.layer, true
	}
	s.exports[r.Name] = x
	s.bg.always(func() { s.prefetchBoot(r, disk) })
	return x.Export, nil
}

// find returns the tree of a disk or file of a point.
func find(p *point.RecoveryPoint, name string) (root string, size int64, err error) {
	for _, d := range p.Disks {
		if d.Name == name {
			return d.Root, d.Size, nil
		}
	}
	for _, f := range p.Files {
		if f.Role == name || path.Join(f.Role, f.Name) == name {
			return f.Root, f.Size, nil
		}
	}
	return "", 0, fmt.Errorf("%w: %q", point.ErrNoDisk, name)
}

// open returns the backend of a stored disk.
func (s *Server) open(root string, size int64) (*Disk, error) {
	disk, err := s.reader.Disk(root, size)
	if err != nil {
		return nil, err
	}
	return &Disk{
		disk: disk, reader: s.reader, cache: s.cache, life: s.life, bg: s.bg, ahead: newReadAhead(s.opts.CacheSize),
		stats: &s.stats, size: size, chunk: disk.ChunkSize(),
	}, nil
}

// Remove stops serving an export. Clients that are connected to it must have gone; its layer is
// flushed and stays.
func (s *Server) Remove(name string) error {
	s.mu.Lock()
	x := s.exports[name]
	delete(s.exports, name)
	s.mu.Unlock()
	if x == nil {
		return fmt.Errorf("%w: %q", nbd.ErrNoExport, name)
	}
	return x.close()
}

func (x *served) close() error {
	if x.disk.rec != nil {
		x.disk.rec.finish()
	}
	if x.layer == nil {
		return nil
	}
	return x.layer.Close()
}

// Serve answers clients on l until ctx ends, and returns nil, or until l fails. It closes l.
// Several listeners may be served at once.
func (s *Server) Serve(ctx context.Context, l net.Listener) error { return s.nbd.Serve(ctx, l) }

// Close ends the server, which must not be serving any more: layers are flushed and closed, what
// was recorded is kept, and the vault's garbage may be collected again.
func (s *Server) Close() error {
	s.mu.Lock()
	all := s.exports
	s.exports = make(map[string]*served)
	s.mu.Unlock()
	var errs []error
	for _, x := range all {
		errs = append(errs, x.close())
	}
	s.end()
	s.bg.wait()
	return errors.Join(append(errs, s.reader.Close())...)
}

// Lookup implements nbd.Exports. The empty name is the only export.
func (s *Server) Lookup(_ context.Context, name string) (nbd.ServedExport, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	x := s.exports[name]
	if name == "" && len(s.exports) == 1 {
		for _, x = range s.exports {
		}
	}
	if x == nil {
		return nbd.ServedExport{}, fmt.Errorf("%w: %q", nbd.ErrNoExport, name)
	}
	return nbd.ServedExport{
		Name: x.Name, Backend: x.Backend, ReadOnly: !x.Writable, PreferredBlock: x.preferred(),
	}, nil
}

// preferred is the size of requests that costs least: a chunk, or what a layer is made of.
func (x *served) preferred() int64 {
	if x.Writable {
		return layerBlock
	}
	return x.disk.chunk
}

// List implements nbd.Exports.
func (s *Server) List(context.Context) []nbd.Export {
	var out []nbd.Export
	for _, x := range s.Exports() {
		out = append(out, nbd.Export{Name: x.Name})
	}
	return out
}

// Exports returns what is served, by name.
func (s *Server) Exports() []Export {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []Export
	for _, x := range s.exports {
		out = append(out, x.Export)
	}
	slices.SortFunc(out, func(a, b Export) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// Stats says what a Server has done. Sizes are in bytes.
type Stats struct {
	ReadBytes    int64 `json:"read_bytes"`    // read by clients from stored disks
	Hits         int64 `json:"hits"`          // reads answered from the cache
	Misses       int64 `json:"misses"`        // reads that had to fetch
	FetchedBytes int64 `json:"fetched_bytes"` // of decoded chunks, from the vault
	AheadBytes   int64 `json:"ahead_bytes"`   // of those, fetched before anybody asked
	CachedBytes  int64 `json:"cached_bytes"`  // in the cache now
}

// Stats returns what was done so far, by all exports.
func (s *Server) Stats() Stats {
	return Stats{
		ReadBytes: s.stats.bytes.Load(), Hits: s.stats.hits.Load(), Misses: s.stats.misses.Load(),
		FetchedBytes: s.stats.fetched.Load(), AheadBytes: s.stats.ahead.Load(), CachedBytes: s.cache.Bytes(),
	}
}
