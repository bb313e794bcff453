package tier

import (
	"encoding/binary"
	"errors"
	"fmt"
)

const rowsMagic = "HFROWS01"

// ErrDamaged reports a part that does not read as it was written.
var ErrDamaged = errors.New("a part of a checkpoint is damaged")

// Encode returns rows as the plain bytes of a part: each key without what it has in common with the
// one before.
func Encode(from, to uint64, rows []Row) []byte {
	b := append(make([]byte, 0, partSize+partSize/4), rowsMagic...)
	b = binary.LittleEndian.AppendUint64(b, from)
	b = binary.LittleEndian.AppendUint64(b, to)
	return AppendRows(b, rows)
}

// AppendRows adds the number of rows, and them, to b.
func AppendRows(b []byte, rows []Row) []byte {
	b = binary.LittleEndian.AppendUint32(b, uint32(len(rows)))
	var last []byte
	for _, r := range rows {
		n := common(last, r.Key)
		gone := byte(0)
		if r.Gone {
			gone = 1
		}
		b = append(b, byte(n), byte(len(r.Key)-n), gone, 0)
		b = binary.LittleEndian.AppendUint32(b, uint32(len(r.Value)))
		b = append(append(b, r.Key[n:]...), r.Value...)
		last = r.Key
	}
	return b
}

func common(a, b []byte) int {
	n := 0
	for n < len(a) && n < len(b) && n < 255 && a[n] == b[n] {
		n++
	}
	return n
}

// Decode is the inverse of Encode.
func Decode(b []byte, from, to uint64) ([]Row, error) {
	if len(b) < 24 || string(b[:8]) != rowsMagic || binary.LittleEndian.Uint64(b[8:]) != from ||
		binary.LittleEndian.Uint64(b[16:]) != to {
		return nil, fmt.Errorf("%w: it is not the part that was asked for", ErrDamaged)
	}
	rows, rest, err := ReadRows(b[24:])
	if err == nil && len(rest) > 0 {
		err = fmt.Errorf("%w: %d bytes after the last row", ErrDamaged, len(rest))
	}
	return rows, err
}

// ReadRows is the inverse of AppendRows, and returns what follows.
func ReadRows(b []byte) (rows []Row, rest []byte, err error) {
	if len(b) < 4 {
		return nil, nil, fmt.Errorf("%w: no number of rows", ErrDamaged)
	}
	n := binary.LittleEndian.Uint32(b)
	b = b[4:]
	var last []byte
	for range n {
		if len(b) < 8 {
			return nil, nil, fmt.Errorf("%w: a row is cut", ErrDamaged)
		}
		shared, suffix, gone := int(b[0]), int(b[1]), b[2]
		size := int(binary.LittleEndian.Uint32(b[4:]))
		b = b[8:]
		if shared > len(last) || gone > 1 || uint64(suffix)+uint64(size) > uint64(len(b)) {
			return nil, nil, fmt.Errorf("%w: a row does not fit", ErrDamaged)
		}
		key := append(append(make([]byte, 0, shared+suffix), last[:shared]...), b[:suffix]...)
		if last != nil && string(key) <= string(last) {
			return nil, nil, fmt.Errorf("%w: rows are not in order", ErrDamaged)
		}
		rows = append(rows, Row{Key: key, Value: b[suffix : suffix+size : suffix+size], Gone: gone == 1})
		b, last = b[suffix+size:], key
	}
	return rows, b, nil
}
