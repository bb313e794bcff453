package ntfs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/filesystem"
	"github.com/holdfast-vm/holdfast/internal/filesystem/filesystemtest"
)

// edited is the golden image, which a guest with a hex editor has changed: NTFS has no checksums.
type edited struct {
	t     testing.TB
	image []byte
	f     *FS
}

func edit(t testing.TB) *edited {
	t.Helper()
	image := filesystemtest.Unpacked(t, "testdata/golden.img.gz")
	f, err := Open(bytes.NewReader(image), int64(len(image)))
	if err != nil {
		t.Fatal(err)
	}
	return &edited{t, image, f}
}

func (e *edited) reopened() (*FS, error) { return Open(bytes.NewReader(e.image), int64(len(e.image))) }

// find returns the ID of a path.
func (e *edited) find(path string) filesystem.ID {
	e.t.Helper()
	id := e.f.Root()
	for name := range strings.SplitSeq(path, "/") {
		var err error
		if id, err = e.f.Lookup(id, name); err != nil {
			e.t.Fatal(err)
		}
	}
	return id
}

// place returns where the bytes of a stream from off on are in the image.
func (e *edited) place(s *stream, off int64) int64 {
	e.t.Helper()
	r := s.runs[s.at(off/e.f.cluster)]
	return r.lcn*e.f.cluster + off - r.vcn*e.f.cluster
}

// record changes a file record, whose sectors keep their update sequence.
func (e *edited) record(id filesystem.ID, change func(p []byte) []byte) {
	e.t.Helper()
	at := e.place(e.f.mft, int64(uint64(id)&refMask)*e.f.recordSize)
	p := bytes.Clone(e.image[at : at+e.f.recordSize])
	if err := applyFixups(p); err != nil {
		e.t.Fatal(err)
	}
	p = change(p)
	if int64(len(p)) > e.f.recordSize {
		e.t.Fatal("the record is full")
	}
	p = append(p, make([]byte, e.f.recordSize-int64(len(p)))...)
	seq := int(le.Uint16(p[4:]))
	for i := 1; i*512 <= len(p); i++ {
		copy(p[seq+2*i:seq+2*i+2], p[i*512-2:])
		copy(p[i*512-2:i*512], p[seq:])
	}
	copy(e.image[at:], p)
}

// attr puts raw in the place of an attribute, or before the first of a higher kind.
func (e *edited) attr(id filesystem.ID, kind uint32, raw []byte) {
	e.t.Helper()
	e.record(id, func(p []byte) []byte {
		used := int(le.Uint32(p[24:]))
		at := int(le.Uint16(p[20:]))
		for le.Uint32(p[at:]) < kind {
			at += int(le.Uint32(p[at+4:]))
		}
		end := at
		if le.Uint32(p[at:]) == kind {
			end += int(le.Uint32(p[at+4:]))
		}
		p = slices.Concat(p[:at], raw, p[end:used])
		le.PutUint32(p[24:], uint32(len(p)))
		return p
	})
}

// wide is ASCII as NTFS has it.
func wide(s string) []byte {
	var out []byte
	for _, c := range s {
		out = le.AppendUint16(out, uint16(c))
	}
	return out
}

// scattered is an attribute with runs.
func scattered(kind uint32, name string, clusters, size int64, runs ...byte) []byte {
	p := make([]byte, 64)
	le.PutUint32(p, kind)
	p[8], p[9], p[10] = 1, byte(len(name)), 64
	p[14] = 77 // its number in the record
	le.PutUint64(p[24:], uint64(clusters-1))
	for _, at := range []int{40, 48, 56} {
		le.PutUint64(p[at:], uint64(size))
	}
	p = append(p, wide(name)...)
	p = append(p, make([]byte, -len(p)&7)...)
	le.PutUint16(p[32:], uint16(len(p)))
	p = append(append(p, runs...), 0)
	p = append(p, make([]byte, -len(p)&7)...)
	le.PutUint32(p[4:], uint32(len(p)))
	return p
}

