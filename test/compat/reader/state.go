package main

import (
	"bytes"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/zeebo/blake3"
)

// row is one of the state: docs/formats/state.md.
type row struct {
	value []byte
	gone  bool
}

// state is all rows by key, with what of a checkpoint's root is compared.
type logState struct {
	rows   map[string]row
	count  uint64
	time   uint64 // of the entry
	purges uint32 // points that the entry purged
	forget []byte
	sums   [4]uint64 // points, packs, bytes, condemned

	at   position // of the last entry, in a checkpoint
	hash [32]byte // of it
	ends bool     // it ends its volume
}

// taker takes values off the front of bytes; what is missing is zero, and noted.
type taker struct {
	b   []byte
	bad bool
}

func (t *taker) take(n int) []byte {
	if n < 0 || n > len(t.b) {
		t.bad = true
		return make([]byte, max(0, min(n, 1<<16)))
	}
	out := t.b[:n]
	t.b = t.b[n:]
	return out
}

func (t *taker) u32() int      { return int(binary.LittleEndian.Uint32(t.take(4))) }
func (t *taker) u64() uint64   { return binary.LittleEndian.Uint64(t.take(8)) }
func (t *taker) bytes() []byte { return t.take(t.u32()) }

func (t *taker) list(item func()) {
	n := t.u32()
	for i := 0; i < n && !t.bad; i++ {
		item()
	}
}

func le64(v uint64) []byte { return binary.LittleEndian.AppendUint64(nil, v) }

func be64(v uint64) []byte { return binary.BigEndian.AppendUint64(nil, v) }

func leBytes(b []byte) []byte {
	return append(binary.LittleEndian.AppendUint32(nil, uint32(len(b))), b...)
}

