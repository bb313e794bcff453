package main

import (
	"bytes"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/zeebo/blake3"
)

// logDir is the log of a vault: docs/formats/log.md.
type logDir struct {
	dir                        string
	logKey, entryKey, stateKey []byte
}

// position is the place of an entry.
type position struct {
	tenure uint32
	region uint16
	volume uint32
	number uint32
}

type operation struct {
	kind      uint16
	added     [][]byte // rows of objects
	condemned [][]byte // IDs
	gone      [][]byte
	recipes   int
	body      []byte
}

type logEntry struct {
	at             position
	before         []byte
	term, time     uint64
	who            string
	writer         []byte
	seq            uint32
	ops            []operation
	hash           [32]byte
	voids          [][]byte
	after          position // of a begin
	forget         []byte
	checkpointName string
	checkpointHash []byte
}

var errVoid = errors.New("void")

func openLog(dir string, dataKey, vaultID []byte) (*logDir, error) {
	l := &logDir{dir: dir}
	for info, key := range map[string]*[]byte{"log": &l.logKey, "entry": &l.entryKey, "state": &l.stateKey} {
		k, err := hkdf.Key(sha256.New, dataKey, vaultID, "holdfast vault v1 "+info, 32)
		if err != nil {
			return nil, err
		}
		*key = k
	}
	return l, nil
}

func (l *logDir) read(name string) ([]byte, error) { return os.ReadFile(filepath.Join(l.dir, name)) }

func entryName(p position) string {
	return fmt.Sprintf("log/%08x-%04x/%08x/%03x/%06x", p.tenure, p.region, p.volume, p.number/4096, p.number)
}

func nextName(p position) string {
	return fmt.Sprintf("next/%08x-%04x/%08x", p.tenure, p.region, p.volume)
}

// entries returns all entries of the newest tenure of a log that was never cut, in order.
func (l *logDir) entries() ([]*logEntry, error) {
	first, err := l.tenure()
	if err != nil {
		return nil, err
	}
	return l.entriesFrom(nil, first, make([]byte, 32))
}

// entriesAfter returns the entries after the one that a checkpoint is of.
func (l *logDir) entriesAfter(s *logState) ([]*logEntry, error) {
	seed := &logEntry{at: s.at, hash: s.hash, ops: []operation{{kind: 0}}}
	if s.ends {
		seed.ops[0].kind = 2
	}
	next := s.at
	next.number++
	all, err := l.entriesFrom([]*logEntry{seed}, next, seed.hash[:])
	if err != nil {
		return nil, err
	}
	return all[1:], nil
}

// entriesFrom reads on where all ends: at is the next number, last the hash of the last entry.
func (l *logDir) entriesFrom(all []*logEntry, at position, last []byte) ([]*logEntry, error) {
	var voids [][]byte
	for {
		raw, err := l.read(entryName(at))
		over := errors.Is(err, fs.ErrNotExist)
		if err != nil && !over {
			return nil, err
		}
		if n := len(all); over || n > 0 && at.number > 0 && all[n-1].ends() {
			if n == 0 {
				return nil, errors.New("there is no log")
			}
			if all, over, err = l.nextVolume(all); err != nil || over {
				return all, err
			}
			e := all[len(all)-1]
			at, last, voids = position{at.tenure, at.region, e.at.volume, 1}, e.hash[:], nil
			continue
		}
		e, err := l.parse(raw, at)
		switch {
		case errors.Is(err, errVoid), err == nil && !bytes.Equal(e.before, last) && len(voids) == 0:
			sum := blake3.Sum256(raw)
			voids = append(voids, sum[:])
		case err != nil:
			return nil, err
		case !bytes.Equal(e.before, last), !equalAll(e.voids, voids):
			return nil, fmt.Errorf("%s says that others before it are damaged", entryName(at))
		default:
			all, last, voids = append(all, e), e.hash[:], nil
		}
		at.number++
	}
}

func equalAll(a, b [][]byte) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if !bytes.Equal(a[i], b[i]) {
			return false
		}
	}
	return true
}

func (e *logEntry) ends() bool { return e.ops[len(e.ops)-1].kind == 2 }

// nextVolume goes on to the volume after the last entry's, if that is closed, and drops what is
// void.
func (l *logDir) nextVolume(all []*logEntry) (_ []*logEntry, over bool, err error) {
	last := all[len(all)-1]
	if _, err := l.read(nextName(last.at)); errors.Is(err, fs.ErrNotExist) && !last.ends() {
		return all, true, nil
	}
	at := position{last.at.tenure, last.at.region, last.at.volume + 1, 0}
	raw, err := l.read(entryName(at))
	if errors.Is(err, fs.ErrNotExist) {
		return all, true, nil
	}
	if err != nil {
		return nil, false, err
	}
	e, err := l.parse(raw, at)
	if err != nil {
		return nil, false, err
	}
	for all[len(all)-1].at != e.after {
		if all = all[:len(all)-1]; len(all) == 0 {
			return nil, false, fmt.Errorf("%s begins after an entry that is not there", entryName(at))
		}
	}
	if h := all[len(all)-1].hash; !bytes.Equal(e.before, h[:]) {
		return nil, false, fmt.Errorf("%s does not chain", entryName(at))
	}
	return append(all, e), false, nil
}

