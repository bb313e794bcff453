package vault

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"math"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-vm/holdfast/internal/point"
)

// The format of a point list, docs/formats/list.md: a sealed object of a table of texts and of rows.
const (
	listsPrefix = "lists/"
	maxTexts    = 64 << 20 // bytes of a list before it is compressed
)

var sealedLists = sealed{listsPrefix, "HFLIST01", "holdfast list v1", "point list"}

// summary is what a list has of a point: all but its definition, of which it has the kind, what of the machine it does not hold, and how
// images were encrypted.
type summary struct {
	point.RecoveryPoint
	whole bool // this is all of the point
}

func summaryOf(p *point.RecoveryPoint) *summary {
	s := &summary{RecoveryPoint: *p}
	s.Definition, s.NotHeld = point.Definition{Kind: p.Definition.Kind}, nil
	s.whole = reflect.DeepEqual(s.Definition, p.Definition) && len(p.NotHeld) == 0
	for i, d := range p.Disks {
		if d.Source.Encryption == nil {
			continue
		}
		if s.whole = false; &s.Disks[0] == &p.Disks[0] {
			s.Disks = slices.Clone(p.Disks)
		}
		s.Disks[i].Source.Encryption = nil
	}
	return s
}

// sealList returns the object that has the summaries of points, and its name.
func (v *Vault) sealList(points []*summary) (name string, raw []byte, err error) {
	plain := encodeList(points)
	if len(plain) > maxTexts {
		return "", nil, fmt.Errorf("a list of %d points takes %d bytes", len(points), len(plain))
	}
	id := make([]byte, 16)
	rand.Read(id)
	raw, err = v.seal(sealedLists, id, plain)
	return listsPrefix + hex.EncodeToString(id), raw, err
}

// openList returns the list in the object name.
func (v *Vault) openList(name string, raw []byte) (*pointList, error) {
	plain, err := v.unseal(sealedLists, name, raw)
	if err != nil {
		return nil, err
	}
	l, err := parseList(plain)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %v", ErrCorrupt, name, err)
	}
	return l, nil
}

// rowCoder writes the fields of a row, or reads them, in one and the same order.
type rowCoder interface {
	text(s *string)
	number(n *int64)
	// count codes how long something is: 0 for nil, else one more than its length.
	count(length int, isNil bool) (n int, none bool)
	// reading says that values are to be changed, which writers leave alone: others may be reading them.
	reading() bool
	failed() bool
}

func encodeList(points []*summary) []byte {
	w := &rowWriter{numbers: make(map[string]int64)}
	for _, p := range points {
		codePoint(w, p)
	}
	out := binary.AppendUvarint(nil, uint64(len(w.texts)))
	for _, s := range w.texts {
		out = append(binary.AppendUvarint(out, uint64(len(s))), s...)
	}
	return append(binary.AppendUvarint(out, uint64(len(points))), w.rows...)
}

// pointList is a list as it is stored, of which every row is known to be whole. Points are decoded when they are asked for: most are not.
type pointList struct {
	plain string // texts share it
	texts []textSpan
	rows  []listRow // ascending by ID
}

// textSpan is where a text is in a list.
type textSpan struct{ at, end uint32 }

// listRow says where the row of a point begins.
type listRow struct {
	id point.ID
	at int
}

func parseList(plain []byte) (*pointList, error) {
	l := &pointList{plain: string(plain)}
	r := &rowReader{list: l, rest: l.plain}
	l.texts = make([]textSpan, 0, r.atMost(1))
	for range cap(l.texts) {
		n := r.atMost(1)
		at := len(l.plain) - len(r.rest)
		l.texts = append(l.texts, textSpan{uint32(at), uint32(at + n)})
		r.rest = r.rest[n:]
	}
	l.rows = make([]listRow, 0, r.atMost(minRow))
	var s summary
	for range cap(l.rows) {
		at := len(l.plain) - len(r.rest)
		codePoint(r, &s)
		l.rows = append(l.rows, listRow{s.ID, at})
	}
	if len(r.rest) > 0 && r.err == nil {
		r.err = errors.New("bytes are left after the last row")
	}
	slices.SortStableFunc(l.rows, func(a, b listRow) int { return strings.Compare(string(a.id), string(b.id)) })
	return l, r.err
}

