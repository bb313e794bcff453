package index

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"syscall"

	"github.com/zeebo/blake3"

	"github.com/holdfast-vm/holdfast/internal/blob"
)

const tagSize = 16 // of AES-GCM

// sealer returns what seals the blocks of one object. The random part of its name makes the key its
// own.
func (s *Source) sealer(name string) (cipher.AEAD, error) {
	h, err := blake3.NewKeyed(s.Key[:])
	if err != nil {
		return nil, fmt.Errorf("derive key of %s: %w", name, err)
	}
	h.Write([]byte("holdfast index v1 "))
	h.Write(s.Vault[:])
	h.Write([]byte(name))
	block, err := aes.NewCipher(h.Sum(nil)[:32])
	if err != nil {
		return nil, fmt.Errorf("derive key of %s: %w", name, err)
	}
	return cipher.NewGCM(block)
}

// section is a part of an object. The numbers go into nonces.
type section uint32

const (
	rowBlocks    section = 1
	pages        section = 2
	originBlocks section = 3
	rootBody     section = 4
)

// nonce is that of the n-th block of a section: each is sealed once.
func (s section) nonce(n int64) []byte {
	b := binary.LittleEndian.AppendUint32(make([]byte, 0, 12), uint32(s))
	return binary.LittleEndian.AppendUint64(b, uint64(n))
}

// lostError reports a segment that is gone, or not as it was written.
type lostError struct {
	seg  *segment
	gone bool // there is none of its name; it may have been merged away
	why  error
}

func (e *lostError) Error() string {
	return fmt.Sprintf("read index segment %s: %v", e.seg.name, e.why)
}
func (e *lostError) Unwrap() error { return e.why }

// errDamaged reports bytes of the index that are not as they were written.
var errDamaged = errors.New("it is not as it was written")

// readFull fills p from an object of the index. What makes the object useless is told apart from
// what may pass.
func readFull(ctx context.Context, store blob.Store, name string, p []byte, off int64) (useless bool, err error) {
	_, err = store.ReadAt(ctx, name, p, off)
	switch {
	case err == nil || ctx.Err() != nil:
		return false, err
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
		return true, fmt.Errorf("%w: it is cut short", errDamaged)
	}
	return errors.Is(err, syscall.EIO) || errors.Is(err, blob.ErrNotExist), err
}
