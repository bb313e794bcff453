package log

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"
)

// Kind says what an operation does. The numbers are on disk. Begin and End are the log's own; what
// is above 15 belongs to the state.
type Kind uint16

// Kinds of operations that the log knows.
const (
	Begin Kind = 1 // the first of a volume
	End   Kind = 2 // the last of a volume that was rolled
)

// Op is one operation. What a mirror without keys must know stands beside the body, in the clear.
type Op struct {
	Kind      Kind
	Added     []Object   // that are good from here on
	Condemned []ObjectID // that nothing may be counted on from here on
	Gone      []ObjectID // condemned ones whose objects were deleted
	Recipes   []Recipe   // of added objects
	Body      []byte     // of the kind's own format
	Clear     bool       // the body is not sealed: for mirrors, which have no key to seal it with
}

// Entry is one object of the log: the unit of commitment. Its operations happen together, in order.
type Entry struct {
	At     Position
	Before Hash   // of the last entry that counts before this
	Voids  []Hash // of the objects between the two, which are no entries
	Term   uint64
	Time   time.Time // of the writer's clock, to the millisecond; for people
	Nonce  Nonce     // zero in the first entry of a volume
	Who    string    // of the writer, for people; at most 64 bytes, "" where bodies are in the clear
	Ops    []Op

	Hash   Hash // of the entry as stored
	Hidden bool // it has bodies that could not be opened, for want of the key
	salt   Salt
}

// Sizes and flags of the format.
const (
	entryMagic = "HFENTRY1"
	headSize   = 120
	opSize     = 16
	macSize    = 32
	tagSize    = 16
	flagSealed = 1
	flagClear  = 2
	maxWho     = 64
)

// errVoid reports an object that is no entry.
var errVoid = errors.New("it is no entry")

// seal returns the entry as it is stored, and sets its hash.
func (e *Entry) seal(k *Keys) ([]byte, error) {
	raw := e.header()
	var bodies []byte
	if raw[22] == flagSealed {
		bodies = append([]byte{byte(len(e.Who))}, e.Who...)
	}
	for _, op := range e.Ops {
		bodies = append(bodies, op.Body...)
	}
	stored := len(bodies)
	if raw[22] == flagSealed {
		stored += tagSize
	}
	binary.LittleEndian.PutUint32(raw[8:], uint32(len(raw)))
	binary.LittleEndian.PutUint32(raw[12:], uint32(stored))
	switch raw[22] {
	case flagSealed:
		aead, err := k.aead(e.salt)
		if err != nil {
			return nil, err
		}
		raw = append(raw, aead.Seal(nil, nonceZero[:], bodies, raw)...)
	case flagClear:
		raw = append(raw, bodies...)
	}
	mac := k.MAC(raw)
	raw = append(raw, mac[:]...)
	e.Hash = HashOf(raw)
	if limit := limitOf(e.At); len(raw) > limit {
		return nil, fmt.Errorf("entry %s takes %d bytes, the most is %d", e.At, len(raw), limit)
	}
	return raw, nil
}

// limitOf returns the most that an entry may take at a position.
func limitOf(p Position) int {
	if p.Number == 0 {
		return MaxBegin
	}
	return MaxEntry
}

func (e *Entry) header() []byte {
	b := make([]byte, headSize, headSize+len(e.Ops)*(opSize+objectSize))
	copy(b, entryMagic)
	binary.LittleEndian.PutUint32(b[16:], e.At.Volume.Tenure.Number)
	binary.LittleEndian.PutUint16(b[20:], e.At.Volume.Tenure.Region)
	b[22] = e.flags()
	binary.LittleEndian.PutUint32(b[24:], e.At.Volume.Number)
	binary.LittleEndian.PutUint32(b[28:], e.At.Number)
	copy(b[32:], e.Before[:])
	binary.LittleEndian.PutUint64(b[64:], e.Term)
	binary.LittleEndian.PutUint64(b[72:], uint64(e.Time.UnixMilli()))
	copy(b[80:], e.Nonce.Writer[:])
	binary.LittleEndian.PutUint32(b[92:], e.Nonce.Seq)
	copy(b[96:], e.salt[:])
	binary.LittleEndian.PutUint16(b[112:], uint16(len(e.Ops)))
	binary.LittleEndian.PutUint16(b[114:], uint16(len(e.Voids)))
	for _, v := range e.Voids {
		b = append(b, v[:]...)
	}
	for i := range e.Ops {
		b = e.Ops[i].appendHead(b)
	}
	for i := range e.Ops {
		b = e.Ops[i].appendLists(b)
	}
	return b
}

