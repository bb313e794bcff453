package pack

import (
	"context"
	"fmt"
	"hash/crc32"

	"github.com/holdfast-vm/holdfast/internal/blob"
	"github.com/holdfast-vm/holdfast/internal/directio"
	"github.com/holdfast-vm/holdfast/internal/vault/chunk"
)

// writeSize is how much is gathered before it goes to the store: large writes, small memory.
const writeSize = 1 << 20

// Writer writes one pack. What is full is written while the next is gathered. It is not safe for concurrent use.
type Writer struct {
	ref     Ref
	header  []byte
	keys    *keys
	out     blob.Writer
	buf     []byte // gathered; begins on a boundary of blocks, in memory as in the pack
	behind  *behind
	flushed int64 // bytes handed to out
	entries []Entry
}

// Create begins the pack ref of vault in s.
func (s *Secret) Create(ctx context.Context, store blob.Store, ref Ref, vault [16]byte) (*Writer, error) {
	k, err := s.derive(ref.ID)
	if err != nil {
		return nil, err
	}
	out, err := store.Create(ctx, ref.Name())
	if err != nil {
		return nil, fmt.Errorf("begin pack %s: %w", ref.ID, err)
	}
	w := &Writer{ref: ref, keys: k, out: out, header: header(ref, vault)}
	w.buf = append(newBuffer(), w.header...)
	return w, nil
}

// Ref returns the pack's name.
func (w *Writer) Ref() Ref { return w.ref }

// Size returns the bytes of chunks and header so far.
func (w *Writer) Size() int64 { return w.flushed + int64(len(w.buf)) }

// Full reports whether the pack has reached limit bytes or the most entries.
func (w *Writer) Full(limit int64) bool { return w.Size() >= limit || len(w.entries) >= MaxEntries }

// Append seals encoded, the stored form of a chunk of plain bytes, into the pack and returns its entry.
func (w *Writer) Append(id chunk.ID, plain int, encoded []byte, enc chunk.Encoding) (Entry, error) {
	e := Entry{ID: id, Offset: uint32(w.Size()), Stored: uint32(len(encoded) + TagSize), Plain: uint32(plain), Encoding: enc}
	at := len(w.buf)
	w.buf = w.keys.seal(w.buf, &e, encoded)
	e.Sum = crc32.Checksum(w.buf[at:], castagnoli)
	w.entries = append(w.entries, e)
	if len(w.buf) >= writeSize {
		return e, w.flush()
	}
	return e, nil
}

// flush has the whole blocks that are gathered written behind our back.
func (w *Writer) flush() error {
	if w.behind == nil {
		w.behind = writeBehind(w.out)
	}
	next, err := w.behind.buffer()
	if err != nil {
		return fmt.Errorf("write pack %s: %w", w.ref.ID, err)
	}
	n := len(w.buf) / directio.Align * directio.Align
	next = append(next, w.buf[n:]...)
	w.behind.write(w.buf[:n])
	w.buf, w.flushed = next, w.flushed+int64(n)
	return nil
}

// settle waits until all is written that was flushed.
func (w *Writer) settle() error {
	if w.behind == nil {
		return nil
	}
	err := w.behind.end()
	w.behind = nil
	if err != nil {
		return fmt.Errorf("write pack %s: %w", w.ref.ID, err)
	}
	return nil
}

// Commit writes the table and makes the pack durable and visible. It returns the table, which the caller may keep.
func (w *Writer) Commit(ctx context.Context) ([]Entry, error) {
	if err := w.settle(); err != nil {
		return nil, err
	}
	tableOff := w.Size()
	table := make([]byte, 0, len(w.entries)*EntrySize)
	for i := range w.entries {
		table = w.entries[i].append(table)
	}
	w.buf = append(w.buf, table...)
	w.buf = append(w.buf, footer(len(w.entries), tableOff, table, w.keys.tableMAC(w.header, table))...)
	if _, err := w.out.Write(w.buf); err != nil {
		return nil, fmt.Errorf("write pack %s: %w", w.ref.ID, err)
	}
	if err := w.out.Commit(ctx); err != nil {
		return nil, fmt.Errorf("commit pack %s: %w", w.ref.ID, err)
	}
	w.release()
	return w.entries, nil
}

// Abort drops the pack. It is a no-op after Commit.
func (w *Writer) Abort() {
	_ = w.settle() // nobody needs it any more
	w.out.Abort()
	w.release()
}

// release gives the buffer back.
func (w *Writer) release() {
	freeBuffer(w.buf)
	w.buf = nil
}