func join(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

// foldLog folds entries to a state.
func foldLog(all []*logEntry) (*logState, error) {
	s := &logState{rows: map[string]row{}, forget: make([]byte, 10)}
	return s, s.foldOn(all)
}

// foldOn folds the entries that follow.
func (s *logState) foldOn(all []*logEntry) error {
	for _, e := range all {
		s.count++
		s.purges, s.time = 0, e.time
		for i := range e.ops {
			if err := s.fold(e, &e.ops[i]); err != nil {
				return fmt.Errorf("entry %d.%d: %w", e.at.volume, e.at.number, err)
			}
		}
		if e.seq > 0 {
			v := join(binary.LittleEndian.AppendUint32(nil, e.seq), le64(1), volumeBytes(e.at))
			s.add("W"+string(e.writer), v)
		}
	}
	return nil
}

func volumeBytes(p position) []byte {
	b := binary.BigEndian.AppendUint32(nil, p.tenure)
	b = binary.BigEndian.AppendUint16(b, p.region)
	return binary.BigEndian.AppendUint32(b, p.volume)
}

func (s *logState) put(key string, value []byte) { s.rows[key] = row{value: value} }
func (s *logState) end(key string)               { s.rows[key] = row{gone: true} }

// add adds a row of a table in which rows add up.
func (s *logState) add(key string, value []byte) {
	if old, ok := s.rows[key]; ok && !old.gone {
		if key[0] == 'W' {
			value = joinWriter(old.value, value)
		} else {
			value = joinBits(old.value, value)
		}
	}
	s.put(key, value)
}

func joinWriter(old, new []byte) []byte {
	a, b := binary.LittleEndian.Uint32(old), binary.LittleEndian.Uint32(new)
	if b < a {
		old, new, a, b = new, old, b, a
	}
	mask := binary.LittleEndian.Uint64(new[4:])
	if b-a < 64 {
		mask |= binary.LittleEndian.Uint64(old[4:]) << (b - a)
	}
	return join(new[:4], le64(mask), new[12:])
}

// bitsRow is a row of B.
func bitsRow(count uint64, shared, freed []byte, sum, since uint64, moved byte) []byte {
	return join(le64(count), leBytes(shared), leBytes(freed), le64(sum), le64(since), []byte{moved})
}

func joinBits(old, new []byte) []byte {
	a, b := taker{b: old}, taker{b: new}
	count := max(a.u64(), b.u64())
	as, af, bs, bf := a.bytes(), a.bytes(), b.bytes(), b.bytes()
	at := func(b []byte, i int) byte {
		if i < len(b) {
			return b[i]
		}
		return 0
	}
	shared := make([]byte, max(len(as), len(bs)))
	for i := range shared {
		shared[i] = at(as, i) | at(bs, i)
	}
	freed := make([]byte, max(len(af), len(bf)))
	for i := range freed {
		freed[i] = at(af, i)&^at(bs, i) | at(bf, i)
	}
	sum, since := a.u64()+b.u64(), a.u64()
	if other := b.u64(); since == 0 || other != 0 && other < since {
		since = other
	}
	moved := max(a.take(1)[0], b.take(1)[0])
	return bitsRow(count, shared, freed, sum, since, moved)
}

func (s *logState) fold(e *logEntry, op *operation) error {
	for _, o := range op.added {
		s.put("k"+string(o[:24]), join(o[24:], le64(s.count), le64(e.time)))
		s.put("a"+string(be64(s.count))+string(o[:24]), nil)
		s.sums[1]++
		s.sums[2] += binary.LittleEndian.Uint64(o[26:])
	}
	t := &taker{b: op.body}
	switch op.kind {
	case 1:
		if len(op.body) > 0 {
			s.put("v"+string(volumeBytes(e.after)),
				join(binary.LittleEndian.AppendUint32(nil, e.after.number), e.before))
			if bytes.Compare(e.forget, s.forget) > 0 {
				s.forget = e.forget
			}
		}
		return nil
	case 2:
		return nil
	case 16:
		s.commit(t)
	case 17:
		s.progress(t, op)
	case 18:
		t.list(func() { s.put("S"+string(t.take(14)[:10])+"\xff\xff\xff\xff", nil) })
		by := t.take(10)
		s.put("S"+string(op.body[4:14])+"\xff\xff\xff\xff", by)
	case 19:
		t.list(func() { s.endSession(t.take(14)) })
	case 20:
		s.condemn(t, op)
	case 21:
		for _, id := range op.gone {
			s.put("c"+string(id), append(le64(s.count), 1, 0))
			s.sums[3]--
		}
	case 30:
		s.put("m"+string(t.take(16)), le64(s.count))
	case 31, 32:
		s.end("m" + string(t.take(16)))
	case 29:
		t.u64()
		t.bytes()
	default:
		s.pointOp(op.kind, t)
	}
	if t.bad || len(t.b) > 0 {
		return fmt.Errorf("the body of kind %d reads wrong", op.kind)
	}
	return nil
}

func (s *logState) endSession(ended []byte) {
	n := binary.LittleEndian.Uint32(ended[10:])
	for i := range n {
		s.end("S" + string(binary.BigEndian.AppendUint32(ended[:10:10], i)))
	}
	if n > 0 {
		s.end("S" + string(ended[:10]) + "\xff\xff\xff\xff")
	}
}

func (s *logState) counted(t *taker) {
	t.list(func() {
		id, bits := t.take(24), t.bytes()
		s.add("B"+string(id), bitsRow(s.count, bits, nil, 0, 0, 0))
	})
}

func (s *logState) commit(t *taker) {
	own := t.take(14)
	var ended [][]byte
	t.list(func() { ended = append(ended, t.take(14)) })
	t.list(func() { t.take(24) })
	s.counted(t)
	t.list(func() {
		start := t.b
		id := t.take(16)
		t.list(func() { s.link(t.take(16), id) })
		time := t.u64()
		t.take(8)
		s.finds(t, time, id, s.put)
		t.bytes()
		t.bytes()
		s.put("P"+string(id), start[:len(start)-len(t.b)])
		s.sums[0]++
	})
	for _, e := range append(ended, own) {
		s.endSession(e)
	}
}

func (s *logState) progress(t *taker, op *operation) {
	session, n := t.take(10), t.u32()
	t.bytes()
	t.bytes()
	t.list(func() { t.take(16) })
	s.counted(t)
	t.bytes()
	ids := binary.LittleEndian.AppendUint32(nil, uint32(len(op.added)))
	for _, o := range op.added {
		ids = append(ids, o[:24]...)
	}
	s.put("S"+string(binary.BigEndian.AppendUint32(session[:10:10], uint32(n))), join(leBytes(op.body), ids))
}

func (s *logState) condemn(t *taker, op *operation) {
	orphans := t.take(1)[0] == 1
	t.take(14 + 8 + 8)
	size := t.u64()
	var added []uint64
	t.list(func() { added = append(added, t.u64()) })
	var parts []byte
	t.list(func() { parts = append(parts, t.take(1)[0]) })
	for i, id := range op.condemned {
		if i < len(added) {
			s.end("a" + string(be64(added[i])) + string(id))
		}
		s.end("d" + string(id))
		part := byte(0)
		if i < len(parts) {
			part = parts[i]
		}
		s.put("c"+string(id), append(le64(s.count), 0, part))
		s.end("k" + string(id))
		s.end("B" + string(id))
		s.sums[3]++
		if !orphans {
			s.sums[1]--
		}
	}
	if !orphans {
		s.sums[2] -= size
	}
	t.list(func() { // rows that moved
		id, shared, freed := string(t.take(24)), t.bytes(), t.bytes()
		s.add("B"+id, bitsRow(0, shared, freed, t.u64(), 0, 1))
	})
}

func (s *logState) pointOp(kind uint16, t *taker) {
	switch kind {
	case 22:
		until := t.take(8)
		t.list(func() { s.put("D"+string(t.take(16)), until) })
	case 23:
		t.list(func() { s.end("D" + string(t.take(16))) })
	case 24:
		t.list(func() {
			id := string(t.take(16))
			time := t.u64()
			s.finds(t, time, []byte(id), func(k string, _ []byte) { s.end(k) })
			s.end("D" + id)
			s.end("L" + id)
			s.put("G"+id, join(le64(s.count), binary.LittleEndian.AppendUint32(nil, s.purges)))
			s.put("Q"+string(binary.BigEndian.AppendUint32(be64(s.count), s.purges))+id, nil)
			s.purges++
			s.sums[0]--
		})
	case 25:
		var slots [][2][]byte
		t.list(func() { slots = append(slots, [2][]byte{t.take(24), t.bytes()}) })
		for _, x := range slots {
			s.add("B"+string(x[0]), bitsRow(0, nil, x[1], t.u64(), s.time, 0))
		}
		s.counted(t)
		s.walked(t)
	case 33:
		t.list(func() { s.put("d"+string(t.take(24)), nil) })
	case 26, 27:
		k := "H" + string(t.take(32))
		if who := t.bytes(); kind == 26 {
			s.put(k, who)
		} else {
			s.end(k)
		}
	case 28:
		id := t.take(16)
		s.put("L"+string(id), t.take(8))
	default:
		t.bad = true
	}
}

// walked takes what of purges was walked, and which empty nodes go.
func (s *logState) walked(t *taker) {
	t.list(func() {
		id, at, number := string(t.take(16)), t.u64(), uint32(t.u32())
		done := t.take(1)[0] == 1
		t.bytes()
		if to := t.bytes(); !done {
			s.put("O"+id, to)
			return
		}
		s.end("O" + id)
		s.end("P" + id)
		s.end("Q" + string(binary.BigEndian.AppendUint32(be64(at), number)) + id)
	})
	t.list(func() {
		node := t.take(16)
		var bases [][]byte
		t.list(func() { bases = append(bases, t.take(16)) })
		child := t.take(16)
		alone := bytes.Equal(child, make([]byte, 16))
		s.end("G" + string(node))
		if !alone {
			s.unlink(node, child)
		}
		for _, b := range bases {
			s.unlink(b, node)
			if !alone {
				s.link(b, child)
			}
		}
	})
	t.take(1 + 14 + 8 + 8)
}

func (s *logState) link(base, child []byte) {
	s.put("X"+string(base)+string(child), nil)
	s.put("Y"+string(child)+string(base), nil)
}

func (s *logState) unlink(base, child []byte) {
	s.end("X" + string(base) + string(child))
	s.end("Y" + string(child) + string(base))
}

// finds takes the words by which a point is found, and calls do with their keys.
func (s *logState) finds(t *taker, time uint64, id []byte, do func(key string, value []byte)) {
	t.list(func() {
		n := t.take(1)
		word := t.take(int(n[0]))
		do("F"+string(join(n, word, be64(^time), id)), nil)
	})
}

// living returns the rows that count.
func (s *logState) living() map[string][]byte {
	out := map[string][]byte{}
	for k, r := range s.rows {
		switch {
		case r.gone:
		case k[0] == 'W' && bytes.Compare(r.value[12:], s.forget) < 0:
		case k[0] == 'c' && r.value[8] == 1 && bytes.Compare([]byte(k[1:11]), s.forget) < 0:
		default:
			out[k] = r.value
		}
	}
	return out
}

// checkpoint reads a checkpoint and all its parts.
func (l *logDir) checkpoint(name string, hash []byte) (*logState, error) {
	raw, err := l.read(name)
	if err != nil {
		return nil, err
	}
	if len(raw) < 64 || string(raw[:8]) != "HFCHECK1" ||
		!bytes.HasSuffix([]byte(name), []byte(hex.EncodeToString(raw[16:32]))) ||
		!bytes.Equal(keyedHash(l.logKey, raw[:len(raw)-32]), raw[len(raw)-32:]) {
		return nil, errors.New("the checkpoint is damaged")
	}
	a := 32 + int(binary.LittleEndian.Uint32(raw[8:]))
	z := int(binary.LittleEndian.Uint32(raw[12:]))
	if a+z != len(raw)-32 {
		return nil, errors.New("the checkpoint's sizes do not fit")
	}
	secret, err := l.unsealState(raw[16:32], raw[a:a+z], raw[:a])
	if err != nil {
		return nil, err
	}
	if sum := blake3.Sum256(join(raw[32:a], secret)); hash != nil && !bytes.Equal(sum[:], hash) {
		return nil, errors.New("the checkpoint is another than the log names")
	}
	if salt := keyedHash(l.stateKey, []byte("HFCHECK1"), raw[32:a], secret); !bytes.Equal(salt[:16], raw[16:32]) {
		return nil, errors.New("the checkpoint's salt is not that of its bytes")
	}
	s := &logState{rows: map[string]row{}}
	t := &taker{b: raw[32:a]}
	s.count = t.u64()
	s.at = bigPosition(t.take(14))
	s.hash = [32]byte(t.take(32))
	s.ends = t.take(1)[0] == 1
	if err := l.readRuns(t, s, 0); err != nil {
		return nil, err
	}
	t.list(func() { t.take(36) })
	x := &taker{b: secret}
	x.u64()
	x.bytes()
	s.forget = x.take(10)
	x.u64()
	for i := range s.sums {
		s.sums[i] = x.u64()
	}
	x.list(func() { x.take(18) })
	if err := l.readRuns(x, s, 1); err != nil {
		return nil, err
	}
	if t.bad || x.bad || len(t.b)+len(x.b) > 0 {
		return nil, errors.New("the checkpoint reads wrong")
	}
	return s, nil
}

func (l *logDir) unsealState(salt, stored, ad []byte) ([]byte, error) {
	key, err := hkdf.Key(sha256.New, l.stateKey, salt, "holdfast state v1", 32)
	if err != nil {
		return nil, err
	}
	aead, err := gcm(key)
	if err != nil {
		return nil, err
	}
	return aead.Open(nil, make([]byte, 12), stored, ad)
}

// readRuns reads runs, the oldest first, and the rows after them.
func (l *logDir) readRuns(t *taker, s *logState, class byte) (err error) {
	t.list(func() {
		from, to := t.u64(), t.u64()
		t.list(func() {
			salt := t.take(16)
			t.take(4)
			t.bytes()
			t.bytes()
			if err == nil {
				err = l.readPart(s, class, from, to, salt)
			}
		})
	})
	if err == nil {
		s.takeRows(t)
	}
	return err
}

func (l *logDir) readPart(s *logState, class byte, from, to uint64, salt []byte) error {
	name := fmt.Sprintf("state/%016x-%016x-%s", to, from, hex.EncodeToString(salt))
	raw, err := l.read(name)
	if err != nil {
		return err
	}
	if len(raw) < 64 || string(raw[:8]) != "HFPART01" || raw[8] != class || !bytes.Equal(raw[16:32], salt) {
		return fmt.Errorf("%s is damaged", name)
	}
	plain, key := raw[32:len(raw)-32], l.logKey
	if class == 1 {
		key = l.stateKey
		if plain, err = l.unsealState(salt, raw[32:], raw[:32]); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	} else if !bytes.Equal(keyedHash(l.logKey, raw[:len(raw)-32]), raw[len(raw)-32:]) {
		return fmt.Errorf("%s is damaged", name)
	}
	if !bytes.Equal(keyedHash(key, []byte("HFPART01"), plain)[:16], salt) {
		return fmt.Errorf("%s: its salt is not that of its bytes", name)
	}
	t := &taker{b: plain}
	if string(t.take(8)) != "HFROWS01" || t.u64() != from || t.u64() != to {
		return fmt.Errorf("%s is another part", name)
	}
	s.takeRows(t)
	if t.bad || len(t.b) > 0 {
		return fmt.Errorf("%s reads wrong", name)
	}
	return nil
}

// takeRows joins rows to those that are there, which are older.
func (s *logState) takeRows(t *taker) {
	var last []byte
	t.list(func() {
		h := t.take(4)
		n := t.u32()
		if int(h[0]) > len(last) {
			t.bad = true
			return
		}
		last = join(last[:h[0]], t.take(int(h[1])))
		value := t.take(n)
		switch k := string(last); {
		case t.bad:
		case h[2] == 1:
			s.end(k)
		case k[0] == 'B' || k[0] == 'W':
			s.add(k, value)
		default:
			s.put(k, value)
		}
	})
}