func (e *Entry) flags() byte {
	for _, op := range e.Ops {
		switch {
		case len(op.Body) == 0:
		case op.Clear:
			return flagClear
		default:
			return flagSealed
		}
	}
	if e.Who != "" {
		return flagSealed
	}
	return 0
}

func (o *Op) appendHead(b []byte) []byte {
	b = binary.LittleEndian.AppendUint16(b, uint16(o.Kind))
	b = binary.LittleEndian.AppendUint16(b, 0)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(o.Body)))
	for _, n := range []int{len(o.Added), len(o.Condemned), len(o.Gone), len(o.Recipes)} {
		b = binary.LittleEndian.AppendUint16(b, uint16(n))
	}
	return b
}

func (o *Op) appendLists(b []byte) []byte {
	for i := range o.Added {
		b = o.Added[i].append(b)
	}
	for _, ids := range [][]ObjectID{o.Condemned, o.Gone} {
		for _, id := range ids {
			b = append(b, id[:]...)
		}
	}
	for i := range o.Recipes {
		b = o.Recipes[i].append(b)
	}
	return b
}

// Size returns about how many bytes the operation takes in an entry.
func (o *Op) Size() int {
	n := opSize + len(o.Body) + len(o.Added)*objectSize + (len(o.Condemned)+len(o.Gone))*len(ObjectID{})
	for _, r := range o.Recipes {
		n += 28 + len(r.Pieces)*pieceSize
	}
	return n
}

// parse reads the object that stands at a position. It returns an error that matches errVoid for
// one that is no entry, and ErrNewer for an entry of a later format.
func parse(raw []byte, at Position, k *Keys) (*Entry, error) {
	if len(raw) < headSize+macSize || len(raw) > limitOf(at) {
		return nil, fmt.Errorf("%w: %d bytes", errVoid, len(raw))
	}
	signed := raw[:len(raw)-macSize]
	if mac := k.MAC(signed); mac != Hash(raw[len(signed):]) {
		return nil, fmt.Errorf("%w: it does not authenticate", errVoid)
	}
	if string(raw[:8]) != entryMagic {
		return nil, fmt.Errorf("%w: entry %s is of format %q", ErrNewer, at, raw[:8])
	}
	e := &Entry{Hash: HashOf(raw)}
	head, body := uint64(binary.LittleEndian.Uint32(raw[8:])), uint64(binary.LittleEndian.Uint32(raw[12:]))
	if head < headSize || head+body != uint64(len(signed)) {
		return nil, fmt.Errorf("%w: header of %d and body of %d bytes in %d", errVoid, head, body, len(signed))
	}
	if err := e.readHeader(raw[:head]); err != nil {
		return nil, fmt.Errorf("%w: %w", errVoid, err)
	}
	if e.At != at {
		return nil, fmt.Errorf("%w: it says of itself that it is %s", errVoid, e.At)
	}
	return e, e.openBodies(raw[:head], signed[head:], k)
}

// positionIn returns the position that the bytes of an entry claim.
func positionIn(raw []byte) (p Position) {
	if len(raw) < headSize {
		return p
	}
	p.Volume.Tenure = Tenure{Number: binary.LittleEndian.Uint32(raw[16:]), Region: binary.LittleEndian.Uint16(raw[20:])}
	p.Volume.Number, p.Number = binary.LittleEndian.Uint32(raw[24:]), binary.LittleEndian.Uint32(raw[28:])
	return p
}

func (e *Entry) readHeader(b []byte) error {
	e.At = positionIn(b)
	copy(e.Before[:], b[32:])
	e.Term = binary.LittleEndian.Uint64(b[64:])
	e.Time = time.UnixMilli(int64(binary.LittleEndian.Uint64(b[72:]))).UTC()
	copy(e.Nonce.Writer[:], b[80:])
	e.Nonce.Seq = binary.LittleEndian.Uint32(b[92:])
	copy(e.salt[:], b[96:])
	ops, voids := int(binary.LittleEndian.Uint16(b[112:])), int(binary.LittleEndian.Uint16(b[114:]))
	if b[22] > flagClear || b[23] != 0 || binary.LittleEndian.Uint32(b[116:]) != 0 {
		return errors.New("reserved bytes are not zero")
	}
	if ops == 0 {
		return errors.New("no operation")
	}
	r := reader{b: b[headSize:]}
	for range voids {
		e.Voids = append(e.Voids, Hash(r.take(32)))
	}
	return e.readOps(&r, ops)
}

