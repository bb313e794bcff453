package ext4

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/filesystem"
	"github.com/holdfast-vm/holdfast/internal/filesystem/filesystemtest"
)

// edited is an image that a guest with a hex editor has changed: it has no checksums.
type edited struct {
	t     testing.TB
	image []byte
	fs    *FS
}

func edit(t testing.TB, name string) *edited {
	t.Helper()
	return editImage(t, filesystemtest.Unpacked(t, "testdata/"+name+".img.gz"))
}

func editImage(t testing.TB, image []byte) *edited {
	t.Helper()
	f, err := Open(bytes.NewReader(image), int64(len(image)))
	if err != nil {
		t.Fatal(err)
	}
	return &edited{t, image, f}
}

// inode returns the bytes of an inode in the image, by path.
func (e *edited) inode(path string) []byte {
	e.t.Helper()
	id := e.fs.Root()
	for name := range strings.SplitSeq(strings.Trim(path, "/"), "/") {
		var err error
		if id, err = e.fs.Lookup(id, name); err != nil {
			e.t.Fatal(err)
		}
	}
	raw, err := e.fs.inodeBytes(uint64(id))
	if err != nil {
		e.t.Fatal(err)
	}
	at := bytes.Index(e.image, raw)
	if at < 0 || bytes.Contains(e.image[at+1:], raw) {
		e.t.Fatalf("inode %d is not to be told from another", id)
	}
	return e.image[at : at+len(raw)]
}

// reopened opens the image as it is now.
func (e *edited) reopened() *FS {
	e.t.Helper()
	f, err := Open(bytes.NewReader(e.image), int64(len(e.image)))
	if err != nil {
		e.t.Fatal(err)
	}
	return f
}

func (e *edited) find(f *FS, path string) filesystem.ID {
	e.t.Helper()
	id := f.Root()
	for name := range strings.SplitSeq(strings.Trim(path, "/"), "/") {
		var err error
		if id, err = f.Lookup(id, name); err != nil {
			e.t.Fatal(err)
		}
	}
	return id
}

// count reads a directory and returns how many entries it has, at most a million, and its error.
func count(f *FS, dir filesystem.ID) (n int, last error) {
	for _, err := range f.ReadDir(dir) {
		if err != nil {
			return n, err
		}
		if n++; n == 1<<20 {
			return n, nil
		}
	}
	return n, nil
}

// A directory all of whose blocks are one would have as many names as its size lets it: it ends
// where the block comes a second time. With pointers and with extents, names are looked up so, too.
func TestDirectoryOfOneBlock(t *testing.T) {
	le := binary.LittleEndian
	for name, change := range map[string]func(e *edited, in []byte){
		"ext2": func(e *edited, in []byte) {
			list := in[inodeBlockOffset:]
			pointers := e.image[1024*500:][:1024] // a block that nothing is in
			for i := range 12 {
				copy(list[4*i:], list[:4])
			}
			for i := range 256 {
				copy(pointers[4*i:], list[:4])
			}
			for i := range 3 { // of pointers, pointers to them, and so on
				le.PutUint32(list[4*(12+i):], 500)
			}
			le.PutUint32(in[4:], 400<<10)
		},
		"ext4-no-checksums": func(_ *edited, in []byte) {
			root := in[inodeBlockOffset:]
			first := bytes.Clone(root[12:24])
			le.PutUint16(root[2:], 4)
			for i := range 4 {
				copy(root[12*(i+1):], first)
				le.PutUint32(root[12*(i+1):], uint32(i))
				le.PutUint16(root[12*(i+1)+4:], 1)
			}
			le.PutUint32(in[4:], 4<<10)
		},
	} {
		t.Run(name, func(t *testing.T) {
			e := edit(t, name)
			in := e.inode("/dir/sub")
			whole, err := count(e.fs, e.find(e.fs, "/dir/sub"))
			if err != nil || whole != 40 {
				t.Fatalf("%d entries, %v", whole, err)
			}
			change(e, in)
			f := e.reopened()
			id := e.find(f, "/dir/sub")
			if n, err := count(f, id); !errors.Is(err, filesystem.ErrCorrupt) ||
				!strings.Contains(err.Error(), "had before") || n >= whole {
				t.Errorf("%d entries, %v", n, err)
			}
			if _, err := f.Lookup(id, "none"); !errors.Is(err, filesystem.ErrCorrupt) {
				t.Errorf("a name that is not there: %v", err)
			}
		})
	}
}

