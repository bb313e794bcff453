package pack

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"hash/crc32"

	"github.com/holdfast-vm/holdfast/internal/blob"
	"github.com/holdfast-vm/holdfast/internal/vault/chunk"
	"github.com/holdfast-vm/holdfast/internal/vault/log"
)

// Writer writes one pack. It is not safe for concurrent use. After an error of the store it is good
// for Abort only; a row that it refused changed nothing.
type Writer struct {
	secret *Secret
	vault  [16]byte
	id     log.ObjectID
	salt   log.Salt
	keys   *keys
	header []byte

	spool   *spool
	entries []Entry
	origins origins
	from    provenance
	err     error // why nothing more can be done
}

var (
	errFull      = errors.New("it is full")
	errCommitted = errors.New("it was committed")
	errAborted   = errors.New("it was aborted")
)

// Begin begins a pack. Up to some MiB it lies in memory, and nothing of it is in the store before
// Commit; a larger one is written behind its owner's back while more is appended.
func (s *Secret) Begin(store blob.Store, vault [16]byte, id log.ObjectID) *Writer {
	var salt log.Salt
	rand.Read(salt[:]) //nolint:errcheck // it never fails
	return s.begin(store, vault, id, salt)
}

func (s *Secret) begin(store blob.Store, vault [16]byte, id log.ObjectID, salt log.Salt) *Writer {
	o := log.Object{ID: id, Kind: log.Pack}
	w := &Writer{secret: s, vault: vault, id: id, salt: salt, header: header(vault, id, salt),
		spool: newSpool(store, o.Name()), origins: origins{own: salt}}
	w.spool.buf = append(w.spool.buf, w.header...)
	w.keys, w.err = s.derive(salt)
	return w
}

// ID returns the pack's name.
func (w *Writer) ID() log.ObjectID { return w.id }

// Len returns how many rows it has: the slot of the next.
func (w *Writer) Len() int { return len(w.entries) }

// Size returns the bytes so far, without the table.
func (w *Writer) Size() int64 { return w.spool.size() }

// Full reports whether the pack has reached limit bytes, the most rows or the most origins, or has
// no room for a row of any size but a manifest's.
func (w *Writer) Full(limit int64) bool {
	return w.Size() >= limit || len(w.entries) >= MaxEntries || w.origins.full() || !w.room(1, chunk.MaxSize+TagSize, 1)
}

// room reports whether so many rows, of so many bytes and foreign origins, still fit.
func (w *Writer) room(rows int, stored int64, origins int) bool {
	f := footer{rows: len(w.entries) + rows, origins: len(w.origins.salts) + origins, table: w.Size() + stored}
	return f.rows <= MaxEntries && f.origins < MaxOrigins && f.size() <= MaxSize
}

// Append seals encoded, the stored form of plain bytes, into the pack and returns its row.
func (w *Writer) Append(ctx context.Context, kind Kind, id chunk.ID, plain int, encoded []byte,
	enc chunk.Encoding) (Entry, error) {
	if w.err != nil {
		return Entry{}, w.fail("append to", w.err)
	}
	e := Entry{ID: id, Kind: kind, Encoding: enc, Offset: uint32(w.Size()), Stored: uint32(len(encoded) + TagSize),
		Plain: uint32(plain), Nonce: uint32(len(w.entries)), Salt: w.salt}
	if err := w.fits(&e, plain, len(encoded)); err != nil {
		return Entry{}, w.fail("append to", err)
	}
	at := len(w.spool.buf)
	w.spool.buf = w.keys.seal(w.spool.buf, &e, encoded)
	sealed := w.spool.buf[at:]
	e.Sum = crc32.Checksum(sealed, castagnoli)
	w.entries = append(w.entries, e)
	w.from.own(sealed)
	return e, w.sent("append to", w.spool.gathered(ctx))
}

// fits reports why a row cannot be added. The writer is as it was.
func (w *Writer) fits(e *Entry, plain, encoded int) error {
	if int64(plain) != int64(e.Plain) || int64(encoded)+TagSize != int64(e.Stored) {
		return fmt.Errorf("a row of %d bytes, stored as %d", plain, encoded)
	}
	if len(w.entries) >= MaxEntries {
		return errFull
	}
	if err := e.check(); err != nil {
		return fmt.Errorf("a row that may not be: %w", err)
	}
	if !w.room(1, int64(e.Stored), w.origins.more(e.Salt)) {
		return errFull
	}
	return nil
}

// Move adds the row e of the pack from, with its sealed bytes, which are not opened but copied.
// Bytes that have not the row's CRC are ErrCorrupt, and nothing is added; the writer is as good as
// before.
func (w *Writer) Move(ctx context.Context, from log.ObjectID, e *Entry, sealed []byte) (Entry, error) {
	if w.err != nil {
		return Entry{}, w.fail("move a row to", w.err)
	}
	if err := w.movable(e, sealed); err != nil {
		return Entry{}, w.fail("move a row to", err)
	}
	w.from.moved(w, from, e)
	moved := *e
	moved.Offset = uint32(w.Size())
	w.origins.add(e.Salt)
	w.entries = append(w.entries, moved)
	return moved, w.sent("move a row to", w.spool.add(ctx, sealed))
}

func (w *Writer) movable(e *Entry, sealed []byte) error {
	if len(sealed) != int(e.Stored) || !e.SumOK(sealed) {
		return fmt.Errorf("%w: the row %s has another checksum", ErrCorrupt, e.ID)
	}
	if e.Salt == w.salt {
		return fmt.Errorf("the row %s is its own", e.ID)
	}
	return w.fits(e, int(e.Plain), len(sealed)-TagSize)
}

