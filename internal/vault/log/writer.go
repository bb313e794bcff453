package log

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
)

// Writer appends to a log for any number of goroutines. One entry is in flight at a time; what
// comes meanwhile gathers and goes into the next together. The look after a put is made while the
// next entry is on its way. It is safe for concurrent use, and starts nothing before the first
// Append.
type Writer struct {
	log    *Log
	ctx    context.Context // of the calls that place entries: they do not end with who asked
	cancel context.CancelFunc

	mu      sync.Mutex
	queue   []*request
	running bool
	closed  bool
	ended   sync.WaitGroup

	// What follows belongs to the goroutine that runs, or to whoever holds turn.
	turn    chan struct{}
	nonce   Nonce
	placed  []*flight // entries that were placed and not looked after yet, in order
	doubted []*flight // entries of the present volume that may have been placed, and cut
	looking *look
	fair    fairness
	failed  error // why the last checkpoint could not be stored
}

// Judge says what is to be appended, given the state as it is where the entry would stand. It may
// be called again when another's entry came before; only its last answer counts. An error is what
// Append returns: the operation is not valid, and nothing is appended. No operations and no error
// mean that there is nothing to do any more.
type Judge func(ctx context.Context) ([]Op, error)

// request is one call of Append.
type request struct {
	judge  Judge
	ctx    context.Context
	done   chan struct{}
	at     Position
	err    error
	placed bool // it was in an entry that was put
	ended  bool // it was answered
}

// flight is an entry that was placed.
type flight struct {
	nonce    Nonce
	at       Position
	requests []*request
}

// NewWriter returns a Writer on a log that was opened. The log is the writer's from then on.
func NewWriter(l *Log) *Writer {
	w := &Writer{log: l, turn: make(chan struct{}, 1)}
	w.ctx, w.cancel = context.WithCancel(context.Background())
	l.opts.Rand(w.nonce.Writer[:])
	w.nonce.Seq = 1
	return w
}

// Close ends the writer. Who waits for an Append gets ErrClosed, or ErrInDoubt where nobody knows.
func (w *Writer) Close() {
	w.mu.Lock()
	w.closed = true
	w.mu.Unlock()
	w.cancel()
	w.ended.Wait()
}

// Append appends what judge says, and returns once it is acknowledged: it is in the history for
// ever, and survives power loss. If ctx ends first the error is ctx's where nothing was put, and
// ErrInDoubt where the entry is or may be there; it is not taken back.
func (w *Writer) Append(ctx context.Context, judge Judge) (Position, error) {
	r := &request{judge: judge, ctx: ctx, done: make(chan struct{})}
	w.mu.Lock()
	if w.closed {
		w.mu.Unlock()
		return Position{}, ErrClosed
	}
	w.queue = append(w.queue, r)
	w.start()
	w.mu.Unlock()
	select {
	case <-r.done:
		return r.at, r.err
	case <-ctx.Done():
	}
	if w.withdraw(r) {
		return Position{}, ctx.Err()
	}
	select {
	case <-r.done:
		return r.at, r.err
	default:
		return Position{}, fmt.Errorf("%w: %w", ErrInDoubt, ctx.Err())
	}
}

// start lets a goroutine run if none does. w.mu is held.
func (w *Writer) start() {
	if !w.running {
		w.running = true
		w.ended.Go(w.run)
	}
}

// withdraw takes a request back that is in no entry yet.
func (w *Writer) withdraw(r *request) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i, q := range w.queue {
		if q == r && !r.placed {
			w.queue = append(w.queue[:i:i], w.queue[i+1:]...)
			return true
		}
	}
	return false
}