// A file all of whose blocks are one, or all of the disk many times over, cannot be used to fill
// another disk; a tree of extents below itself ends.
func TestFilesWithoutEnd(t *testing.T) {
	le := binary.LittleEndian
	e := edit(t, "ext2")
	in := e.inode("/file")
	pointers := e.image[1024*500:][:1024]
	for i := range 256 {
		le.PutUint32(pointers[4*i:], 500)
	}
	for i := range 15 {
		le.PutUint32(in[inodeBlockOffset+4*i:], 500)
	}
	le.PutUint32(in[4:], 1<<31)
	le.PutUint32(in[0x6C:], 3) // 14 GiB, on a disk of 512 KiB
	f := e.reopened()
	file, err := f.Open(e.find(f, "/file"))
	if err != nil {
		t.Fatal(err)
	}
	if set, err := file.Extents(); !errors.Is(err, filesystem.ErrCorrupt) {
		t.Errorf("%d bytes of data, %v", set.Bytes(), err)
	}

	e = edit(t, "ext4-no-checksums")
	in = e.inode("/file")
	// block 500, from block 0 on
	node := []byte{0x0A, 0xF3, 1, 0, 4, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xF4, 1, 0, 0, 0, 0, 0, 0}
	copy(in[inodeBlockOffset:], node)
	copy(e.image[1024*500:], node)
	f = e.reopened()
	file, err = f.Open(e.find(f, "/file"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := file.Extents(); !errors.Is(err, filesystem.ErrCorrupt) {
		t.Errorf("extents below themselves: %v", err)
	}
	if _, err := file.ReadAt(make([]byte, 10), 0); !errors.Is(err, filesystem.ErrCorrupt) {
		t.Errorf("extents below themselves: %v", err)
	}

	e = edit(t, "ext4-no-checksums") // as large as a number can say, and nearly all hole
	in = e.inode("/file")
	le.PutUint32(in[0x6C:], 0x3FF)
	le.PutUint32(in[4:], 0xFFFFFC00)
	f = e.reopened()
	file, err = f.Open(e.find(f, "/file"))
	if err != nil {
		t.Fatal(err)
	}
	if set, err := file.Extents(); err != nil || set.Bytes() != 3072 || file.Size() != 0x3FF_FFFFFC00 {
		t.Errorf("%d bytes of %d, %v", set.Bytes(), file.Size(), err)
	}
}

// The values of attributes may lie over each other: a block of 64 KiB could hold 200 MiB of them.
func TestAttributesOverEachOther(t *testing.T) {
	le := binary.LittleEndian
	e := editImage(t, readImage(t, 16<<20, "-t", "ext4", "-b", "65536", "-O",
		"^has_journal,^metadata_csum,^resize_inode", "-d", smallTree(t)))
	in := e.inode("/middle")
	const free = 250 // a block that nothing is in
	b := e.image[free*65536:][:65536]
	for _, c := range b {
		if c != 0 {
			t.Fatal("the block is in use")
		}
	}
	le.PutUint32(b, attrMagic)
	le.PutUint32(b[8:], 1)
	for i, at := 0, attrHeader; at < 60000; i, at = i+1, at+20 {
		b[at], b[at+1] = 4, 1
		le.PutUint32(b[at+8:], 65000)
		copy(b[at+16:], fmt.Sprintf("%04x", i))
	}
	le.PutUint32(in[0x68:], free)
	f := e.reopened()
	if all, err := f.Xattrs(e.find(f, "/middle")); !errors.Is(err, filesystem.ErrUnsupported) {
		t.Errorf("%d attributes, %v", len(all), err)
	}
	if all, err := f.Xattrs(e.find(f, "/small")); err != nil || len(all) != 1 {
		t.Errorf("its neighbour has %d attributes, %v", len(all), err)
	}
}

// Directories that are in each other, or in two places, are shown as they are written: whoever
// walks through them is told their numbers. Names that none can be are not shown.
func TestDirectoriesByHand(t *testing.T) {
	le := binary.LittleEndian
	e := edit(t, "ext2")
	dir := e.find(e.fs, "/dir")
	entry := bytes.Index(e.image, append(le.AppendUint32(nil, uint32(e.find(e.fs, "/dir/sub"))), []byte{}...))
	for ; !bytes.HasPrefix(e.image[entry+8:], []byte("sub")); entry++ {
	}
	le.PutUint32(e.image[entry:], uint32(dir))
	f := e.reopened()
	if id := e.find(f, "/dir/sub/sub/sub"); id != dir {
		t.Errorf("%d, want %d", id, dir)
	}
	for _, name := range []string{"a/b", "s\x00b"} {
		copy(e.image[entry+8:], name)
		f := e.reopened()
		if n, err := count(f, dir); !errors.Is(err, filesystem.ErrCorrupt) || n > 1 {
			t.Errorf("a name %q: %d entries, %v", name, n, err)
		}
	}
	copy(e.image[entry+8:], "\x1b[m")
	f = e.reopened()
	for d, err := range f.ReadDir(dir) {
		if err != nil || d.Name != "hard" && (d.Name != "\x1b[m" || d.Type != fs.ModeDir) {
			t.Errorf("%+v, %v", d, err)
		}
	}
}
