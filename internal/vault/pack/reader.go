package pack

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/holdfast-vm/holdfast/internal/blob"
	"github.com/holdfast-vm/holdfast/internal/vault/log"
)

// Reader opens rows of packs. It keeps the keys of recent salts and is safe for concurrent use.
type Reader struct {
	store blob.Store
	keys  keyring
}

// NewReader returns a Reader of the packs in store.
func NewReader(secret *Secret, store blob.Store) *Reader {
	return &Reader{store: store, keys: keyring{secret: secret, keys: map[log.Salt]*keys{}}}
}

// ReadSealed fills p with the sealed bytes of the pack from offset off: one or several neighbouring
// rows. A pack that ends before is ErrCorrupt, one that is not there blob.ErrNotExist.
func (r *Reader) ReadSealed(ctx context.Context, o log.Object, p []byte, off int64) error {
	if len(p) == 0 {
		return nil
	}
	if err := readFull(ctx, r.store, o.Name(), p, off); err != nil {
		return fmt.Errorf("read pack %s: %w", o.ID, err)
	}
	return nil
}

// Unseal returns the encoded bytes of the row e from sealed, which is overwritten. Bytes that are
// not as they were written are ErrCorrupt.
func (r *Reader) Unseal(e *Entry, sealed []byte) ([]byte, error) {
	k, err := r.keys.of(e.Salt)
	if err != nil {
		return nil, err
	}
	return k.open(e, sealed)
}

// readFull fills p, or says that the object ends before.
func readFull(ctx context.Context, store blob.Store, name string, p []byte, off int64) error {
	n, err := store.ReadAt(ctx, name, p, off)
	if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) || err == nil && n < len(p) {
		return fmt.Errorf("%w: it ends before offset %d", ErrCorrupt, off+int64(len(p)))
	}
	return err
}

// readToEnd returns the last n bytes of the object, which must end after them.
func readToEnd(ctx context.Context, store blob.Store, name string, n int, off int64) ([]byte, error) {
	p := make([]byte, n+1)
	got, err := store.ReadAt(ctx, name, p, off)
	switch {
	case err == nil:
		return nil, fmt.Errorf("%w: it goes on after offset %d", ErrCorrupt, off+int64(n))
	case !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF):
		return nil, err
	case got != n:
		return nil, fmt.Errorf("%w: it ends before offset %d", ErrCorrupt, off+int64(n))
	}
	return p[:n], nil
}
