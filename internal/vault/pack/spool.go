package pack

import (
	"context"

	"github.com/holdfast-vm/holdfast/internal/blob"
	"github.com/holdfast-vm/holdfast/internal/directio"
)

const (
	// writeSize is how much is gathered before it goes on its way: large writes, small memory.
	writeSize = 1 << 20
	// maxHeld is how many full buffers lie in memory before an object is begun in the store.
	maxHeld = 4
)

// spool takes the bytes of an object. Up to maxHeld buffers they lie in memory, and the store hears
// of nothing before commit; then they are written behind the owner's back while more is gathered.
// After an error it is good for drop only.
type spool struct {
	store blob.Store
	name  string

	buf    []byte   // being gathered; begins on a boundary of blocks, in memory as in the object
	held   [][]byte // full, while all is in memory
	passed int64    // bytes before buf

	out    blob.Writer // nil while all is in memory
	behind *behind
}

func newSpool(store blob.Store, name string) *spool {
	return &spool{store: store, name: name, buf: newBuffer()}
}

func (s *spool) size() int64 { return s.passed + int64(len(s.buf)) }

// inMemory reports whether nothing was handed to the store yet.
func (s *spool) inMemory() bool { return s.out == nil }

// add takes bytes that are copied.
func (s *spool) add(ctx context.Context, p []byte) error {
	for len(p) > 0 {
		n := min(len(p), max(writeSize-len(s.buf), 0)+directio.Align)
		s.buf = append(s.buf, p[:n]...)
		p = p[n:]
		if err := s.gathered(ctx); err != nil {
			return err
		}
	}
	return nil
}

// gathered is called after something was appended to buf, and sends whole blocks on their way once
// there are enough.
func (s *spool) gathered(ctx context.Context) error {
	if len(s.buf) < writeSize {
		return nil
	}
	if s.behind != nil {
		if err := s.behind.error(); err != nil {
			return err
		}
	}
	n := len(s.buf) / directio.Align * directio.Align
	full, next := s.buf[:n], append(newBuffer(), s.buf[n:]...)
	s.buf, s.passed = next, s.passed+int64(n)
	if s.behind != nil {
		s.behind.write(full)
		return nil
	}
	s.held = append(s.held, full)
	if len(s.held) < maxHeld {
		return nil
	}
	return s.spill(ctx)
}

// spill begins the object in the store, and writing.
func (s *spool) spill(ctx context.Context) error {
	out, err := s.store.Create(ctx, s.name)
	if err != nil {
		return err
	}
	s.out, s.behind = out, writeBehind(out)
	for _, p := range s.held {
		s.behind.write(p)
	}
	s.held = nil
	return nil
}

// commit adds the last bytes and makes the object durable and visible.
func (s *spool) commit(ctx context.Context, last []byte) error {
	if err := s.settle(); err != nil {
		return err
	}
	if s.out == nil {
		out, err := s.store.Create(ctx, s.name)
		if err != nil {
			return err
		}
		s.out = out
	}
	s.buf = append(s.buf, last...)
	for _, p := range append(s.held, s.buf) {
		if _, err := s.out.Write(p); err != nil {
			return err
		}
	}
	return s.out.Commit(ctx)
}

// settle waits until all is written that is on its way.
func (s *spool) settle() error {
	if s.behind == nil {
		return nil
	}
	err := s.behind.end()
	s.behind = nil
	return err
}

// copyTo hands all bytes from offset off on to add, in order. All must be in memory.
func (s *spool) copyTo(off int, add func([]byte) error) error {
	for _, p := range append(s.held[:len(s.held):len(s.held)], s.buf) {
		if off >= len(p) {
			off -= len(p)
			continue
		}
		if err := add(p[off:]); err != nil {
			return err
		}
		off = 0
	}
	return nil
}

// drop gives up what is not committed, and gives the buffers back.
func (s *spool) drop() {
	_ = s.settle() // nobody needs it any more
	if s.out != nil {
		s.out.Abort()
	}
	for _, p := range append(s.held, s.buf) {
		freeBuffer(p)
	}
	s.held, s.buf = nil, nil
}
