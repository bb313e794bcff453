package fat

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"strings"
	"time"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/holdfast-vm/holdfast/internal/filesystem"
)

const (
	rootID     = filesystem.ID(1)
	maxDirSize = 2 << 20 // bytes: 65536 entries, the format's own limit

	attrReadOnly = 0x01
	attrVolume   = 0x08
	attrDir      = 0x10
	attrLong     = 0x0f
)

// record is a directory entry with its names. Its ID is its place on the disk, in entries.
type record struct {
	id          filesystem.ID
	raw         [entrySize]byte
	name, short string
}

func (r *record) attr() byte { return r.raw[11] }

func (r *record) isDir() bool { return r.attr()&attrDir != 0 }

func (r *record) cluster(bits int) uint32 {
	c := uint32(binary.LittleEndian.Uint16(r.raw[26:]))
	if bits == 32 {
		c |= uint32(binary.LittleEndian.Uint16(r.raw[20:])) << 16
	}
	return c
}

// dirPieces returns where a directory is.
func (f *FS) dirPieces(id filesystem.ID) ([]piece, error) {
	if id == rootID {
		if f.bits != 32 {
			return []piece{{0, f.rootOff, f.rootLen}}, nil
		}
		return f.dirChain(f.rootAt)
	}
	r, err := f.record(id)
	if err != nil {
		return nil, err
	}
	if !r.isDir() {
		return nil, fmt.Errorf("FAT: file %d is no directory: %w", id, fs.ErrInvalid)
	}
	return f.dirChain(r.cluster(f.bits))
}

// dirChain returns where the directory is that begins at cluster.
func (f *FS) dirChain(cluster uint32) ([]piece, error) {
	pieces, err := f.chain(cluster, maxDirSize+1, false)
	if n := len(pieces); err == nil && n > 0 && pieces[n-1].file+pieces[n-1].size > maxDirSize {
		err = fmt.Errorf("FAT: %w: a directory of more than %d bytes", filesystem.ErrCorrupt, maxDirSize)
	}
	return pieces, err
}

// record reads the entry with an ID.
func (f *FS) record(id filesystem.ID) (*record, error) {
	off := int64(id) * entrySize
	if id > 1<<50 || off < f.rootOff || off+entrySize > f.info.Size {
		return nil, fmt.Errorf("FAT: file %d: %w", id, filesystem.ErrNotExist)
	}
	r := &record{id: id}
	if n, err := f.r.ReadAt(r.raw[:], off); n < entrySize {
		return nil, fmt.Errorf("read directory entry at %d: %w", off, unexpected(err))
	}
	return r, nil
}

// records yields what is in a directory, label and all.
func (f *FS) records(id filesystem.ID) iter.Seq2[record, error] {
	return func(yield func(record, error) bool) {
		pieces, err := f.dirPieces(id)
		if err != nil {
			yield(record{}, err)
			return
		}
		var long longName
		for _, p := range pieces {
			raw := make([]byte, p.size)
			if n, err := f.r.ReadAt(raw, p.disk); n < len(raw) {
				yield(record{}, fmt.Errorf("read a directory at %d: %w", p.disk, unexpected(err)))
				return
			}
			for at := int64(0); at+entrySize <= p.size; at += entrySize {
				r := record{id: filesystem.ID((p.disk + at) / entrySize), raw: [entrySize]byte(raw[at:])}
				if r.raw[0] == 0 {
					return
				}
				if !long.take(&r) {
					continue
				}
				if !yield(r, nil) {
					return
				}
			}
		}
	}
}

// longName gathers the entries that hold a long name, in front of the entry that they belong to.
type longName struct {
	units []uint16
	sum   byte
	next  int // number of the part that must follow; 0 when the name is whole
}

// take takes in an entry, and reports whether it is one of a file, a directory or the label: then
// it has its names.
func (l *longName) take(r *record) bool {
	switch {
	case r.raw[0] == 0xe5:
		l.reset()
		return false
	case r.attr()&0x3f == attrLong:
		l.part(r.raw[:])
		return false
	}
	defer l.reset()
	r.short = shortName(r.raw[:])
	r.name = r.short
	if l.next == 0 && len(l.units) > 0 && l.sum == shortSum(r.raw[:11]) && r.attr()&attrVolume == 0 {
		if name := decodeLong(l.units); name != "" {
			r.name = name
		}
	}
	return r.name != "." && r.name != ".."
}

func (l *longName) reset() { l.units, l.next = l.units[:0], -1 }

func (l *longName) part(raw []byte) {
	number := int(raw[0] & 0x3f)
	if raw[0]&0x40 != 0 {
		if number == 0 || number > 20 {
			l.reset()
			return
		}
		l.units, l.next, l.sum = make([]uint16, 13*number), number, raw[13]
	}
	if number == 0 || number != l.next || raw[13] != l.sum {
		l.reset()
		return
	}
	l.next--
	part := l.units[13*(number-1):]
	for i, at := range []int{1, 3, 5, 7, 9, 14, 16, 18, 20, 22, 24, 28, 30} {
		part[i] = binary.LittleEndian.Uint16(raw[at:])
	}
}

func decodeLong(units []uint16) string {
	for i, u := range units {
		if u == 0 {
			units = units[:i]
			break
		}
	}
	return string(utf16.Decode(units))
}

// shortSum is the checksum that ties a long name to its short one.
func shortSum(name []byte) (sum byte) {
	for _, c := range name {
		sum = sum>>1 | sum<<7
		sum += c
	}
	return sum
}