// resident is an attribute with its value.
func resident(kind uint32, value []byte) []byte {
	p := make([]byte, 24)
	le.PutUint32(p, kind)
	p[14] = 78
	le.PutUint32(p[16:], uint32(len(value)))
	p[20] = 24
	p = append(p, value...)
	p = append(p, make([]byte, -len(p)&7)...)
	le.PutUint32(p[4:], uint32(len(p)))
	return p
}

// listEntry is an entry of an attribute list.
func listEntry(kind uint32, record uint64, id uint16) []byte {
	p := make([]byte, 32)
	le.PutUint32(p, kind)
	p[4], p[7] = 32, 26
	le.PutUint64(p[16:], record)
	le.PutUint16(p[24:], id)
	return p
}

func drain(f *FS, dir filesystem.ID) (n int, last error) {
	for _, err := range f.ReadDir(dir) {
		if err != nil {
			return n, err
		}
		n++
	}
	return n, nil
}

// An index and its bitmap may be holes of any size: no memory is taken for them, and nothing is
// gone through that is not there.
func TestIndexWithoutEnd(t *testing.T) {
	e := edit(t)
	dir := e.find("dir")
	const clusters = 1 << 46 // of 512 bytes
	hole := []byte{6, 0, 0, 0, 0, 0, 0x40}
	e.attr(dir, attrIndexAlloc, scattered(attrIndexAlloc, "$I30", clusters, clusters*512, hole...))
	e.attr(dir, attrBitmap, scattered(attrBitmap, "$I30", clusters, clusters*512, hole...))
	f, err := e.reopened()
	if err != nil {
		t.Fatal(err)
	}
	if n, err := drain(f, dir); !errors.Is(err, filesystem.ErrCorrupt) ||
		!strings.Contains(err.Error(), "of index in a volume of") {
		t.Errorf("%d entries, %v", n, err)
	}
	if _, err := f.Lookup(dir, "plain"); !errors.Is(err, filesystem.ErrCorrupt) {
		t.Errorf("%v", err)
	}
}

// Runs are of clusters that a stream has once, and of no more bytes than can be counted with.
func TestRunsWithoutEnd(t *testing.T) {
	for _, tt := range []struct {
		name     string
		clusters int64
		runs     []byte
		want     error
	}{
		{"a hole of 2^54 bytes", 1 << 45, []byte{6, 0, 0, 0, 0, 0, 0x20}, nil},
		{"a hole of 2^63 bytes", 1 << 54, []byte{7, 0, 0, 0, 0, 0, 0, 0x40}, filesystem.ErrCorrupt},
		{"most of the volume twice", 8000, []byte{0x12, 0xa0, 0x0f, 0x64, 0x12, 0xa0, 0x0f, 0}, filesystem.ErrCorrupt},
		{"half of the volume", 3000, []byte{0x12, 0xb8, 0x0b, 0x64}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := edit(t)
			id := e.find("dir/plain")
			e.attr(id, attrData, scattered(attrData, "", tt.clusters, tt.clusters*512, tt.runs...))
			f, err := e.reopened()
			if err != nil {
				t.Fatal(err)
			}
			file, err := f.Open(id)
			if !errors.Is(err, tt.want) {
				t.Fatalf("%v", err)
			}
			if err != nil {
				return
			}
			set, err := file.Extents()
			if err != nil || set.Bytes() > f.clusters*f.cluster || file.Size() != tt.clusters*512 {
				t.Errorf("%d bytes, of which %d are stored, %v", file.Size(), set.Bytes(), err)
			}
			if n, err := file.ReadAt(make([]byte, 100), file.Size()-50); n != 50 || !errors.Is(err, io.EOF) {
				t.Errorf("%d bytes of the end, %v", n, err)
			}
		})
	}
}

