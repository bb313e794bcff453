package ntfs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"

	"github.com/holdfast-vm/holdfast/internal/filesystem"
)

const (
	indexEntryHead = 16
	fileNameHead   = 66 // bytes of a file name attribute before the name
	namespaceDOS   = 2

	keptDirs  = 4       // whose names are kept for looking up
	keptNames = 200_000 // in one of them, at most
)

// dirEntry is an entry of a directory's index.
type dirEntry struct {
	name  string
	ref   uint64
	attrs uint32 // of the file, as the index has them
}

// ReadDir implements [filesystem.FS].
func (f *FS) ReadDir(id filesystem.ID) iter.Seq2[filesystem.Entry, error] {
	return func(yield func(filesystem.Entry, error) bool) {
		for e, err := range f.entries(id) {
			if err != nil {
				yield(filesystem.Entry{}, err)
				return
			}
			kind, err := f.typeOf(e)
			if err != nil {
				yield(filesystem.Entry{}, fmt.Errorf("%s: %w", e.name, err))
				return
			}
			if !yield(filesystem.Entry{Name: e.name, ID: filesystem.ID(e.ref), Type: kind}, nil) {
				return
			}
		}
	}
}

// typeOf tells what an entry is; only where the index cannot know is the file looked at.
func (f *FS) typeOf(e dirEntry) (fs.FileMode, error) {
	const indexDir = 1 << 28
	if e.attrs&(fileReparse|fileSystem) != 0 {
		ino, err := f.inode(e.ref, true)
		if err != nil {
			return 0, err
		}
		mode, err := ino.mode()
		return mode.Type(), err
	}
	if e.attrs&indexDir != 0 {
		return fs.ModeDir, nil
	}
	return 0, nil
}

// entries goes through the index of a directory: the root, and every block that is in use.
func (f *FS) entries(id filesystem.ID) iter.Seq2[dirEntry, error] {
	return func(yield func(dirEntry, error) bool) {
		ino, err := f.inode(uint64(id), true)
		if err == nil && !ino.dir {
			err = fmt.Errorf("record %d is not a directory", uint64(id)&refMask)
		}
		if err == nil {
			err = ino.index(func(e dirEntry) bool { return yield(e, nil) })
		}
		if err != nil && !errors.Is(err, errStop) {
			yield(dirEntry{}, err)
		}
	}
}

// errStop ends a walk whose caller has seen enough.
var errStop = errors.New("stop")

func (ino *inode) index(visit func(dirEntry) bool) error {
	root := ino.find(attrIndexRoot, "$I30")
	if root == nil || len(root.value) < 32 {
		return corrupt("directory %d has no index", ino.ref&refMask)
	}
	if err := indexEntries(root.value[16:], visit); err != nil {
		return err
	}
	if ino.find(attrIndexAlloc, "$I30") == nil {
		return nil
	}
	size := int64(le.Uint32(root.value[8:]))
	if size < 512 || size > maxRecord || size%512 != 0 {
		return corrupt("directory %d has index blocks of %d bytes", ino.ref&refMask, size)
	}
	blocks, err := ino.stream(attrIndexAlloc, "$I30")
	if err != nil {
		return err
	}
	if volume := ino.fs.clusters * ino.fs.cluster; blocks.size > volume {
		return corrupt("directory %d has %d bytes of index in a volume of %d", ino.ref&refMask, blocks.size, volume)
	}
	used, err := ino.stream(attrBitmap, "$I30")
	if err != nil {
		return err
	}
	return ino.indexBlocks(blocks, used, size, visit)
}

func (ino *inode) indexBlocks(blocks, used *stream, size int64, visit func(dirEntry) bool) error {
	bitmap := make([]byte, min(used.size, blocks.size/size/8+1))
	if _, err := used.ReadAt(bitmap, 0); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	p := make([]byte, size)
	unit := min(ino.fs.cluster, size) // that block numbers count
	if ino.fs.cluster > size {
		unit = 512
	}
	for i := int64(0); i < blocks.size/size; i++ {
		if i/8 >= int64(len(bitmap)) || bitmap[i/8]>>(i%8)&1 == 0 {
			continue
		}
		if _, err := blocks.ReadAt(p, i*size); err != nil {
			return err
		}
		if string(p[:4]) != "INDX" || int64(le.Uint64(p[16:])) != i*size/unit {
			return corrupt("index block %d of directory %d is another", i, ino.ref&refMask)
		}
		if err := applyFixups(p); err != nil {
			return fmt.Errorf("index block %d of directory %d: %w", i, ino.ref&refMask, err)
		}
		if err := indexEntries(p[24:], visit); err != nil {
			return err
		}
	}
	return nil
}

