package pack

import (
	"context"
	"fmt"
	"hash/crc32"

	"github.com/holdfast-vm/holdfast/internal/blob"
	"github.com/holdfast-vm/holdfast/internal/vault/log"
)

// Check reads a whole pack that an entry of the log tells of and reports whether it is as it was
// written, as far as that can be known without a key: an error that wraps ErrCorrupt says that it
// is not. It finds whatever disks and networks do to a pack. Somebody who knows the format can
// change rows so that it does not find it; the tags of the rows, which need the key, do.
func Check(ctx context.Context, store blob.Store, o log.Object) error {
	t, err := readTrailer(ctx, store, &o)
	if err == nil && t.sum != o.Sum {
		err = errOtherSum
	}
	var sum uint32
	if err == nil {
		sum, err = sumUpTo(ctx, store, o.Name(), t.foot.table)
	}
	if err == nil && sum != t.foot.body {
		err = fmt.Errorf("%w: its rows have another checksum", ErrCorrupt)
	}
	if err != nil {
		return fmt.Errorf("check pack %s: %w", o.ID, err)
	}
	return nil
}

// sumUpTo returns the CRC-32C of the first n bytes of an object.
func sumUpTo(ctx context.Context, store blob.Store, name string, n int64) (sum uint32, err error) {
	buf := newBuffer()[:writeSize]
	defer freeBuffer(buf)
	for off := int64(0); off < n; off += int64(len(buf)) {
		buf = buf[:min(n-off, writeSize)]
		if err := readFull(ctx, store, name, buf, off); err != nil {
			return 0, err
		}
		sum = crc32.Update(sum, castagnoli, buf)
	}
	return sum, nil
}
