// Package content reads what packs hold: chunks, tree nodes, the manifests of points, and disks.
//
// It knows no points and holds nothing: whoever reads keeps what he reads from being purged. What
// was moved by a collection meanwhile is found by reading the log on, which a [Source] does by
// itself when something is not where it was (rule R7 of docs/design/log.md).
//
// What is returned as read has been authenticated. Whatever is missing or was changed is
// [ErrCorrupt]; any other error is a fault of access, after which the same call may succeed.
package content

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/singleflight"

	"github.com/holdfast-vm/holdfast/internal/blob"
	"github.com/holdfast-vm/holdfast/internal/vault/chunk"
	"github.com/holdfast-vm/holdfast/internal/vault/index"
	"github.com/holdfast-vm/holdfast/internal/vault/pack"
	"github.com/holdfast-vm/holdfast/internal/vault/row"
)

// ErrCorrupt reports that bytes of the vault are missing or not as they were written.
var ErrCorrupt = errors.New("the vault is damaged")

// Places says where chunks are stored; an index.Index does.
type Places interface {
	Find(ctx context.Context, id chunk.ID, skip func(*index.Loc) bool) (index.Loc, bool, error)
	FindAll(ctx context.Context, id chunk.ID) ([]index.Loc, error)
}

// Parts is what a Source is made of.
type Parts struct {
	Index     Places
	Packs     *pack.Reader
	ChunkKey  [32]byte // of the IDs of chunks, for Verify
	ChunkSize int      // bytes
	Workers   int      // goroutines that open what was read; at least 1
	// Look reads the log on and has the index take in what was added, and reports whether anything
	// was learned. A Source never calls it twice at once. nil means that nothing can be learned.
	Look func(ctx context.Context) (more bool, err error)
}

// Source reads what packs hold. It is safe for concurrent use.
type Source struct {
	p       Parts
	nodes   *nodeCache
	look    singleflight.Group
	learned atomic.Uint64 // looks that learned anything
}

// New returns a Source.
func New(p Parts) *Source {
	p.Workers = max(p.Workers, 1)
	return &Source{p: p, nodes: newNodeCache()}
}

// IsDamage reports whether err says that bytes are missing or wrong, as opposed to a fault of
// access.
func IsDamage(err error) bool {
	for _, damage := range []error{ErrCorrupt, pack.ErrCorrupt, chunk.ErrCorrupt, row.ErrCorrupt, blob.ErrNotExist} {
		if errors.Is(err, damage) {
			return true
		}
	}
	return false
}

// Find returns a place of id, looking once more if there is none.
func (s *Source) Find(ctx context.Context, id chunk.ID) (loc index.Loc, found bool, err error) {
	since := s.learned.Load()
	loc, found, err = s.p.Index.Find(ctx, id, nil)
	if err != nil || found {
		return loc, found, err
	}
	if more, err := s.lookAgain(ctx, since); err != nil || !more {
		return loc, false, err
	}
	return s.p.Index.Find(ctx, id, nil)
}

// Chunk returns the plain bytes of a chunk, a node or a manifest in buf, which must be large
// enough, from the first place that is whole; if none is, it looks for others and tries again.
// Damage in all of them, or no place at all, is ErrCorrupt.
func (s *Source) Chunk(ctx context.Context, id chunk.ID, buf []byte) ([]byte, error) {
	var plain []byte
	err := s.twice(ctx, func() (err error) {
		plain, err = s.readPlaces(ctx, id, buf)
		return err
	})
	return plain, err
}

// twice calls read, and once more after a look if what it reads is damaged or missing.
func (s *Source) twice(ctx context.Context, read func() error) error {
	since := s.learned.Load()
	err := read()
	if err == nil || !IsDamage(err) {
		return err
	}
	if more, lookErr := s.lookAgain(ctx, since); lookErr != nil {
		return lookErr
	} else if !more {
		return err
	}
	return read()
}

// lookAgain takes in what other processes did, and reports whether anything was learned since the
// count since: a collection may have moved what is looked for, a session may have stored it.
// Callers at the same time share one look, which began after the first of them had asked; a caller
// that joins late looks once more.
func (s *Source) lookAgain(ctx context.Context, since uint64) (more bool, err error) {
	if s.p.Look == nil {
		return false, nil
	}
	look := func() (any, error) {
		more, err := s.p.Look(context.WithoutCancel(ctx))
		if more {
			s.learned.Add(1)
		}
		return nil, err
	}
	for range 2 {
		select {
		case res := <-s.look.DoChan("", look):
			if res.Err != nil {
				return false, fmt.Errorf("look again for what was not found: %w", res.Err)
			}
			if !res.Shared {
				return s.learned.Load() != since, nil
			}
		case <-ctx.Done():
			return false, ctx.Err()
		}
	}
	return s.learned.Load() != since, nil
}

// readPlaces reads id from the first place that is whole, as far as the index knows now.
func (s *Source) readPlaces(ctx context.Context, id chunk.ID, buf []byte) ([]byte, error) {
	locs, err := s.p.Index.FindAll(ctx, id)
	if err != nil {
		return nil, fmt.Errorf("find %s: %w", id, err)
	}
	why := noPlace(id)
	codec := codecs.Get().(*chunk.Codec)
	defer codecs.Put(codec)
	for i := range locs {
		l := &locs[i]
		if int64(l.Plain) > int64(len(buf)) {
			why = wrongSize(id, l.Plain)
			continue
		}
		err := s.readLoc(ctx, l, buf[:l.Plain], codec)
		if err == nil {
			return buf[:l.Plain], nil
		}
		if !IsDamage(err) {
			return nil, err
		}
		why = fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	return nil, why
}

// readLoc fills plain from one place.
func (s *Source) readLoc(ctx context.Context, l *index.Loc, plain []byte, codec *chunk.Codec) error {
	sealed := takeBuffer(int(l.Stored))
	defer giveBuffer(sealed)
	if err := s.p.Packs.ReadSealed(ctx, l.Pack, sealed.b, int64(l.Offset)); err != nil {
		return err
	}
	return s.open(&l.Entry, sealed.b, plain, codec)
}

// open authenticates and decodes a row.
func (s *Source) open(e *pack.Entry, sealed, plain []byte, codec *chunk.Codec) error {
	encoded, err := s.p.Packs.Unseal(e, sealed)
	if err != nil {
		return err
	}
	return codec.Decode(plain, encoded, e.Encoding)
}

// codecs are decoders for single reads; levels do not matter to them.
var codecs = sync.Pool{New: func() any { return chunk.NewCodec(chunk.Fast) }}

// noPlace is ErrCorrupt for a chunk that no good pack has.
func noPlace(id chunk.ID) error { return fmt.Errorf("%w: %s is in no pack", ErrCorrupt, id) }

// wrongSize is ErrCorrupt for a chunk of another size than is wanted.
func wrongSize(id chunk.ID, n uint32) error {
	return fmt.Errorf("%w: %s has %d bytes", ErrCorrupt, id, n)
}
