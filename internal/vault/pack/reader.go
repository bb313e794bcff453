package pack

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"sync"

	"github.com/holdfast-vm/holdfast/internal/blob"
	"github.com/holdfast-vm/holdfast/internal/vault/chunk"
)

// Table reads and checks the table of the pack ref, whose object has size bytes. It returns an error that wraps ErrCorrupt when
// anything but the chunks themselves is not as it was written.
func (s *Secret) Table(ctx context.Context, store blob.Store, ref Ref, vault [16]byte, size int64) ([]Entry, error) {
	entries, err := s.table(ctx, store, ref, vault, size)
	if err != nil {
		return nil, fmt.Errorf("read table of pack %s: %w", ref.ID, err)
	}
	return entries, nil
}

func (s *Secret) table(ctx context.Context, store blob.Store, ref Ref, vault [16]byte, size int64) ([]Entry, error) {
	if size < HeaderSize+FooterSize || size > MaxSize {
		return nil, fmt.Errorf("%w: it is %d bytes long", ErrCorrupt, size)
	}
	head, foot := make([]byte, HeaderSize), make([]byte, FooterSize)
	if err := readFull(ctx, store, ref, head, 0); err != nil {
		return nil, err
	}
	if err := readFull(ctx, store, ref, foot, size-FooterSize); err != nil {
		return nil, err
	}
	if !bytes.Equal(head, header(ref, vault)) {
		return nil, fmt.Errorf("%w: its header is not that of this pack of this vault", ErrCorrupt)
	}
	count, tableOff, err := parseFooter(foot, size)
	if err != nil {
		return nil, err
	}
	raw := make([]byte, count*EntrySize)
	if err := readFull(ctx, store, ref, raw, tableOff); err != nil {
		return nil, err
	}
	k, err := s.derive(ref.ID)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(foot, footer(count, tableOff, raw, k.tableMAC(head, raw))) {
		return nil, fmt.Errorf("%w: its table does not authenticate", ErrCorrupt)
	}
	return parseTable(raw, tableOff)
}

// parseFooter returns the count of entries and the offset of their table, checked against the object's size.
func parseFooter(foot []byte, size int64) (count int, tableOff int64, err error) {
	if len(foot) != FooterSize || string(foot[FooterSize-8:]) != footMagic {
		return 0, 0, fmt.Errorf("%w: it has no footer: it was cut short or overwritten", ErrCorrupt)
	}
	n := int64(binary.LittleEndian.Uint32(foot))
	off := binary.LittleEndian.Uint64(foot[8:])
	if n > MaxEntries || off < HeaderSize || off > uint64(size) || int64(off)+n*EntrySize+FooterSize != size {
		return 0, 0, fmt.Errorf("%w: its footer does not fit its size", ErrCorrupt)
	}
	return int(n), int64(off), nil
}

// parseTable checks that the chunks fill the space between header and table exactly.
func parseTable(raw []byte, tableOff int64) ([]Entry, error) {
	entries := make([]Entry, 0, len(raw)/EntrySize)
	at := int64(HeaderSize)
	for len(raw) >= EntrySize {
		e := parseEntry(raw)
		if int64(e.Offset) != at || e.Stored < TagSize || e.Plain == 0 || e.Plain > chunk.MaxSize || e.Stored > chunk.MaxSize+TagSize {
			return nil, fmt.Errorf("%w: row %d of its table makes no sense", ErrCorrupt, len(entries))
		}
		at += int64(e.Stored)
		entries = append(entries, e)
		raw = raw[EntrySize:]
	}
	if at != tableOff {
		return nil, fmt.Errorf("%w: its chunks end at %d, its table begins at %d", ErrCorrupt, at, tableOff)
	}
	return entries, nil
}

func readFull(ctx context.Context, store blob.Store, ref Ref, p []byte, off int64) error {
	if len(p) == 0 {
		return nil
	}
	_, err := store.ReadAt(ctx, ref.Name(), p, off)
	if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
		return fmt.Errorf("%w: it ends before offset %d", ErrCorrupt, off+int64(len(p)))
	}
	return err
}

// Reader opens chunks of packs. It keeps the keys of recent packs and is safe for concurrent use.
type Reader struct {
	secret *Secret
	store  blob.Store

	mu   sync.Mutex
	keys map[ID]*keys
}

// maxKeys bounds the key cache: about 1 KiB each.
const maxKeys = 1024

// NewReader returns a Reader of the packs in store.
func NewReader(secret *Secret, store blob.Store) *Reader {
	return &Reader{secret: secret, store: store, keys: make(map[ID]*keys)}
}

func (r *Reader) keysOf(id ID) (*keys, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if k := r.keys[id]; k != nil {
		return k, nil
	}
	k, err := r.secret.derive(id)
	if err != nil {
		return nil, err
	}
	if len(r.keys) >= maxKeys {
		clear(r.keys)
	}
	r.keys[id] = k
	return k, nil
}

// ReadSealed fills p with the sealed bytes of the pack from offset off: one or several neighbouring chunks.
func (r *Reader) ReadSealed(ctx context.Context, ref Ref, p []byte, off int64) error {
	if err := readFull(ctx, r.store, ref, p, off); err != nil {
		return fmt.Errorf("read pack %s: %w", ref.ID, err)
	}
	return nil
}

// Unseal returns the encoded bytes of the chunk e from sealed, which is overwritten. Bytes that are not as they were
// written are ErrCorrupt.
func (r *Reader) Unseal(ref Ref, e *Entry, sealed []byte) ([]byte, error) {
	k, err := r.keysOf(ref.ID)
	if err != nil {
		return nil, err
	}
	out, err := k.open(e, sealed)
	if err != nil {
		return nil, fmt.Errorf("pack %s: %w", ref.ID, err)
	}
	return out, nil
}

// SumOK reports whether sealed bytes have the CRC that the table names. It needs no key.
func (e *Entry) SumOK(sealed []byte) bool { return crc32.Checksum(sealed, castagnoli) == e.Sum }