func (e *Entry) readOps(r *reader, n int) error {
	heads := r.take(n * opSize)
	for i := 0; i < n && r.err == nil; i++ {
		h := heads[i*opSize:]
		op := Op{Kind: Kind(binary.LittleEndian.Uint16(h))}
		if binary.LittleEndian.Uint16(h[2:]) != 0 {
			return errors.New("reserved bytes of an operation are not zero")
		}
		op.readLists(r, h[8:])
		e.Ops = append(e.Ops, op)
	}
	if r.err == nil && len(r.b) > 0 {
		return fmt.Errorf("%d bytes too many in the header", len(r.b))
	}
	return r.err
}

func (o *Op) readLists(r *reader, counts []byte) {
	count := func(i int) int { return int(binary.LittleEndian.Uint16(counts[2*i:])) }
	for range count(0) {
		if b := r.take(objectSize); r.err == nil {
			obj, err := readObject(b)
			r.fail(err)
			o.Added = append(o.Added, obj)
		}
	}
	for i, ids := range []*[]ObjectID{&o.Condemned, &o.Gone} {
		for range count(1 + i) {
			if b := r.take(len(ObjectID{})); r.err == nil {
				*ids = append(*ids, ObjectID(b))
			}
		}
	}
	for range count(3) {
		if r.err == nil {
			o.Recipes = append(o.Recipes, r.recipe())
		}
	}
}

// openBodies opens what is sealed and hands each operation its part.
func (e *Entry) openBodies(head, stored []byte, k *Keys) error {
	plain := stored
	switch flags := head[22]; {
	case flags == flagSealed && !k.sealed:
		e.Hidden = true
		return nil
	case flags == flagSealed:
		aead, err := k.aead(e.salt)
		if err != nil {
			return err
		}
		if plain, err = aead.Open(nil, nonceZero[:], stored, head); err != nil {
			return fmt.Errorf("%w: the body of entry %s does not authenticate", ErrDamaged, e.At)
		}
		if plain, err = e.readWho(plain); err != nil {
			return err
		}
	}
	heads := head[headSize+32*len(e.Voids):]
	for i := range e.Ops {
		n := uint64(binary.LittleEndian.Uint32(heads[i*opSize+4:]))
		if n > uint64(len(plain)) {
			return fmt.Errorf("%w: a body of %d bytes in %d", errVoid, n, len(plain))
		}
		e.Ops[i].Body, plain = plain[:n:n], plain[n:]
		e.Ops[i].Clear = n > 0 && head[22] == flagClear
	}
	if len(plain) > 0 || e.flags() != head[22] {
		return fmt.Errorf("%w: %d bytes of bodies too many, or flags of none", errVoid, len(plain))
	}
	return nil
}

// readWho takes the writer's name off the front of what was sealed.
func (e *Entry) readWho(plain []byte) ([]byte, error) {
	if len(plain) == 0 || plain[0] > maxWho || int(plain[0]) >= len(plain) {
		return nil, fmt.Errorf("%w: the name of its writer reads wrong", errVoid)
	}
	n := 1 + int(plain[0])
	e.Who = string(plain[1:n])
	return plain[n:], nil
}

// reader takes bytes from the front of a slice until there are too few; then all it gives is zero.
type reader struct {
	b   []byte
	err error
}

func (r *reader) fail(err error) {
	if r.err == nil {
		r.err = err
	}
}

func (r *reader) take(n int) []byte {
	if r.err == nil && n > len(r.b) {
		r.err = fmt.Errorf("%d bytes are wanted, %d are left", n, len(r.b))
	}
	if r.err != nil {
		return make([]byte, min(n, MaxEntry))
	}
	out := r.b[:n:n]
	r.b = r.b[n:]
	return out
}

func (r *reader) recipe() (out Recipe) {
	h := r.take(28)
	copy(out.Makes[:], h)
	n := uint64(binary.LittleEndian.Uint32(h[24:]))
	if n*pieceSize > uint64(len(r.b)) {
		r.fail(fmt.Errorf("a recipe of %d pieces", n))
		return out
	}
	for range n {
		b := r.take(pieceSize)
		out.Pieces = append(out.Pieces, Piece{Of: ObjectID(b[:24]), Kind: ObjectKind(b[24]),
			Offset: binary.LittleEndian.Uint64(b[25:]), Length: binary.LittleEndian.Uint64(b[33:])})
	}
	return out
}
