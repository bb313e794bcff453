package rpc

import (
	"context"
	"errors"
	"net"
	"testing"
)

// A keepalive of the daemon is answered while no call is under way, and a reply to a call that
// nobody waits for is dropped.
func TestKeepaliveIsAnswered(t *testing.T) {
	here, there := net.Pipe()
	c := newConn(here)
	defer c.close()
	send := func(h header) {
		if _, err := there.Write(appendHeader(nil, h, 0)); err != nil {
			t.Fatal(err)
		}
	}
	send(header{prog: programRemote, vers: 1, proc: procOpen, typ: typeReply, serial: 77})
	for range 3 {
		send(header{prog: programKeepalive, vers: 1, proc: keepalivePing, typ: typeMessage})
		m, err := readMessage(there)
		if err != nil || m.prog != programKeepalive || m.proc != keepalivePong || m.typ != typeMessage {
			t.Fatalf("answer to a keepalive: %+v, %v", m, err)
		}
	}
}

// Whatever ends the stream ends the calls, with ErrClosed for an end and another error for what is
// no message.
func TestStreamEndsCalls(t *testing.T) {
	for name, end := range map[string]func(net.Conn){
		"closed":    func(nc net.Conn) { nc.Close() },
		"cut short": func(nc net.Conn) { nc.Write(make([]byte, 5)); nc.Close() },
		"no message": func(nc net.Conn) {
			nc.Write(append([]byte{0xff, 0xff, 0xff, 0xff}, make([]byte, headerLen-4)...))
		},
	} {
		t.Run(name, func(t *testing.T) {
			here, there := net.Pipe()
			c := newConn(here)
			defer c.close()
			go func() {
				readMessage(there)
				end(there)
			}()
			_, err := c.call(context.Background(), programRemote, procOpen, nil, nil)
			if name == "no message" && !errors.Is(err, errBadFrame) ||
				name != "no message" && !errors.Is(err, ErrClosed) {
				t.Errorf("call ended with %v", err)
			}
			if _, again := c.call(context.Background(), programRemote, procOpen, nil, nil); again == nil {
				t.Error("a call on a dead connection succeeded")
			}
		})
	}
}
