// Package guesttest plays guests that have a guest agent, on real unix sockets or on any other
// connection.
//
// A [Guest] answers the way the agents of Linux and Windows do, keeps the state that matters (held
// or not), serves one client at a time as QEMU's sockets do, and commits the faults that it is told
// to.
package guesttest

import (
	"encoding/json"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// Guest is a scripted guest. Set its fields before it serves; its methods are safe for concurrent
// use.
type Guest struct {
	Windows  bool
	NoOSInfo bool              // an agent too old to say what system it runs on
	Files    map[string]string // what guest-file-open finds
	Programs func(name string, args []string) (out string, code int)
	// Exec is Programs with all that a program has: its input, and what it writes to each of its
	// outputs. It goes before Programs.
	Exec     func(path string, args []string, input []byte) (out, errs string, code int)
	Disabled []string // commands the agent does not allow
	// by command: the first call commits the first fault, and so on; calls beyond them go well
	Faults map[string][]Fault

	FreezeTakes time.Duration // that the guest needs to hold its writes, which it does at the end
	FreezeFails string        // what the agent says instead of holding
	HookRan     bool          // with FreezeFails: a hook ran, and must be undone by a thaw
	ThawFails   string        // what the agent says after it has released the guest
	Volumes     int           // how many file systems there are; 0 means 3, less means none
	Slips       int           // how many of them somebody else releases while they are held
	HoldLimit   time.Duration // of VSS; 0 means 10 seconds on Windows and none on Linux

	busy chan struct{} // one token while the agent works on nothing

	mu     sync.Mutex
	calls  map[string]int
	log    []string
	held   int  // file systems held
	frozen bool // what the agent believes
	undone bool // hooks were thawed
	since  time.Time
	dead   bool
	conns  map[net.Conn]bool
	files  map[int64]string
	next   int64
}

// Fault is what an agent does wrong with one command.
type Fault struct {
	Kind  Kind
	Delay time.Duration // before anything else
	Error string        // Refuse: what it says
}

// Kind is a kind of fault.
type Kind int

// Kinds of faults.
const (
	None       Kind = iota // nothing is wrong, but late if there is a delay
	Refuse                 // an error is the answer, and nothing was done
	Mute                   // does it and does not answer
	Ignore                 // does not do it and does not answer
	Hangup                 // closes the channel before it does anything
	HangupLate             // does it, and closes the channel instead of an answer
	Die                    // is gone before it does anything: the channel stays, nothing answers until Revive
	DieLate                // the same, after it was done
	Junk                   // does it, and answers with noise
	Partial                // does it, and answers with half an answer
	Huge                   // does it, and answers with very much
	Late                   // does it, and gives the answer together with the answer to the next command
)

// Serve serves one client after another at l, until l is closed.
func (g *Guest) Serve(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		g.ServeConn(c)
	}
}

// Listen serves at the unix socket path until the test ends.
func (g *Guest) Listen(t testing.TB, path string) {
	t.Helper()
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		g.Serve(l)
	}()
	t.Cleanup(func() {
		l.Close()
		g.hangup()
		<-done
	})
}

// ServeConn serves one client until it or the agent closes the connection.
func (g *Guest) ServeConn(c net.Conn) {
	g.mu.Lock()
	g.init()
	g.conns[c] = true
	g.mu.Unlock()
	defer func() {
		g.mu.Lock()
		delete(g.conns, c)
		g.mu.Unlock()
		c.Close()
	}()
	s := &connection{guest: g, conn: c, wake: make(chan struct{}, 1)}
	worker := make(chan struct{})
	go func() {
		defer close(worker)
		s.work()
	}()
	s.read()
	<-worker
}

func (g *Guest) init() {
	if g.calls != nil {
		return
	}
	g.calls = make(map[string]int)
	g.conns = make(map[net.Conn]bool)
	g.files = make(map[int64]string)
	g.busy = make(chan struct{}, 1)
	g.busy <- struct{}{}
}

// Freeze holds the guest as somebody else would.
func (g *Guest) Freeze() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.freeze()
}

// Kill ends the agent: nothing answers any more. What was held stays held.
func (g *Guest) Kill() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.dead = true
}

