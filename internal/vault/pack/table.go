package pack

import (
	"context"
	"errors"
	"fmt"

	"github.com/holdfast-vm/holdfast/internal/blob"
	"github.com/holdfast-vm/holdfast/internal/vault/log"
)

const (
	// readWhole is up to which size a pack is read as one piece rather than as two.
	readWhole = 128 << 10
	// minTail is the least that is read of a larger pack's end, before it is known how long its
	// trailer is; a tailShare of its size is read besides.
	minTail   = 32 << 10
	tailShare = 256
)

var errOtherSum = fmt.Errorf("%w: its header and table are not those that the log tells of", ErrCorrupt)

// Table reads and checks the table of a pack that an entry of the log tells of: its size, what the
// entry says of header and trailer, that they are of this pack of this vault, and that the table
// authenticates. It takes one round trip, or two where rows are small. An error that wraps
// ErrCorrupt says that anything but the rows themselves is not as it was written.
func (s *Secret) Table(ctx context.Context, store blob.Store, vault [16]byte, o log.Object) ([]Entry, error) {
	t, err := readTrailer(ctx, store, &o)
	if err == nil && t.sum != o.Sum {
		err = errOtherSum
	}
	var entries []Entry
	if err == nil {
		entries, err = s.open(t, vault, o.ID)
	}
	if err != nil {
		return nil, fmt.Errorf("read table of pack %s: %w", o.ID, err)
	}
	return entries, nil
}

// Look reads the table of a pack of which no entry tells, or is there any more, and what an entry
// would say of it: for repair. It looks under the name that is not stored again.
func (s *Secret) Look(ctx context.Context, store blob.Store, vault [16]byte, id log.ObjectID) (log.Object, []Entry,
	error) {
	o := log.Object{ID: id, Kind: log.Pack}
	info, err := store.Stat(ctx, o.Name())
	if err != nil {
		return log.Object{}, nil, fmt.Errorf("look at pack %s: %w", id, err)
	}
	o.Size = uint64(max(info.Size, 0))
	t, err := readTrailer(ctx, store, &o)
	if err != nil {
		return log.Object{}, nil, fmt.Errorf("look at pack %s: %w", id, err)
	}
	entries, err := s.open(t, vault, id)
	if err != nil {
		return log.Object{}, nil, fmt.Errorf("look at pack %s: %w", id, err)
	}
	o.Sum = t.sum
	return o, entries, nil
}

// trailer is what was read of a pack but for its rows.
type trailer struct {
	head []byte
	raw  []byte // sealed table and footer
	foot footer
	sum  log.Hash
}

// readTrailer reads what is not rows of a pack, and checks it as far as that needs no key.
func readTrailer(ctx context.Context, store blob.Store, o *log.Object) (*trailer, error) {
	if o.Size < HeaderSize+TagSize+FooterSize || o.Size > MaxSize {
		return nil, fmt.Errorf("%w: it has %d bytes", ErrCorrupt, o.Size)
	}
	size := int64(o.Size)
	head, tail, err := readEnds(ctx, store, o, int(minTail+size/tailShare))
	if err != nil {
		return nil, err
	}
	t := &trailer{head: head}
	if t.foot, err = parseFooter(tail[len(tail)-FooterSize:], size); err != nil {
		return nil, err
	}
	n := t.foot.tableSize() + FooterSize
	if lacks := n - len(tail); lacks > 0 {
		t.raw = make([]byte, n)
		copy(t.raw[lacks:], tail)
		if err := readFull(ctx, store, o.Name(), t.raw[:lacks], t.foot.table); err != nil {
			return nil, err
		}
	} else {
		t.raw = tail[len(tail)-n:]
	}
	if err := checkTrailer(t.head, t.raw); err != nil {
		return nil, err
	}
	t.sum = sumOf(t.head, t.raw)
	return t, nil
}

// readEnds reads the header of a pack and its last n bytes, or more, in one round trip. It is an
// error if the pack has not the size that o says.
func readEnds(ctx context.Context, store blob.Store, o *log.Object, n int) (head, tail []byte, err error) {
	size := int64(o.Size)
	if size <= readWhole || int64(n) >= size-HeaderSize {
		if tail, err = readToEnd(ctx, store, o.Name(), int(size), 0); err != nil {
			return nil, nil, err
		}
		return tail[:HeaderSize:HeaderSize], tail, nil
	}
	head = make([]byte, HeaderSize)
	first := make(chan error, 1)
	go func() { first <- readFull(ctx, store, o.Name(), head, 0) }()
	tail, err = readToEnd(ctx, store, o.Name(), n, size-int64(n))
	return head, tail, errors.Join(err, <-first)
}

// open checks what was read of the pack id with the key, and returns its rows.
func (s *Secret) open(t *trailer, vault [16]byte, id log.ObjectID) ([]Entry, error) {
	salt, err := parseHeader(t.head, vault, id)
	if err != nil {
		return nil, err
	}
	k, err := s.derive(salt)
	if err != nil {
		return nil, err
	}
	plain, err := k.openTable(t.raw[:t.foot.tableSize()], t.head, t.foot.append(nil))
	if err != nil {
		return nil, err
	}
	return parseTable(plain, &t.foot, salt)
}

// parseTable reads the rows of a plain table, which fill the space between header and table
// exactly. Every origin has a row, in the order of the list.
func parseTable(plain []byte, f *footer, own log.Salt) ([]Entry, error) {
	salts := plain[f.rows*RowSize:]
	entries := make([]Entry, f.rows)
	at, seen := int64(HeaderSize), 0
	for i := range entries {
		e, origin := readRow(plain[i*RowSize:])
		e.Salt = own
		if origin > 0 && origin <= f.origins {
			e.Salt = log.Salt(salts[(origin-1)*saltSize:])
		}
		err := e.check()
		switch {
		case err != nil:
		case int64(e.Offset) != at || at+int64(e.Stored) > f.table:
			err = fmt.Errorf("it lies at %d, not at %d", e.Offset, at)
		case origin > seen+1 || origin > f.origins:
			err = fmt.Errorf("it is of origin %d", origin)
		case origin == 0 && e.Nonce != uint32(i):
			err = fmt.Errorf("it is its own and was sealed in slot %d", e.Nonce)
		}
		if err != nil {
			return nil, fmt.Errorf("%w: row %d of its table makes no sense: %w", ErrCorrupt, i, err)
		}
		at, seen = at+int64(e.Stored), max(seen, origin)
		entries[i] = e
	}
	if at != f.table || seen != f.origins {
		return nil, fmt.Errorf("%w: its table does not fit its size", ErrCorrupt)
	}
	return entries, nil
}
