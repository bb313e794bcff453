package log

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"strings"
)

// ObjectID names a pack, or another object that entries name: 10 bytes of the volume in which it
// was begun, 10 random ones of the session that wrote it, 4 of a counter. IDs order by volume.
type ObjectID [24]byte

// Session is the random part of the IDs of a session's objects.
type Session [10]byte

// String returns the session in hexadecimal digits.
func (s Session) String() string { return hex.EncodeToString(s[:]) }

// NewObjectID returns the ID of a session's n-th object.
func NewObjectID(begun Volume, s Session, n uint32) (id ObjectID) {
	b := append(begun.Append(id[:0]), s[:]...)
	binary.BigEndian.AppendUint32(b, n)
	return id
}

// Begun returns the volume in which the object was begun.
func (id ObjectID) Begun() Volume { return ReadVolume(id[:]) }

// Session returns the session that wrote the object.
func (id ObjectID) Session() Session { return Session(id[volumeSize : volumeSize+10]) }

// String returns the session and the counter.
func (id ObjectID) String() string { return hex.EncodeToString(id[volumeSize:]) }

// ObjectKind says what an object holds. The numbers are on disk.
type ObjectKind byte

// Kinds of objects.
const (
	Pack ObjectKind = 1 // sealed chunks, nodes and manifests
	Part ObjectKind = 2 // what was too large for an entry, or literal bytes of a recipe
)

// Object is an object as an entry tells of it.
type Object struct {
	ID   ObjectID
	Kind ObjectKind
	Copy byte   // 0, or the k of NAME.k where the name had been used up
	Size uint64 // bytes as stored
	Sum  Hash   // BLAKE3-256 of them; of a pack, of its header and trailer, which vouch for the rest
}

// Name returns the object's name in the store.
func (o *Object) Name() string {
	folder := "pack"
	if o.Kind == Part {
		folder = "part"
	}
	s := o.ID.Session().String()
	name := fmt.Sprintf("%s/%s/%s/%s", folder, o.ID.Begun(), s[:2], o.ID)
	if o.Copy > 0 {
		name += fmt.Sprintf(".%d", o.Copy)
	}
	return name
}

// ParsePackName returns the ID in a pack's name.
func ParsePackName(name string) (Object, bool) {
	o, ok := ParseObjectName(name)
	return o, ok && o.Kind == Pack
}

// ParseObjectName returns the kind and the ID in the name of an object that entries name. One that
// was stored again under another name, with .K, is none.
func ParseObjectName(name string) (o Object, ok bool) {
	var t, v uint32
	var r uint16
	var two string
	var tail []byte
	folder, rest, _ := strings.Cut(name, "/")
	if _, err := fmt.Sscanf(rest, "%08x-%04x/%08x/%2s/%28x", &t, &r, &v, &two, &tail); err != nil ||
		len(tail) != 14 {
		return o, false
	}
	switch folder {
	case "pack":
		o.Kind = Pack
	case "part":
		o.Kind = Part
	default:
		return o, false
	}
	b := Volume{Tenure: Tenure{Number: t, Region: r}, Number: v}.Append(o.ID[:0])
	copy(o.ID[len(b):], tail)
	return o, o.Name() == name
}

// Recipe says of which bytes an object can be made by one who has others: ranges of packs, moved
// without being opened, and literal ones in a part.
type Recipe struct {
	Makes  ObjectID
	Pieces []Piece
}

// Piece is a range of an object.
type Piece struct {
	Of     ObjectID
	Kind   ObjectKind
	Offset uint64
	Length uint64
}

const (
	objectSize = 24 + 2 + 8 + 32
	pieceSize  = 24 + 1 + 8 + 8
)

func (o *Object) append(b []byte) []byte {
	b = append(append(b, o.ID[:]...), byte(o.Kind), o.Copy)
	return append(binary.LittleEndian.AppendUint64(b, o.Size), o.Sum[:]...)
}

func readObject(b []byte) (o Object, err error) {
	o = Object{ID: ObjectID(b[:24]), Kind: ObjectKind(b[24]), Copy: b[25], Size: binary.LittleEndian.Uint64(b[26:]),
		Sum: Hash(b[34:])}
	if o.Kind != Pack && o.Kind != Part {
		err = fmt.Errorf("an object of kind %d", o.Kind)
	}
	return o, err
}

func (r *Recipe) append(b []byte) []byte {
	b = binary.LittleEndian.AppendUint32(append(b, r.Makes[:]...), uint32(len(r.Pieces)))
	for _, p := range r.Pieces {
		b = append(append(b, p.Of[:]...), byte(p.Kind))
		b = binary.LittleEndian.AppendUint64(b, p.Offset)
		b = binary.LittleEndian.AppendUint64(b, p.Length)
	}
	return b
}
