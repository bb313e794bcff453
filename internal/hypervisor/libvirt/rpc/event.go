package rpc

import (
	"context"
	"fmt"
)

// EventKind is libvirt's number of a kind of event.
type EventKind int32

// Kinds of events that a Client can deliver.
const (
	Lifecycle    EventKind = 0
	JobCompleted EventKind = 21
)

const (
	procEventLifecycle    = 318
	procEventJobCompleted = 363
)

// Event is something that happened to a domain.
type Event struct {
	Kind          EventKind
	Domain        Domain
	Event, Detail int32  // of Lifecycle
	Params        Params // of JobCompleted: the job's statistics
}

// eventBuffer is how many events wait for a slow receiver.
const eventBuffer = 64

type subscription struct{ ch chan Event }

// Subscribe delivers events of one kind, of one domain. A receiver that lags by more than 64 events
// loses some, and the channel stays silent when the connection ends: look at the state as well.
// Call stop when done.
func (c *Client) Subscribe(ctx context.Context, dom Domain, kind EventKind) (events <-chan Event, stop func(),
	err error) {
	var e encoder
	e.i32(int32(kind))
	e.flag(true)
	e.domain(dom)
	sub := &subscription{ch: make(chan Event, eventBuffer)}
	var id int32
	body, err := c.conn.call(ctx, programRemote, procEventRegister, e.b, func(m message) {
		if m.status == statusOK {
			d := decoder{b: m.body}
			if id := d.i32(); d.err == nil {
				c.conn.mu.Lock()
				c.conn.events[id] = sub
				c.conn.mu.Unlock()
			}
		}
	})
	if err != nil {
		return nil, nil, fmt.Errorf("subscribe to events of %s: %w", dom.Name, err)
	}
	d := decoder{b: body}
	if id = d.i32(); d.err != nil {
		return nil, nil, fmt.Errorf("subscribe to events of %s: %w", dom.Name, d.err)
	}
	return sub.ch, func() { c.unsubscribe(id) }, nil
}

func (c *Client) unsubscribe(id int32) {
	c.conn.mu.Lock()
	delete(c.conn.events, id)
	c.conn.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), writeTimeout)
	defer cancel()
	var e encoder
	e.i32(id)
	// The connection's end drops the registration as well.
	c.conn.call(ctx, programRemote, procEventDeregister, e.b, nil)
}

func (c *conn) deliver(m message) {
	id, ev, ok := decodeEvent(m)
	if !ok {
		return
	}
	c.mu.Lock()
	sub := c.events[id]
	c.mu.Unlock()
	if sub == nil {
		return
	}
	select {
	case sub.ch <- ev:
	default:
	}
}

// decodeEvent returns false for what is not an event known here.
func decodeEvent(m message) (id int32, ev Event, ok bool) {
	d := decoder{b: m.body}
	id = d.i32()
	ev.Domain = d.domain()
	switch m.proc {
	case procEventLifecycle:
		ev.Kind, ev.Event, ev.Detail = Lifecycle, d.i32(), d.i32()
	case procEventJobCompleted:
		ev.Kind, ev.Params = JobCompleted, d.params()
	default:
		return 0, Event{}, false
	}
	return id, ev, d.err == nil
}
