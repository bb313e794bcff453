package pack

import (
	"io"
	"sync"
	"sync/atomic"

	"github.com/holdfast-vm/holdfast/internal/directio"
	"github.com/holdfast-vm/holdfast/internal/vault/chunk"
)

const (
	// bufferSize has room for what is gathered and a chunk more, for all but the largest chunks.
	bufferSize = writeSize + chunk.MaxSize/4
	// maxBehind is how many buffers of a pack may wait to be written: those that were held, and so
	// many more that a disk which is slow for a moment holds nobody up.
	maxBehind = maxHeld + 1
)

// buffers are kept between packs.
var buffers = sync.Pool{New: func() any { return (*[bufferSize]byte)(directio.Buffer(bufferSize)) }}

func newBuffer() []byte { return buffers.Get().(*[bufferSize]byte)[:0] }

// freeBuffer gives back what newBuffer returned, unless it grew: then it is not where it must be.
func freeBuffer(b []byte) {
	if cap(b) == bufferSize {
		buffers.Put((*[bufferSize]byte)(b[:bufferSize]))
	}
}

// behind writes to out, in order, while its owner goes on.
type behind struct {
	todo   chan []byte
	done   chan struct{}
	failed atomic.Pointer[error] // of the first write that failed; nothing is written after it
}

func writeBehind(out io.Writer) *behind {
	b := &behind{todo: make(chan []byte, maxBehind-1), done: make(chan struct{})}
	go b.run(out)
	return b
}

func (b *behind) run(out io.Writer) {
	defer close(b.done)
	for p := range b.todo {
		if b.failed.Load() == nil {
			if _, err := out.Write(p); err != nil {
				b.failed.Store(&err)
			}
		}
		freeBuffer(p)
	}
}

// error returns why an earlier write failed.
func (b *behind) error() error {
	if err := b.failed.Load(); err != nil {
		return *err
	}
	return nil
}

// write takes p over, and waits while too much is waiting.
func (b *behind) write(p []byte) { b.todo <- p }

// end waits until all is written.
func (b *behind) end() error {
	close(b.todo)
	<-b.done
	return b.error()
}