// Do calls f while nothing is appended, so that it may use the log and its state.
func (w *Writer) Do(ctx context.Context, f func(*Log) error) error {
	select {
	case w.turn <- struct{}{}:
		defer func() { <-w.turn }()
		return f(w.log)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// run appends until there is nothing to append and nothing to look after.
func (w *Writer) run() {
	for {
		w.mu.Lock()
		batch := w.queue
		w.queue = nil
		if len(batch) == 0 && len(w.placed) == 0 {
			w.running = false
			w.mu.Unlock()
			return
		}
		w.mu.Unlock()
		w.turn <- struct{}{}
		err := w.round(batch)
		if err == nil && w.log.Due() && w.ctx.Err() == nil {
			if err = w.lookAfter(true); err == nil { // nobody waits for a checkpoint
				_, w.failed = w.log.Checkpoint(w.ctx)
			}
		}
		if err != nil {
			w.failAll(err)
		}
		<-w.turn
	}
}

// CheckpointError returns why the last checkpoint could not be stored, or nil. Nothing is lost
// without it; opening takes longer.
func (w *Writer) CheckpointError() error {
	w.turn <- struct{}{}
	defer func() { <-w.turn }()
	return w.failed
}

// round puts one entry of what a batch of requests wants, and looks after the one before.
func (w *Writer) round(batch []*request) error {
	if len(batch) == 0 || w.log.ended || w.log.closed || w.isBehind() {
		w.requeue(batch)
		return w.lookAfter(true)
	}
	w.leaveRoom()
	if err := w.persist(func() error { return w.log.Settle(w.ctx) }); err != nil {
		w.requeue(batch)
		return err
	}
	if w.log.ended || w.log.closed || w.isBehind() {
		w.requeue(batch)
		return nil
	}
	e, in, err := w.gather(batch)
	if err != nil || e == nil {
		return err
	}
	raw, err := e.seal(w.log.keys)
	if err != nil {
		w.answerAll(in, Position{}, err)
		return nil
	}
	w.mark(in)
	found, doubt, err := w.log.place(w.ctx, EntryName(e.At), raw)
	if err == nil && bytes.Equal(found, raw) {
		return w.win(e, raw, in)
	}
	w.nonce.Seq++
	if doubt { // it may have been there, and been cut
		w.doubted = append(w.doubted, &flight{nonce: e.Nonce, at: e.At, requests: in})
	}
	switch {
	case errors.Is(err, errCut):
		w.requeue(in)
		return w.wasCut(e.At)
	case err != nil:
		w.answerAll(in, Position{}, err)
		return nil
	}
	w.requeue(in)
	w.fair.lost++
	w.askForRoom()
	w.log.ahead = map[string]fetched{EntryName(e.At): {raw: found}}
	return w.persist(func() error { return w.log.readVolume(w.ctx) })
}

// gather asks the requests of a batch what they want, and returns an entry of as much as fits. The
// others wait for the next one.
func (w *Writer) gather(batch []*request) (*Entry, []*request, error) {
	l := w.log
	e := &Entry{At: l.next(), Before: l.head.Hash, Voids: l.voids, Term: l.opts.Term, Time: l.opts.Now(),
		Nonce: w.nonce}
	l.opts.Rand(e.salt[:])
	if e.At.Number >= MaxEntries-1 { // the last number is for the end
		w.requeue(batch)
		e.Ops, e.Who = []Op{{Kind: End}}, l.opts.Who
		return e, nil, nil
	}
	defer l.state.Drop()
	size := headSize + 32*len(l.voids) + tagSize + macSize + 1 + len(l.opts.Who)
	var in []*request
	for i, r := range batch {
		if r.ended {
			continue
		}
		if r.ctx.Err() != nil && !r.placed {
			w.answer(r, Position{}, r.ctx.Err())
			continue
		}
		ops, err := r.judge(w.ctx)
		if err != nil || len(ops) == 0 {
			w.answer(r, l.head.At, err)
			continue
		}
		more := 0
		for j := range ops {
			more += ops[j].Size()
		}
		if len(in) > 0 && (size+more > MaxEntry || e.Ops[0].Clear != ops[0].Clear) {
			w.requeue(batch[i:])
			break
		}
		for j := range ops {
			if err := l.state.Try(ops[j]); err != nil {
				w.requeue(batch)
				return nil, nil, err
			}
		}
		size += more
		e.Ops = append(e.Ops, ops...)
		in = append(in, r)
		if ops[len(ops)-1].Kind == End {
			w.requeue(batch[i+1:])
			break
		}
	}
	if len(in) == 0 {
		return nil, nil, nil
	}
	if e.flags() != flagClear {
		e.Who = l.opts.Who
	}
	return e, in, nil
}

// win folds in an entry that was placed, looks after the one before, and begins to look after it.
func (w *Writer) win(e *Entry, raw []byte, in []*request) error {
	w.fair.lost = 0
	w.askForRoom()
	w.nonce.Seq++
	w.placed = append(w.placed, &flight{nonce: e.Nonce, at: e.At, requests: in})
	again, err := parse(raw, e.At, w.log.keys)
	if err == nil {
		err = w.log.fold(again, raw)
	}
	if err != nil {
		return err
	}
	w.log.foreign = false
	if w.log.opts.Without.Has(LookAfterPut) {
		w.acknowledge(len(w.placed))
		return nil
	}
	if err := w.lookAfter(false); err != nil {
		return err
	}
	w.beginLook()
	return nil
}

// mark notes that requests are in an entry that is put: they cannot be withdrawn any more.
func (w *Writer) mark(rs []*request) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, r := range rs {
		r.placed = true
	}
}

// requeue puts requests before those that came since.
func (w *Writer) requeue(rs []*request) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.queue = append(rs[:len(rs):len(rs)], w.queue...)
}

// answer ends a request, once.
func (w *Writer) answer(r *request, at Position, err error) {
	if !r.ended {
		r.ended, r.at, r.err = true, at, err
		close(r.done)
	}
}

func (w *Writer) answerAll(rs []*request, at Position, err error) {
	for _, r := range rs {
		w.answer(r, at, err)
	}
}