// shortName returns NAME.EXT, in lower case where Windows NT noted that.
func shortName(raw []byte) string {
	var b [11]byte
	copy(b[:], raw)
	if b[0] == 0x05 {
		b[0] = 0xe5
	}
	if raw[11]&attrVolume != 0 {
		return fromOEM(strings.TrimRight(string(b[:]), " "))
	}
	base, ext := fromOEM(strings.TrimRight(string(b[:8]), " ")), fromOEM(strings.TrimRight(string(b[8:]), " "))
	if raw[12]&0x08 != 0 {
		base = strings.ToLower(base)
	}
	if raw[12]&0x10 != 0 {
		ext = strings.ToLower(ext)
	}
	if ext != "" {
		return base + "." + ext
	}
	return base
}

// Characters 128 to 255 of code page 437.
const oem = "ÇüéâäàåçêëèïîìÄÅÉæÆôöòûùÿÖÜ¢£¥₧ƒáíóúñÑªº¿⌐¬½¼¡«»░▒▓│┤╡╢╖╕╣║╗╝╜╛┐" +
	"└┴┬├─┼╞╟╚╔╩╦╠═╬╧╨╤╥╙╘╒╓╫╪┘┌█▄▌▐▀αßΓπΣσµτΦΘΩδ∞φε∩≡±≥≤⌠⌡÷≈°∙·√ⁿ²■\u00a0"

var oemRunes = []rune(oem)

func fromOEM(s string) string {
	var b strings.Builder
	for i := range len(s) {
		if s[i] < utf8.RuneSelf {
			b.WriteByte(s[i])
		} else {
			b.WriteRune(oemRunes[s[i]-0x80])
		}
	}
	return b.String()
}

// rootLabel returns the label that is kept as an entry of the root directory.
func (f *FS) rootLabel() (string, error) {
	for r, err := range f.records(rootID) {
		if err != nil {
			return "", err
		}
		if r.attr()&attrVolume != 0 && !r.isDir() {
			return r.short, nil
		}
	}
	return "", nil
}

// Root returns the ID of the root directory.
func (f *FS) Root() filesystem.ID { return rootID }

// ReadDir yields the entries of a directory.
func (f *FS) ReadDir(id filesystem.ID) iter.Seq2[filesystem.Entry, error] {
	return func(yield func(filesystem.Entry, error) bool) {
		for r, err := range f.records(id) {
			if err != nil {
				yield(filesystem.Entry{}, err)
				return
			}
			if r.attr()&attrVolume != 0 {
				continue
			}
			e := filesystem.Entry{Name: r.name, ID: r.id}
			if r.isDir() {
				e.Type = fs.ModeDir
			}
			if !yield(e, nil) {
				return
			}
		}
	}
}

// Lookup finds a name without regard to case, by its long or its short form.
func (f *FS) Lookup(dir filesystem.ID, name string) (filesystem.ID, error) {
	name = strings.TrimRight(name, ".") // as mounts do
	for r, err := range f.records(dir) {
		if err != nil {
			return 0, err
		}
		if r.attr()&attrVolume == 0 && (strings.EqualFold(strings.TrimRight(r.name, "."), name) ||
			strings.EqualFold(r.short, name)) {
			return r.id, nil
		}
	}
	return 0, filesystem.ErrNotExist
}

// Stat returns what is known of a file.
func (f *FS) Stat(id filesystem.ID) (filesystem.Attr, error) {
	if id == rootID {
		return filesystem.Attr{ID: id, Mode: fs.ModeDir | 0o755, Links: 1}, nil
	}
	r, err := f.record(id)
	if err != nil {
		return filesystem.Attr{}, err
	}
	a := filesystem.Attr{ID: id, Mode: 0o755, Links: 1, Size: int64(binary.LittleEndian.Uint32(r.raw[28:]))}
	if r.attr()&attrReadOnly != 0 {
		a.Mode = 0o555
	}
	if r.isDir() {
		a.Mode, a.Size = fs.ModeDir|0o755, 0
	}
	le := binary.LittleEndian
	a.Born = fatTime(le.Uint16(r.raw[16:]), le.Uint16(r.raw[14:]), r.raw[13])
	a.Accessed = fatTime(le.Uint16(r.raw[18:]), 0, 0)
	a.Modified = fatTime(le.Uint16(r.raw[24:]), le.Uint16(r.raw[22:]), 0)
	return a, nil
}

// fatTime returns the zero time for an impossible date. Hundredths count from the even second.
func fatTime(date, clock uint16, hundredths byte) time.Time {
	year, month, day := 1980+int(date>>9), time.Month(date>>5&15), int(date&31)
	if month < 1 || month > 12 || day < 1 {
		return time.Time{}
	}
	t := time.Date(year, month, day, int(clock>>11), int(clock>>5&63), int(clock&31)*2, 0, time.UTC)
	return t.Add(time.Duration(hundredths) * 10 * time.Millisecond)
}

// ReadLink returns an error: there are no symbolic links.
func (f *FS) ReadLink(id filesystem.ID) (string, error) {
	return "", fmt.Errorf("FAT: file %d is no symbolic link: %w", id, fs.ErrInvalid)
}

// Xattrs returns an empty map: FAT has none.
func (f *FS) Xattrs(id filesystem.ID) (map[string][]byte, error) { return map[string][]byte{}, nil }

// Streams returns none.
func (f *FS) Streams(id filesystem.ID) ([]filesystem.Stream, error) { return nil, nil }

// OpenStream returns an error: there are none.
func (f *FS) OpenStream(id filesystem.ID, name string) (filesystem.File, error) {
	return nil, errors.Join(filesystem.ErrNotExist, fmt.Errorf("FAT: file %d has no stream %q", id, name))
}