// An attribute list names each attribute once; one that says more, or that leads to itself, is
// damage.
func TestListsThatGoRound(t *testing.T) {
	e := edit(t)
	id := e.find("dir/plain")
	ino, err := e.f.inode(uint64(id), true)
	if err != nil {
		t.Fatal(err)
	}
	var list []byte
	for _, a := range ino.attrs {
		list = append(list, listEntry(a.kind, ino.ref, a.id)...)
	}
	open := func(list []byte) error {
		e := edit(t)
		e.attr(id, attrList, resident(attrList, list))
		f, err := e.reopened()
		if err != nil {
			t.Fatal(err)
		}
		_, err = f.Stat(id)
		return err
	}
	if err := open(list); err != nil {
		t.Fatal(err)
	}
	if err := open(append(list, list[len(list)-32:]...)); !errors.Is(err, filesystem.ErrCorrupt) ||
		!strings.Contains(err.Error(), "twice") {
		t.Errorf("an attribute that is named twice: %v", err)
	}
	if err := open(append(list, listEntry(attrList, ino.ref, 78)...)); err != nil {
		t.Errorf("a list that names itself: %v", err)
	}
	if err := open(append(list, listEntry(attrData, e.f.mftRef(t), 1)...)); !errors.Is(err, filesystem.ErrCorrupt) {
		t.Errorf("a part of another file: %v", err)
	}
}

// mftRef returns a reference to the table's own record.
func (f *FS) mftRef(t *testing.T) uint64 {
	ino, err := f.inode(recMFT, false)
	if err != nil {
		t.Fatal(err)
	}
	return ino.ref
}

// failingAt fails reads of one place.
type failingAt struct {
	io.ReaderAt
	at int64
}

var errDisk = errors.New("the disk is broken")

func (r failingAt) ReadAt(p []byte, off int64) (int, error) {
	if off <= r.at && r.at < off+int64(len(p)) {
		return 0, errDisk
	}
	return r.ReaderAt.ReadAt(p, off)
}

// Parts of the table that cannot be found are done without while it is put together, those that
// cannot be read are an error; and that is over after some time, wherever they lead.
func TestTableInParts(t *testing.T) {
	e := edit(t)
	table, err := e.f.inode(recMFT, false)
	if err != nil {
		t.Fatal(err)
	}
	var list []byte
	for _, a := range table.attrs {
		list = append(list, listEntry(a.kind, table.ref, a.id)...)
	}
	list = append(list, listEntry(attrData, 1<<40, 1)...)
	list = append(list, listEntry(attrData, uint64(e.find("small")), 1)...)
	e.attr(filesystem.ID(table.ref), attrList, resident(attrList, list))
	if _, err := e.reopened(); err != nil {
		t.Errorf("parts that are none: %v", err)
	}
	at := e.place(e.f.mft, int64(uint64(e.find("small"))&refMask)*e.f.recordSize)
	if _, err := Open(failingAt{bytes.NewReader(e.image), at}, int64(len(e.image))); !errors.Is(err, errDisk) {
		t.Errorf("a part that cannot be read: %v", err)
	}
	e.f.opening = 100
	for range 200 {
		if _, err = e.f.record(recMFT); err != nil {
			break
		}
	}
	if !errors.Is(err, filesystem.ErrUnsupported) {
		t.Errorf("parts without end: %v", err)
	}
}

// What is kept of files in memory has a limit in bytes, too.
func TestKeptInodes(t *testing.T) {
	f := &FS{inodes: map[uint64]*inode{}}
	large := &inode{attrs: make([]attribute, 5000)}
	for ref := range uint64(300) {
		f.keep(ref, large)
	}
	if f.kept > maxKept || f.kept < maxKept-large.cost() || f.kept != len(f.inodes)*large.cost() {
		t.Errorf("%d files with %d bytes are kept", len(f.inodes), f.kept)
	}
	f.keep(1000, &inode{attrs: make([]attribute, 50_000)})
	if f.inodes[1000] != nil {
		t.Error("a file is kept that takes more than others together")
	}
	for ref := range uint64(3 * maxInodes) {
		f.keep(ref, &inode{})
	}
	if len(f.inodes) > maxInodes {
		t.Errorf("%d are kept", len(f.inodes))
	}
}

// A name is found the same in a directory whose names are kept and in one that has too many.
func TestLookupOfLargeDirectories(t *testing.T) {
	e := edit(t)
	dir := e.find("dir")
	for _, name := range []string{"plain", "PLAIN", "file number 77", "File Number 400", "none"} {
		want, wantErr := e.f.Lookup(dir, name)
		got, err := e.f.search(dir, name)
		if got != want || fmt.Sprint(err) != fmt.Sprint(wantErr) {
			t.Errorf("%s: %d, %v, want %d, %v", name, got, err, want, wantErr)
		}
	}
}
