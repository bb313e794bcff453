package qmp

import (
	"context"
	"sync"
)

// queueLimit is how many events a subscription holds. QEMU can send storms (an error per request of
// a failing job); whoever waits for an outcome asks for it again (query-jobs) and loses nothing but
// time by a dropped event.
const queueLimit = 1024

// Subscription is a queue of events, from the moment of Subscribe on. When 1,024 wait, the oldest
// is dropped.
type Subscription struct {
	client *Client
	ready  chan struct{} // holds a token while queue is not empty or ended is true

	mu      sync.Mutex
	queue   []Event
	dropped int
	ended   bool
}

// Subscribe begins to collect events. Close the subscription after use.
func (c *Client) Subscribe() *Subscription {
	s := &Subscription{client: c, ready: make(chan struct{}, 1)}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		s.end()
		return s
	}
	c.subs[s] = true
	return s
}

// Next returns the next event. It returns ErrClosed when the connection has ended and all events
// were taken, and the error of ctx when that ends first.
func (s *Subscription) Next(ctx context.Context) (Event, error) {
	for {
		if ev, ok, ended := s.take(); ok {
			return ev, nil
		} else if ended {
			return Event{}, ErrClosed
		}
		select {
		case <-s.ready:
		case <-ctx.Done():
			return Event{}, ctx.Err()
		}
	}
}

// Dropped returns how many events were dropped because nobody took them.
func (s *Subscription) Dropped() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.dropped
}

// Close ends the subscription.
func (s *Subscription) Close() {
	s.client.mu.Lock()
	delete(s.client.subs, s)
	s.client.mu.Unlock()
	s.end()
}

func (s *Subscription) take() (ev Event, ok, ended bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.queue) == 0 {
		return Event{}, false, s.ended
	}
	ev = s.queue[0]
	s.queue = s.queue[1:]
	return ev, true, s.ended
}

func (s *Subscription) put(ev Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.queue) == queueLimit {
		s.queue = s.queue[1:]
		s.dropped++
	}
	s.queue = append(s.queue, ev)
	s.wake()
}

func (s *Subscription) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
	s.wake()
}

func (s *Subscription) wake() {
	select {
	case s.ready <- struct{}{}:
	default:
	}
}