// Join appends what another writer gathered, if that is all in memory and there is room for it:
// the other's slot i is slot first+i here then, its rows keep salt and nonce, and the other is
// aborted. Where ok is false, or there is an error, the other is left as it was.
func (w *Writer) Join(ctx context.Context, other *Writer) (first int, ok bool, err error) {
	if w.err != nil {
		return 0, false, w.fail("join packs to", w.err)
	}
	if w == other || w.vault != other.vault || w.secret.key != other.secret.key {
		return 0, false, w.fail("join packs to", errors.New("the other is of another vault, or the same"))
	}
	stored := other.Size() - HeaderSize
	if other.err != nil || !other.spool.inMemory() || !w.room(other.Len(), stored, 1+len(other.origins.salts)) {
		return 0, false, nil
	}
	first = len(w.entries)
	w.takeRows(other)
	err = other.spool.copyTo(HeaderSize, func(p []byte) error { return w.spool.add(ctx, p) })
	if err = w.sent("join packs to", err); err != nil {
		return 0, false, err
	}
	other.Abort()
	return first, true, nil
}

// takeRows adds the rows of another writer to the table; their bytes come next.
func (w *Writer) takeRows(other *Writer) {
	w.from.joined(w, other)
	shift := uint32(w.Size() - HeaderSize)
	for i := range other.entries {
		e := other.entries[i]
		e.Offset += shift
		w.origins.add(e.Salt)
		w.entries = append(w.entries, e)
	}
}

// Commit writes the table and makes the pack durable and visible. It returns what an entry of the
// log says of it, and the table, which the caller may keep. Where the store says that the name is
// taken, and it is by this very pack, that is success. After an error the pack may be there or not:
// its name is not used again.
func (w *Writer) Commit(ctx context.Context) (log.Object, []Entry, error) {
	if w.err != nil {
		return log.Object{}, nil, w.fail("commit", w.err)
	}
	f := footer{rows: len(w.entries), origins: len(w.origins.salts), table: w.Size(), body: w.bodySum()}
	trailer := f.trailer(w.keys, w.header, w.table())
	o := log.Object{ID: w.id, Kind: log.Pack, Size: uint64(f.size()), Sum: sumOf(w.header, trailer)}
	err := w.spool.commit(ctx, trailer)
	if errors.Is(err, blob.ErrExist) {
		err = isThere(ctx, w.spool.store, &o, w.header, trailer, err)
	}
	if err != nil {
		return log.Object{}, nil, w.sent("commit", err)
	}
	w.from.committed(trailer)
	w.spool.drop()
	w.err = errCommitted
	return o, w.entries, nil
}

// isThere returns nil if the object that has the name of the pack o is that pack, and why not
// otherwise.
func isThere(ctx context.Context, store blob.Store, o *log.Object, head, trailer []byte, taken error) error {
	gotHead, gotTail, err := readEnds(ctx, store, o, len(trailer))
	switch {
	case errors.Is(err, ErrCorrupt):
		return fmt.Errorf("%w: by another object", taken)
	case err != nil:
		return fmt.Errorf("%w, and what has it cannot be read: %w", taken, err)
	case string(gotHead) != string(head) || string(gotTail[len(gotTail)-len(trailer):]) != string(trailer):
		return fmt.Errorf("%w: by another object", taken)
	}
	return nil
}

// bodySum returns the CRC-32C of header and rows.
func (w *Writer) bodySum() uint32 {
	sum := crc32.Checksum(w.header, castagnoli)
	for i := range w.entries {
		sum = joinSums(sum, w.entries[i].Sum, int(w.entries[i].Stored))
	}
	return sum
}

// table returns the plain table.
func (w *Writer) table() []byte {
	b := make([]byte, 0, len(w.entries)*RowSize+len(w.origins.salts)*saltSize)
	for i := range w.entries {
		b = w.entries[i].append(b, w.origins.index(w.entries[i].Salt))
	}
	for i := range w.origins.salts {
		b = append(b, w.origins.salts[i][:]...)
	}
	return b
}

// Abort drops the pack. It is a no-op after Commit.
func (w *Writer) Abort() {
	if !errors.Is(w.err, errCommitted) && !errors.Is(w.err, errAborted) {
		w.spool.drop()
		w.err = errAborted
	}
}

// sent makes an error of the store, if it is one, the end of the writer.
func (w *Writer) sent(doing string, err error) error {
	if err == nil {
		return nil
	}
	w.err = err
	return w.fail(doing, err)
}

func (w *Writer) fail(doing string, err error) error {
	return fmt.Errorf("%s pack %s: %w", doing, w.id, err)
}

// origins are the salts by which the rows of a pack were sealed.
type origins struct {
	own   log.Salt
	salts []log.Salt // but its own, in the order in which they came
	place map[log.Salt]int
}

func (o *origins) full() bool { return len(o.salts) >= MaxOrigins-1 }

// index returns the place of a salt that was added: 0 is the pack's own.
func (o *origins) index(s log.Salt) int {
	if s == o.own {
		return 0
	}
	return o.place[s]
}

// more returns how many origins adding a salt adds.
func (o *origins) more(s log.Salt) int {
	if s == o.own || o.place[s] > 0 {
		return 0
	}
	return 1
}

func (o *origins) add(s log.Salt) {
	if o.more(s) == 0 {
		return
	}
	if o.place == nil {
		o.place = map[log.Salt]int{}
	}
	o.salts = append(o.salts, s)
	o.place[s] = len(o.salts)
}