// Revive starts the agent again, which has forgotten or not that the guest is held.
func (g *Guest) Revive(thawed bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.dead = false
	if thawed {
		g.held, g.frozen = 0, false
	}
}

// Thawed reports whether the guest may write and no hook of it waits to be undone. It waits until
// the agent is done with what it does.
func (g *Guest) Thawed() bool {
	g.mu.Lock()
	g.init()
	g.mu.Unlock()
	<-g.busy
	defer func() { g.busy <- struct{}{} }()
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.held == 0 && !g.frozen && (g.undone || !g.HookRan)
}

// Held reports whether the guest holds its writes.
func (g *Guest) Held() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.held > 0
}

// Calls returns how often a command was called; those that a fault swallowed count.
func (g *Guest) Calls(command string) int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.calls[command]
}

// Commands returns all commands in the order in which they came.
func (g *Guest) Commands() []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Clone(g.log)
}

func (g *Guest) hangup() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for c := range g.conns {
		c.Close()
	}
}

// connection is one client's connection.
type connection struct {
	guest *Guest
	conn  net.Conn
	wake  chan struct{}

	mu     sync.Mutex
	queue  []string // requests, as a channel's buffers would keep them while the agent is busy
	closed bool
	late   []byte
}

func (s *connection) read() {
	defer s.push("", true)
	buf := make([]byte, 4096)
	var text string
	for {
		n, err := s.conn.Read(buf)
		if err != nil {
			return
		}
		text += string(buf[:n])
		for {
			line, rest, ok := strings.Cut(text, "\n")
			if !ok {
				break
			}
			text = rest
			s.push(line[strings.LastIndexByte(line, 0xFF)+1:], false)
		}
	}
}

func (s *connection) push(line string, closed bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = s.closed || closed
	if line != "" {
		s.queue = append(s.queue, line)
	}
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

func (s *connection) pop() (line string, closed bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.queue) == 0 {
		return "", s.closed
	}
	line, s.queue = s.queue[0], s.queue[1:]
	return line, false
}

func (s *connection) work() {
	for {
		line, closed := s.pop()
		if closed {
			return
		}
		if line == "" {
			<-s.wake
			continue
		}
		<-s.guest.busy
		s.serve(line)
		s.guest.busy <- struct{}{}
	}
}

func (s *connection) serve(line string) {
	g := s.guest
	var req struct {
		Execute   string          `json:"execute"`
		Arguments json.RawMessage `json:"arguments"`
	}
	if json.Unmarshal([]byte(line), &req) != nil {
		s.answer(errorReply("GenericError", "JSON parse error, invalid keyword"))
		return
	}
	fault, gone := g.enter(req.Execute)
	if gone {
		return
	}
	if fault.Delay > 0 {
		time.Sleep(fault.Delay)
	}
	switch fault.Kind {
	case Refuse:
		s.answer(errorReply("GenericError", fault.Error))
		return
	case Ignore:
		return
	case Hangup:
		s.conn.Close()
		return
	case Die:
		g.Kill()
		return
	}
	s.deliver(fault.Kind, g.execute(req.Execute, req.Arguments))
}

// enter notes that a command came, and returns what is wrong with it.
func (g *Guest) enter(command string) (f Fault, gone bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.dead {
		return Fault{}, true
	}
	n := g.calls[command]
	g.calls[command]++
	g.log = append(g.log, command)
	if faults := g.Faults[command]; n < len(faults) {
		f = faults[n]
	}
	return f, false
}

func (s *connection) deliver(kind Kind, data []byte) {
	switch kind {
	case Mute:
	case DieLate:
		s.guest.Kill()
	case HangupLate:
		s.conn.Close()
	case Junk:
		s.conn.Write([]byte("\x00\x01 login: \xfe}{\n"))
	case Partial:
		s.conn.Write(data[:len(data)/2])
	case Huge:
		huge := strings.Repeat("x", 1<<20)
		for range 9 {
			if _, err := s.conn.Write([]byte(huge)); err != nil {
				return
			}
		}
		s.conn.Write([]byte("\n"))
	case Late:
		s.late = append(s.late, data...)
	default:
		s.answer(data)
	}
}

func (s *connection) answer(data []byte) {
	s.conn.Write(append(s.late, data...))
	s.late = nil
}
