package log

import (
	"cmp"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
)

// Tenure is a region's time of authority over a vault: one for ever where there is no mirror.
type Tenure struct {
	Number uint32
	Region uint16
}

// Compare orders tenures.
func (t Tenure) Compare(u Tenure) int {
	return cmp.Or(cmp.Compare(t.Number, u.Number), cmp.Compare(t.Region, u.Region))
}

// String returns the tenure as it stands in names.
func (t Tenure) String() string { return fmt.Sprintf("%08x-%04x", t.Number, t.Region) }

// Volume is a stretch of the log of a tenure.
type Volume struct {
	Tenure Tenure
	Number uint32
}

// Compare orders volumes.
func (v Volume) Compare(w Volume) int {
	return cmp.Or(v.Tenure.Compare(w.Tenure), cmp.Compare(v.Number, w.Number))
}

// Next returns the volume after this one.
func (v Volume) Next() Volume { return Volume{Tenure: v.Tenure, Number: v.Number + 1} }

// String returns the volume as it stands in names.
func (v Volume) String() string { return fmt.Sprintf("%s/%08x", v.Tenure, v.Number) }

const volumeSize = 10

// Append adds the volume, in an order of bytes that is its own, to b.
func (v Volume) Append(b []byte) []byte {
	b = binary.BigEndian.AppendUint32(b, v.Tenure.Number)
	b = binary.BigEndian.AppendUint16(b, v.Tenure.Region)
	return binary.BigEndian.AppendUint32(b, v.Number)
}

// ReadVolume is the inverse of Append, of the first 10 bytes.
func ReadVolume(b []byte) Volume {
	return Volume{
		Tenure: Tenure{Number: binary.BigEndian.Uint32(b), Region: binary.BigEndian.Uint16(b[4:])},
		Number: binary.BigEndian.Uint32(b[6:]),
	}
}

// Position is the place of an entry.
type Position struct {
	Volume Volume
	Number uint32
}

// Compare orders positions.
func (p Position) Compare(q Position) int {
	return cmp.Or(p.Volume.Compare(q.Volume), cmp.Compare(p.Number, q.Number))
}

// String returns "VOLUME.NUMBER" in decimal, after the tenure if that is not the first.
func (p Position) String() string {
	s := fmt.Sprintf("%d.%d", p.Volume.Number, p.Number)
	if p.Volume.Tenure != (Tenure{}) {
		return p.Volume.Tenure.String() + "/" + s
	}
	return s
}

// ParsePosition is the inverse of String.
func ParsePosition(s string) (p Position, ok bool) {
	if tenure, rest, there := strings.Cut(s, "/"); there {
		t := &p.Volume.Tenure
		if _, err := fmt.Sscanf(tenure, "%08x-%04x", &t.Number, &t.Region); err != nil {
			return Position{}, false
		}
		s = rest
		if p.Volume.Tenure.String() != tenure {
			return Position{}, false
		}
	}
	volume, number, _ := strings.Cut(s, ".")
	v, err := strconv.ParseUint(volume, 10, 32)
	n, err2 := strconv.ParseUint(number, 10, 32)
	if err != nil || err2 != nil {
		return Position{}, false
	}
	p.Volume.Number, p.Number = uint32(v), uint32(n)
	return p, true
}

// PositionSize is the size of a position in bytes.
const PositionSize = volumeSize + 4

// Append adds the position, in an order of bytes that is its own, to b.
func (p Position) Append(b []byte) []byte {
	return binary.BigEndian.AppendUint32(p.Volume.Append(b), p.Number)
}

// ReadPosition is the inverse of Append, of the first 14 bytes.
func ReadPosition(b []byte) Position {
	return Position{Volume: ReadVolume(b), Number: binary.BigEndian.Uint32(b[volumeSize:])}
}

// Hash is BLAKE3-256 of an entry as it is stored, or of a checkpoint's plain bytes.
type Hash [32]byte

// Salt is what an object's key is derived by.
type Salt [16]byte

// String returns the salt in hexadecimal digits.
func (s Salt) String() string { return hex.EncodeToString(s[:]) }

// Nonce tells one attempt to append from all others. A writer counts on once an entry has been
// placed; so what the state must remember of a writer is its last.
type Nonce struct {
	Writer [12]byte // random, of the process's writer
	Seq    uint32   // counts from 1
}

// Names of objects.
const (
	prefixLog        = "log/"
	prefixNext       = "next/"
	prefixCheckpoint = "checkpoint/"
	prefixWant       = "want/"
)

// EntryName returns the name of the object that holds an entry: 4,096 to a folder.
func EntryName(p Position) string {
	return fmt.Sprintf("%s%s/%03x/%06x", prefixLog, p.Volume, p.Number>>12, p.Number)
}

// NextName returns the name of the object that says that a volume is closed.
func NextName(v Volume) string { return prefixNext + v.String() }

// CheckpointName returns the name of a checkpoint's object: the newest are listed first.
func CheckpointName(c Checkpoint) string {
	at := c.At
	return fmt.Sprintf("%s%08x%04x%08x%06x-%s", prefixCheckpoint, ^at.Volume.Tenure.Number, ^at.Volume.Tenure.Region,
		^at.Volume.Number, MaxEntries-1-at.Number, c.Salt)
}

// ParseCheckpointName returns what a checkpoint's name says, without the hash.
func ParseCheckpointName(name string) (c Checkpoint, ok bool) {
	var t, v, n uint32
	var r uint16
	var salt []byte
	if _, err := fmt.Sscanf(name, prefixCheckpoint+"%08x%04x%08x%06x-%32x", &t, &r, &v, &n, &salt); err != nil ||
		len(salt) != len(c.Salt) || n >= MaxEntries {
		return c, false
	}
	c.At = Position{Volume: Volume{Tenure: Tenure{Number: ^t, Region: ^r}, Number: ^v}, Number: MaxEntries - 1 - n}
	copy(c.Salt[:], salt)
	return c, CheckpointName(c) == name
}
