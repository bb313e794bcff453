// Package memfs is a file system in memory, for the tests of those who read file systems: it shows
// them all that they must cope with, including damage and names that no guest can have.
package memfs

import (
	"bytes"
	"io/fs"
	"iter"
	"path"
	"strings"

	"github.com/holdfast-vm/holdfast/internal/extent"
	"github.com/holdfast-vm/holdfast/internal/filesystem"
)

// File is a file of any kind. Its Attr.Mode says which; ID and, where it is 0, Links are set by
// Add.
type File struct {
	filesystem.Attr
	Data    []byte
	Stored  extent.Set // ranges that are not holes; nil means all
	Sparse  bool       // the file is as large as Size says, and zeros behind Data
	Target  string
	Attrs   map[string][]byte
	Named   map[string][]byte // streams, in the order of Names
	Names   []string
	Damage  error // of Stat
	OpenErr error
	ReadErr error // of reading anything
	ListErr error // at the end of a directory

	entries []filesystem.Entry
}

// FS is the file system. It must not change while it is read.
type FS struct {
	info  filesystem.Info
	files []*File // by ID - 1
}

// New returns a file system with an empty root.
func New(info filesystem.Info) *FS {
	f := &FS{info: info}
	f.files = []*File{{Attr: filesystem.Attr{ID: 1, Mode: fs.ModeDir | 0o755, Links: 2}}}
	return f
}

// Add adds a file under an absolute path, whose directories must be there, and returns it.
func (f *FS) Add(name string, file File) *File {
	added := &file
	added.ID = filesystem.ID(len(f.files) + 1)
	if added.Links == 0 {
		added.Links = 1
	}
	if added.Mode.IsRegular() && added.Size == 0 {
		added.Size = int64(len(added.Data))
	}
	f.files = append(f.files, added)
	f.Name(path.Dir(name), path.Base(name), added)
	return added
}

// Name gives a file another name in the directory dir: any string at all.
func (f *FS) Name(dir, name string, file *File) {
	at := f.files[0]
	for part := range strings.SplitSeq(strings.Trim(dir, "/"), "/") {
		if part == "" {
			continue
		}
		id, err := f.Lookup(at.ID, part)
		if err != nil {
			panic("memfs: no directory " + dir)
		}
		at = f.files[id-1]
	}
	at.entries = append(at.entries, filesystem.Entry{Name: name, ID: file.ID, Type: file.Mode.Type()})
}

// Dir adds a directory.
func (f *FS) Dir(name string) *File {
	return f.Add(name, File{Attr: filesystem.Attr{Mode: fs.ModeDir | 0o755}})
}

// Text adds a regular file.
func (f *FS) Text(name, data string) *File {
	return f.Add(name, File{Attr: filesystem.Attr{Mode: 0o644}, Data: []byte(data)})
}

// Link adds a symbolic link.
func (f *FS) Link(name, target string) *File {
	return f.Add(name, File{Attr: filesystem.Attr{Mode: fs.ModeSymlink | 0o777, Size: int64(len(target))},
		Target: target})
}

// Info implements filesystem.FS, as do all that follow.
func (f *FS) Info() filesystem.Info { return f.info }

// Root returns 1.
func (f *FS) Root() filesystem.ID { return 1 }

func (f *FS) file(id filesystem.ID) (*File, error) {
	if id < 1 || int(id) > len(f.files) {
		return nil, filesystem.ErrNotExist
	}
	return f.files[id-1], nil
}

// Stat returns what the file was added with.
func (f *FS) Stat(id filesystem.ID) (filesystem.Attr, error) {
	file, err := f.file(id)
	if err != nil {
		return filesystem.Attr{}, err
	}
	return file.Attr, file.Damage
}

// ReadDir yields names in the order they were added.
func (f *FS) ReadDir(id filesystem.ID) iter.Seq2[filesystem.Entry, error] {
	return func(yield func(filesystem.Entry, error) bool) {
		file, err := f.file(id)
		if err != nil {
			yield(filesystem.Entry{}, err)
			return
		}
		for _, e := range file.entries {
			if !yield(e, nil) {
				return
			}
		}
		if file.ListErr != nil {
			yield(filesystem.Entry{}, file.ListErr)
		}
	}
}

// Lookup finds exact names.
func (f *FS) Lookup(dir filesystem.ID, name string) (filesystem.ID, error) {
	file, err := f.file(dir)
	if err != nil {
		return 0, err
	}
	for _, e := range file.entries {
		if e.Name == name {
			return e.ID, nil
		}
	}
	return 0, filesystem.ErrNotExist
}

// ReadLink returns the target.
func (f *FS) ReadLink(id filesystem.ID) (string, error) {
	file, err := f.file(id)
	if err != nil {
		return "", err
	}
	return file.Target, file.ReadErr
}

// Open opens the data.
func (f *FS) Open(id filesystem.ID) (filesystem.File, error) {
	file, err := f.file(id)
	if err != nil {
		return nil, err
	}
	return content{file, file.Data}, file.OpenErr
}

// Xattrs returns the attributes.
func (f *FS) Xattrs(id filesystem.ID) (map[string][]byte, error) {
	file, err := f.file(id)
	if err != nil {
		return nil, err
	}
	return file.Attrs, nil
}

// Streams returns the named streams.
func (f *FS) Streams(id filesystem.ID) ([]filesystem.Stream, error) {
	file, err := f.file(id)
	if err != nil {
		return nil, err
	}
	var out []filesystem.Stream
	for _, name := range file.Names {
		out = append(out, filesystem.Stream{Name: name, Size: int64(len(file.Named[name]))})
	}
	return out, nil
}

// OpenStream opens a named stream.
func (f *FS) OpenStream(id filesystem.ID, name string) (filesystem.File, error) {
	file, err := f.file(id)
	if err != nil {
		return nil, err
	}
	data, ok := file.Named[name]
	if !ok {
		return nil, filesystem.ErrNotExist
	}
	return content{&File{}, data}, nil
}

type content struct {
	file *File
	data []byte
}

func (c content) Size() int64 {
	if c.file.Sparse {
		return c.file.Attr.Size
	}
	return int64(len(c.data))
}

func (c content) ReadAt(p []byte, off int64) (int, error) {
	if c.file.ReadErr != nil {
		return 0, c.file.ReadErr
	}
	n, err := bytes.NewReader(c.data).ReadAt(p, off)
	if c.file.Sparse && off+int64(len(p)) <= c.Size() {
		clear(p[n:])
		return len(p), nil
	}
	return n, err
}

func (c content) Extents() (extent.Set, error) {
	if c.file.Stored != nil {
		return c.file.Stored, nil
	}
	return extent.Of(extent.Extent{Len: c.Size()}), nil
}
