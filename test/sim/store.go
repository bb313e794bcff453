package sim

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-vm/holdfast/internal/blob"
)

// disk is the store as it is, without anybody between.
type disk struct {
	objects map[string]*object
	gone    map[string]*object // what was deleted, for lists that lag
	late    []effect           // what may still happen
	held    map[*actor]effect  // the put that an actor waits for
}

type object struct {
	data    []byte
	durable bool
	by      *actor
	at      time.Time // when it became visible, or was deleted
}

// effect is a put or a deletion.
type effect struct {
	name   string
	data   []byte
	by     *actor
	remove bool
}

func newDisk() *disk {
	return &disk{objects: map[string]*object{}, gone: map[string]*object{}, held: map[*actor]effect{}}
}

// put makes an object visible, and durable if its writer will be told so.
func (d *disk) put(e effect, durable bool) error {
	if o, ok := d.objects[e.name]; ok {
		o.durable = o.durable || durable
		return blob.ErrExist
	}
	d.objects[e.name] = &object{data: e.data, durable: durable, by: e.by, at: time.Now()}
	return nil
}

func (d *disk) delete(name string) {
	if o, ok := d.objects[name]; ok {
		delete(d.objects, name)
		o.at = time.Now()
		d.gone[name] = o
	}
}

// arrive lets a late effect happen, or drops it.
func (d *disk) arrive(i int, happens bool) {
	e := d.late[i]
	d.late = slices.Delete(d.late, i, i+1)
	if !happens {
		return
	}
	if e.remove {
		d.delete(e.name)
	} else {
		_ = d.put(e, false) // nobody is told
	}
}

// losePower lets vanish what is not durable, or some of it.
func (d *disk) losePower(choose func(int) int) {
	for _, name := range slices.Sorted(maps.Keys(d.objects)) {
		if o := d.objects[name]; !o.durable {
			if choose(2) == 0 {
				delete(d.objects, name)
			} else {
				o.durable = true
			}
		}
	}
}

// names returns what a list that a call asks for would show.
func (d *disk) names(c *call) string {
	if c.what != "list" {
		return ""
	}
	var names []string
	for name := range d.objects {
		if strings.HasPrefix(name, c.name) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return strings.Join(names, " ")
}

// client is the store as one actor reaches it.
type client struct{ *actor }

var errIO = errors.New("input/output error")

// lag is for how long answers may be from before.
const lag = time.Minute

// seen returns an object as the client sees it when the answer comes from a cache: what others put
// just now is not there.
func (c client) seen(name string, v verdict) (*object, bool) {
	o, ok := c.world.disk.objects[name]
	if ok && v == stale && o.by != c.actor && time.Since(o.at) < lag {
		return nil, false
	}
	return o, ok
}

// Create implements [blob.Store].
func (c client) Create(ctx context.Context, name string) (blob.Writer, error) {
	if err := errors.Join(blob.ValidName(name), ctx.Err()); err != nil {
		return nil, err
	}
	return &writer{client: c, name: name}, nil
}

type writer struct {
	client
	name string
	buf  bytes.Buffer
}

func (w *writer) Write(p []byte) (int, error) { return w.buf.Write(p) }
func (w *writer) Abort()                      {}

func (w *writer) Commit(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	d := w.world.disk
	e := effect{name: w.name, data: bytes.Clone(w.buf.Bytes()), by: w.actor}
	d.held[w.actor] = e
	switch w.ask("put", w.name) {
	case fail:
		return errIO
	case full:
		return blob.ErrNoSpace
	case lose:
		_ = d.put(e, false)
		return errIO
	case late:
		d.late = append(d.late, e)
		return errIO
	case double:
		d.late = append(d.late, e)
	}
	return d.put(e, true)
}

// ReadAt implements [blob.Store].
func (c client) ReadAt(ctx context.Context, name string, p []byte, off int64) (int, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	v := c.ask("read", name)
	if v == fail {
		return 0, errIO
	}
	o, ok := c.seen(name, v)
	if !ok {
		return 0, fmt.Errorf("read %s: %w", name, blob.ErrNotExist)
	}
	n := copy(p, o.data[min(off, int64(len(o.data))):])
	if n < len(p) {
		return n, io.ErrUnexpectedEOF
	}
	return n, nil
}

// Stat implements [blob.Store].
func (c client) Stat(ctx context.Context, name string) (blob.Info, error) {
	if err := ctx.Err(); err != nil {
		return blob.Info{}, err
	}
	v := c.ask("stat", name)
	if v == fail {
		return blob.Info{}, errIO
	}
	o, ok := c.seen(name, v)
	if !ok {
		return blob.Info{}, fmt.Errorf("stat %s: %w", name, blob.ErrNotExist)
	}
	return blob.Info{Name: name, Size: int64(len(o.data))}, nil
}

// List implements [blob.Store].
func (c client) List(ctx context.Context, prefix, after string) iter.Seq2[blob.Info, error] {
	return func(yield func(blob.Info, error) bool) {
		if err := ctx.Err(); err != nil {
			yield(blob.Info{}, err)
			return
		}
		v := c.ask("list", prefix)
		if v == fail {
			yield(blob.Info{}, errIO)
			return
		}
		for _, name := range c.listed(prefix, after, v) {
			o := c.world.disk.objects[name]
			if o == nil {
				o = c.world.disk.gone[name]
			}
			if !yield(blob.Info{Name: name, Size: int64(len(o.data))}, nil) {
				return
			}
		}
	}
}

// listed returns the names that a list shows; one that lags shows what others did since not.
func (c client) listed(prefix, after string, v verdict) (names []string) {
	d := c.world.disk
	for name, o := range d.objects {
		if _, ok := c.seen(name, v); ok && strings.HasPrefix(name, prefix) && name > after {
			o.durable = true
			names = append(names, name)
		}
	}
	for name, o := range d.gone {
		if v == stale && d.objects[name] == nil && strings.HasPrefix(name, prefix) && name > after &&
			time.Since(o.at) < lag {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// Settle implements [blob.Store].
func (c client) Settle(ctx context.Context, name string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if c.ask("settle", name) == fail {
		return errIO
	}
	o, ok := c.world.disk.objects[name]
	if !ok {
		return fmt.Errorf("settle %s: %w", name, blob.ErrNotExist)
	}
	o.durable = true
	return nil
}

// Absent implements [blob.Store].
func (c client) Absent(ctx context.Context, name string) (bool, error) {
	if err := ctx.Err(); err != nil {
		return false, err
	}
	if c.ask("absent", name) == fail {
		return false, errIO
	}
	return c.world.disk.objects[name] == nil, nil
}

// Delete implements [blob.Store].
func (c client) Delete(ctx context.Context, name string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	d := c.world.disk
	switch c.ask("delete", name) {
	case fail:
		return errIO
	case late:
		d.late = append(d.late, effect{name: name, remove: true, by: c.actor})
		return errIO
	case lose:
		d.delete(name)
		return errIO
	}
	d.delete(name)
	return nil
}
