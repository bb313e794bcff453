package sim

import (
	"bytes"
	"context"
	"io"
	"iter"
	"maps"
	"slices"
	"strings"

	"github.com/holdfast-vm/holdfast/internal/blob"
)

// quiet is the disk as a store on which nothing goes wrong, for what comes before a run.
type quiet struct{ *disk }

// Create implements [blob.Store].
func (q quiet) Create(_ context.Context, name string) (blob.Writer, error) {
	return &quietWriter{quiet: q, name: name}, nil
}

type quietWriter struct {
	quiet
	name string
	buf  bytes.Buffer
}

func (w *quietWriter) Write(p []byte) (int, error) { return w.buf.Write(p) }
func (w *quietWriter) Abort()                      {}
func (w *quietWriter) Commit(context.Context) error {
	return w.put(effect{name: w.name, data: w.buf.Bytes()}, true)
}

// ReadAt implements [blob.Store].
func (q quiet) ReadAt(_ context.Context, name string, p []byte, off int64) (int, error) {
	o := q.objects[name]
	if o == nil {
		return 0, blob.ErrNotExist
	}
	n := copy(p, o.data[min(off, int64(len(o.data))):])
	if n < len(p) {
		return n, io.ErrUnexpectedEOF
	}
	return n, nil
}

// Stat implements [blob.Store].
func (q quiet) Stat(_ context.Context, name string) (blob.Info, error) {
	if o := q.objects[name]; o != nil {
		return blob.Info{Name: name, Size: int64(len(o.data))}, nil
	}
	return blob.Info{}, blob.ErrNotExist
}

// List implements [blob.Store].
func (q quiet) List(_ context.Context, prefix, after string) iter.Seq2[blob.Info, error] {
	return func(yield func(blob.Info, error) bool) {
		for _, name := range slices.Sorted(maps.Keys(q.objects)) {
			if strings.HasPrefix(name, prefix) && name > after && !yield(blob.Info{Name: name}, nil) {
				return
			}
		}
	}
}

// Settle implements [blob.Store].
func (q quiet) Settle(context.Context, string) error { return nil }

// Absent implements [blob.Store].
func (q quiet) Absent(_ context.Context, name string) (bool, error) {
	return q.objects[name] == nil, nil
}

// Delete implements [blob.Store].
func (q quiet) Delete(_ context.Context, name string) error {
	q.delete(name)
	return nil
}