// indexEntries goes through the entries behind an index header.
func indexEntries(p []byte, visit func(dirEntry) bool) error {
	at, end := int64(le.Uint32(p)), int64(le.Uint32(p[4:]))
	if at < 16 || end > int64(len(p)) {
		return corrupt("index entries from %d to %d of %d bytes", at, end, len(p))
	}
	for {
		if at+indexEntryHead > end {
			return corrupt("index entries have no end")
		}
		e := p[at:end]
		n, key, flags := int64(le.Uint16(e[8:])), int64(le.Uint16(e[10:])), le.Uint16(e[12:])
		if flags&2 != 0 {
			return nil
		}
		if n < indexEntryHead+fileNameHead || n > int64(len(e)) || key < fileNameHead || indexEntryHead+key > n {
			return corrupt("an index entry of %d bytes with a key of %d", n, key)
		}
		name := e[indexEntryHead : indexEntryHead+key]
		length := 2 * int64(name[64])
		if fileNameHead+length > key {
			return corrupt("the name of an index entry leaves it")
		}
		d := dirEntry{ref: le.Uint64(e), attrs: le.Uint32(name[56:]),
			name: decodeName(name[fileNameHead : fileNameHead+length])}
		if name[65] != namespaceDOS && d.ref&refMask >= firstUser && !visit(d) {
			return errStop
		}
		at += n
	}
}

// names are the entries of a directory by name.
type names struct {
	exact, folded map[string]filesystem.ID
}

// Lookup implements [filesystem.FS]. A name in other case is found if no file has the very name.
func (f *FS) Lookup(dir filesystem.ID, name string) (filesystem.ID, error) {
	f.mu.Lock()
	known := f.dirs[dir]
	f.mu.Unlock()
	if known == nil {
		var err error
		if known, err = f.readNames(dir); err != nil {
			return 0, err
		}
	}
	if known == nil {
		return f.search(dir, name)
	}
	if id, ok := known.exact[name]; ok {
		return id, nil
	}
	if id, ok := known.folded[f.fold(name)]; ok {
		return id, nil
	}
	return 0, fmt.Errorf("%q: %w", name, filesystem.ErrNotExist)
}

// search finds a name in a directory that is too large to be kept.
func (f *FS) search(dir filesystem.ID, name string) (filesystem.ID, error) {
	folded := f.fold(name)
	other, found := filesystem.ID(0), false
	for e, err := range f.entries(dir) {
		switch {
		case err != nil:
			return 0, err
		case e.name == name:
			return filesystem.ID(e.ref), nil
		case !found && f.fold(e.name) == folded:
			other, found = filesystem.ID(e.ref), true
		}
	}
	if !found {
		return 0, fmt.Errorf("%q: %w", name, filesystem.ErrNotExist)
	}
	return other, nil
}

// readNames reads the names of a directory, and keeps them. It returns nil if they are too many.
func (f *FS) readNames(dir filesystem.ID) (*names, error) {
	n := &names{exact: map[string]filesystem.ID{}, folded: map[string]filesystem.ID{}}
	for e, err := range f.entries(dir) {
		if err != nil {
			return nil, err
		}
		if len(n.exact) == keptNames {
			return nil, nil
		}
		n.exact[e.name] = filesystem.ID(e.ref)
		if folded := f.fold(e.name); n.folded[folded] == 0 { // no file's ID is 0
			n.folded[folded] = filesystem.ID(e.ref)
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.dirs) >= keptDirs {
		for k := range f.dirs {
			delete(f.dirs, k)
			break
		}
	}
	f.dirs[dir] = n
	return n, nil
}