// read makes s the summary in a row. It writes over the disks and files that s has: no other summary may share them.
func (l *pointList) read(row listRow, s *summary) {
	codePoint(&rowReader{list: l, rest: l.plain[row.at:]}, s)
}

func (l *pointList) has(id point.ID) bool {
	_, found := slices.BinarySearchFunc(l.rows, id, func(r listRow, id point.ID) int { return strings.Compare(string(r.id), string(id)) })
	return found
}

// all returns the summaries of all points.
func (l *pointList) all() []*summary {
	points, all := make([]*summary, len(l.rows)), make([]summary, len(l.rows))
	for i, row := range l.rows {
		points[i] = &all[i]
		l.read(row, points[i])
	}
	return points
}

// minRow is the least that a row takes, in bytes.
const minRow = 23

type rowWriter struct {
	texts   []string
	numbers map[string]int64
	rows    []byte
}

func (w *rowWriter) text(s *string) {
	n, ok := w.numbers[*s]
	if !ok {
		n = int64(len(w.texts))
		w.texts = append(w.texts, *s)
		w.numbers[*s] = n
	}
	w.rows = binary.AppendUvarint(w.rows, uint64(n))
}

func (w *rowWriter) number(n *int64) { w.rows = binary.AppendVarint(w.rows, *n) }

func (w *rowWriter) count(length int, isNil bool) (int, bool) {
	if isNil {
		w.rows = binary.AppendUvarint(w.rows, 0)
	} else {
		w.rows = binary.AppendUvarint(w.rows, uint64(length)+1)
	}
	return length, isNil
}

func (w *rowWriter) reading() bool { return false }

func (w *rowWriter) failed() bool { return false }

// rowReader reads zeros once something is wrong.
type rowReader struct {
	list *pointList
	rest string
	err  error
}

func (r *rowReader) reading() bool { return true }

func (r *rowReader) failed() bool { return r.err != nil }

func (r *rowReader) uvarint() uint64 {
	var n uint64
	for i := 0; i < len(r.rest) && i < binary.MaxVarintLen64; i++ {
		c := r.rest[i]
		if c < 0x80 {
			if i == binary.MaxVarintLen64-1 && c > 1 {
				break
			}
			r.rest = r.rest[i+1:]
			return n | uint64(c)<<(7*i)
		}
		n |= uint64(c&0x7f) << (7 * i)
	}
	r.fail()
	return 0
}

func (r *rowReader) fail() {
	r.err = errors.New("it ends too early, or names what is not there")
	r.rest = ""
}

// atMost reads how many things of at least size bytes follow.
func (r *rowReader) atMost(size int) int {
	n := r.uvarint()
	if n > uint64(len(r.rest)/size) {
		r.fail()
		return 0
	}
	return int(n)
}

func (r *rowReader) text(s *string) {
	n := r.uvarint()
	if n >= uint64(len(r.list.texts)) {
		r.fail()
		return
	}
	t := r.list.texts[n]
	*s = r.list.plain[t.at:t.end]
}

func (r *rowReader) number(n *int64) {
	u := r.uvarint()
	*n = int64(u>>1) ^ -int64(u&1)
}

func (r *rowReader) count(int, bool) (int, bool) {
	n := r.uvarint()
	if n == 0 {
		return 0, true
	}
	if n-1 > uint64(len(r.rest)) {
		r.fail()
		return 0, true
	}
	return int(n - 1), false
}

