package export

import (
	"runtime"
	"sync"
)

// background runs what nobody waits for.
type background struct {
	slots chan struct{}

	mu     sync.Mutex
	closed bool
	work   sync.WaitGroup
}

func newBackground() *background {
	return &background{slots: make(chan struct{}, 2*max(runtime.GOMAXPROCS(0), 2))}
}

// try runs f and reports true, unless as much as is good for those who wait for something is
// running already.
func (b *background) try(f func()) bool {
	select {
	case b.slots <- struct{}{}:
	default:
		return false
	}
	started := b.always(func() {
		defer func() { <-b.slots }()
		f()
	})
	if !started {
		<-b.slots
	}
	return started
}

// always runs f and reports true, unless wait was called before.
func (b *background) always(f func()) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return false
	}
	b.work.Go(f)
	return true
}

// wait lets nothing new begin and returns when all has ended.
func (b *background) wait() {
	b.mu.Lock()
	b.closed = true
	b.mu.Unlock()
	b.work.Wait()
}