// parse reads an entry.
func (l *logDir) parse(raw []byte, at position) (*logEntry, error) {
	limit := 65536
	if at.number == 0 {
		limit = 5242880
	}
	if len(raw) < 120+32 || len(raw) > limit {
		return nil, errVoid
	}
	signed := raw[:len(raw)-32]
	if !bytes.Equal(keyedHash(l.logKey, signed), raw[len(signed):]) {
		return nil, errVoid
	}
	if string(raw[:8]) != "HFENTRY1" {
		return nil, fmt.Errorf("%s is of another version", entryName(at))
	}
	le := binary.LittleEndian
	h, b := int(le.Uint32(raw[8:])), int(le.Uint32(raw[12:]))
	e := &logEntry{hash: blake3.Sum256(raw), before: raw[32:64], term: le.Uint64(raw[64:]), time: le.Uint64(raw[72:]),
		writer: raw[80:92], seq: le.Uint32(raw[92:]),
		at: position{le.Uint32(raw[16:]), le.Uint16(raw[20:]), le.Uint32(raw[24:]), le.Uint32(raw[28:])}}
	if h < 120 || h+b != len(signed) || e.at != at || raw[22] > 2 || raw[23] != 0 || le.Uint32(raw[116:]) != 0 {
		return nil, errVoid
	}
	ops, voids := int(le.Uint16(raw[112:])), int(le.Uint16(raw[114:]))
	lists := 120 + 32*voids + 16*ops
	if ops == 0 || lists > h {
		return nil, errVoid
	}
	for i := range voids {
		e.voids = append(e.voids, raw[120+32*i:152+32*i])
	}
	bodies := raw[h : h+b]
	if raw[22] == 1 {
		key, err := hkdf.Key(sha256.New, l.entryKey, raw[96:112], "holdfast log entry v1", 32)
		if err != nil {
			return nil, err
		}
		aead, err := gcm(key)
		if err != nil {
			return nil, err
		}
		if bodies, err = aead.Open(nil, make([]byte, 12), bodies, raw[:h]); err != nil {
			return nil, fmt.Errorf("%s: %w", entryName(at), err)
		}
		if len(bodies) == 0 || bodies[0] > 64 || int(bodies[0]) >= len(bodies) {
			return nil, errVoid
		}
		e.who, bodies = string(bodies[1:1+bodies[0]]), bodies[1+bodies[0]:]
	}
	return e, e.readOps(raw[120+32*voids:lists], raw[lists:h], bodies)
}

func (e *logEntry) readOps(heads, lists, bodies []byte) error {
	le := binary.LittleEndian
	take := func(from *[]byte, n int) []byte {
		if n > len(*from) {
			return nil
		}
		out := (*from)[:n]
		*from = (*from)[n:]
		return out
	}
	for ; len(heads) > 0; heads = heads[16:] {
		op := operation{kind: le.Uint16(heads)}
		for range le.Uint16(heads[8:]) {
			op.added = append(op.added, take(&lists, 66))
		}
		for range le.Uint16(heads[10:]) {
			op.condemned = append(op.condemned, take(&lists, 24))
		}
		for range le.Uint16(heads[12:]) {
			op.gone = append(op.gone, take(&lists, 24))
		}
		for range le.Uint16(heads[14:]) {
			head := take(&lists, 28)
			if head == nil || take(&lists, 41*int(le.Uint32(head[24:]))) == nil && le.Uint32(head[24:]) > 0 {
				return errVoid
			}
			op.recipes++
		}
		for _, l := range [][][]byte{op.added, op.condemned, op.gone} {
			for _, item := range l {
				if item == nil {
					return errVoid
				}
			}
		}
		n := int(le.Uint32(heads[4:]))
		if op.body = take(&bodies, n); op.body == nil && n > 0 {
			return errVoid
		}
		e.ops = append(e.ops, op)
	}
	if len(lists) > 0 || len(bodies) > 0 {
		return errVoid
	}
	if e.ops[0].kind == 1 && len(e.ops[0].body) > 0 {
		return e.readBegin(e.ops[0].body)
	}
	return nil
}

func bigPosition(b []byte) position {
	be := binary.BigEndian
	return position{be.Uint32(b), be.Uint16(b[4:]), be.Uint32(b[6:]), be.Uint32(b[10:])}
}

func (e *logEntry) readBegin(b []byte) error {
	if len(b) < 14+32+14+16+32+10+4 {
		return errors.New("a begin is cut")
	}
	e.after = bigPosition(b)
	e.checkpointName = checkpointName(bigPosition(b[46:]), b[60:76])
	e.checkpointHash = b[76:108]
	e.forget = b[108:118]
	if !bytes.Equal(b[14:46], e.before) {
		return errors.New("a begin names another hash than it has before")
	}
	return nil
}

func checkpointName(p position, salt []byte) string {
	return fmt.Sprintf("checkpoint/%08x%04x%08x%06x-%s", ^p.tenure, ^p.region, ^p.volume, 1<<24-1-p.number,
		hex.EncodeToString(salt))
}

// listLog writes a line for each entry.
func listLog(w io.Writer, dir, dataKey, vaultID string) error {
	key, err := hex.DecodeString(dataKey)
	if err != nil {
		return err
	}
	id, err := hex.DecodeString(vaultID)
	if err != nil {
		return err
	}
	l, err := openLog(dir, key, id)
	if err != nil {
		return err
	}
	all, err := l.entries()
	for _, e := range all {
		fmt.Fprintf(w, "%d.%d", e.at.volume, e.at.number)
		for _, op := range e.ops {
			fmt.Fprintf(w, " kind %d (%d added, %d condemned, %d gone, %d bytes)", op.kind, len(op.added),
				len(op.condemned),
				len(op.gone), len(op.body))
		}
		fmt.Fprintf(w, " by %q\n", e.who)
	}
	return err
}
