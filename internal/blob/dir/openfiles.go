package dir

import (
	"container/list"
	"sync"

	"github.com/holdfast-vm/holdfast/internal/durable"
)

// maxOpen is how many files are kept open for reading.
const maxOpen = 64

// openFiles keeps the files read last open. It is safe for concurrent use.
type openFiles struct {
	fs durable.FS

	mu     sync.Mutex
	byPath map[string]*list.Element
	recent *list.List // of *openFile, the one used last in front
}

// openFile is a file that is open. It is closed when it is neither kept nor in use.
type openFile struct {
	path   string
	reader durable.Reader
	users  int  // guarded by openFiles.mu
	kept   bool // guarded by openFiles.mu
}

func newOpenFiles(fsys durable.FS) *openFiles {
	return &openFiles{fs: fsys, byPath: map[string]*list.Element{}, recent: list.New()}
}

// acquire returns the file, open until release.
func (o *openFiles) acquire(path string) (*openFile, error) {
	if f := o.lookUp(path); f != nil {
		if info, err := f.reader.Stat(); err == nil && info.Links > 0 {
			return f, nil
		}
		// Another process has deleted it, and may have put another in its place.
		o.release(f)
		o.drop(path)
	}
	reader, err := o.fs.Open(path)
	if err != nil {
		return nil, err
	}
	return o.keep(&openFile{path: path, reader: reader, users: 1}), nil
}

func (o *openFiles) lookUp(path string) *openFile {
	o.mu.Lock()
	defer o.mu.Unlock()
	e := o.byPath[path]
	if e == nil {
		return nil
	}
	o.recent.MoveToFront(e)
	f := e.Value.(*openFile)
	f.users++
	return f
}

// keep puts a file in front, unless another reader was faster, and closes the one used longest ago.
func (o *openFiles) keep(f *openFile) *openFile {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.byPath[f.path] == nil {
		f.kept = true
		o.byPath[f.path] = o.recent.PushFront(f)
	}
	if o.recent.Len() > maxOpen {
		o.remove(o.recent.Back())
	}
	return f
}

func (o *openFiles) release(f *openFile) {
	o.mu.Lock()
	defer o.mu.Unlock()
	f.users--
	f.closeIfUnused()
}

// drop forgets a file that is about to be deleted.
func (o *openFiles) drop(path string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if e := o.byPath[path]; e != nil {
		o.remove(e)
	}
}

func (o *openFiles) close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	for o.recent.Len() > 0 {
		o.remove(o.recent.Back())
	}
}

func (o *openFiles) remove(e *list.Element) {
	f := o.recent.Remove(e).(*openFile)
	delete(o.byPath, f.path)
	f.kept = false
	f.closeIfUnused()
}

func (f *openFile) closeIfUnused() {
	if f.users == 0 && !f.kept {
		// It was open for reading only: there is nothing that closing could lose.
		_ = f.reader.Close()
	}
}