// codePoint codes a row.
func codePoint(c rowCoder, p *summary) {
	codeText(c, &p.ID)
	codeText(c, &p.Kind)
	c.text(&p.Name)
	c.text(&p.VM)
	c.text(&p.MachineUUID)
	codeTime(c, &p.Time)
	codeText(c, &p.Consistency)
	c.text(&p.ConsistencyReason)
	codeText(c, &p.Rung)
	c.text(&p.RungReason)
	codeText(c, &p.Parent)
	codeTexts(c, &p.Tags)
	codeSlice(c, &p.Disks, codeDisk)
	codeSlice(c, &p.ExcludedDisks, rowCoder.text)
	codeText(c, &p.Definition.Kind)
	codeBool(c, &p.whole)
	codeSlice(c, &p.Files, codeFile)
	codeSlice(c, &p.Warnings, rowCoder.text)
	c.text(&p.Holdfast)
	codeFloat(c, &p.Took)
	codeFloat(c, &p.FrozenSeconds)
	_, none := c.count(0, p.CopiedFrom == nil)
	if c.reading() {
		p.CopiedFrom = nil
	}
	if none {
		return
	}
	if c.reading() {
		p.CopiedFrom = &point.Origin{}
	}
	c.text(&p.CopiedFrom.Vault)
	codeText(c, &p.CopiedFrom.Point)
	codeTexts(c, &p.CopiedFrom.Roots)
}

func codeDisk(c rowCoder, d *point.Disk) {
	c.text(&d.Name)
	c.number(&d.Size)
	c.number(&d.Used)
	c.number(&d.Added)
	c.number(&d.Read)
	codeBool(c, &d.Tracked)
	c.text(&d.Reason)
	c.text(&d.Root)
	c.text(&d.Bitmap)
	c.text(&d.Source.File)
	c.text(&d.Source.Format)
	c.text(&d.Source.Node)
	c.text(&d.Source.Device)
	c.text(&d.Source.Bus)
	c.text(&d.Source.Serial)
	codeBool(c, &d.Source.IOThread)
	codeTexts(c, &d.Source.FormatOptions)
	c.text(&d.Managed)
	c.text(&d.ManagedID)
}

func codeFile(c rowCoder, f *point.File) {
	c.text(&f.Role)
	c.text(&f.Path)
	c.text(&f.Name)
	mode := int64(f.Mode)
	if c.number(&mode); c.reading() {
		f.Mode = uint32(mode)
	}
	c.number(&f.Size)
	c.text(&f.Root)
}

func codeText[T ~string](c rowCoder, to *T) {
	s := string(*to)
	if c.text(&s); c.reading() {
		*to = T(s)
	}
}

func codeBool(c rowCoder, to *bool) {
	var n int64
	if *to {
		n = 1
	}
	if c.number(&n); c.reading() {
		*to = n != 0
	}
}

func codeFloat(c rowCoder, to *float64) {
	n := int64(math.Float64bits(*to))
	if c.number(&n); c.reading() {
		*to = math.Float64frombits(uint64(n))
	}
}

func codeTime(c rowCoder, to *time.Time) {
	sec, nsec := to.Unix(), int64(to.Nanosecond())
	c.number(&sec)
	if c.number(&nsec); c.reading() {
		*to = time.Unix(sec, nsec).UTC()
	}
}

func codeSlice[T any](c rowCoder, to *[]T, code func(rowCoder, *T)) {
	n, none := c.count(len(*to), *to == nil)
	if !c.reading() {
		for i := range *to {
			code(c, &(*to)[i])
		}
		return
	}
	if none {
		*to = nil
		return
	}
	if *to = (*to)[:0]; *to == nil {
		*to = make([]T, 0, min(n, 16))
	}
	for i := 0; i < n && !c.failed(); i++ {
		var zero T
		*to = append(*to, zero)
		code(c, &(*to)[i])
	}
}

func codeTexts(c rowCoder, to *map[string]string) {
	n, none := c.count(len(*to), *to == nil)
	if c.reading() {
		*to = nil
	}
	if none {
		return
	}
	if !c.reading() {
		for _, k := range slices.Sorted(maps.Keys(*to)) {
			s := (*to)[k]
			c.text(&k)
			c.text(&s)
		}
		return
	}
	*to = make(map[string]string)
	for range n {
		var k, s string
		c.text(&k)
		if c.text(&s); c.failed() {
			return
		}
		(*to)[k] = s
	}
}
