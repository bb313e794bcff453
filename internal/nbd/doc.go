// Package nbd speaks the Network Block Device protocol.
//
// A [Client] is one connection to one export. Many goroutines share it; their requests are
// pipelined up to a window, and answers may come in any order. Structured replies, extended
// headers, several meta contexts and TLS are used where the server offers them. Every request ends:
// with its answer, with the caller's context, after [Options.RequestTimeout], or, for all requests
// at once, when the connection is lost ([ErrDisconnected]). A Client does not reconnect.
//
// The server is not trusted: lengths are bounded before memory is taken, and an answer that does
// not fit its question ends the connection with [ErrProtocol].
//
// A [Server] serves the exports of an [Exports], each a [Backend], to any number of connections.
// Answers come in the order in which the backend has them. Every client is told the same:
// structured replies with holes, block status, extended headers, and where the backend takes
// writes, those. Clients are not trusted either: the handshake, half a request and an answer not
// taken have their time, requests their number and their memory, and neither what a client says nor
// an error or panic of a backend touches another connection.
//
// Offsets and lengths are bytes. The protocol is doc/proto.md of the NetworkBlockDevice project;
// all integers are big-endian.
package nbd

import (
	"errors"
	"fmt"
	"syscall"
)

var (
	// ErrNoExport reports that the server has no export of that name.
	ErrNoExport = errors.New("no such NBD export")
	// ErrNoContext reports that the server did not offer the meta context, or no block status at
	// all.
	ErrNoContext = errors.New("NBD meta context not offered")
	// ErrTLSRequired reports that the server speaks only over TLS.
	ErrTLSRequired = errors.New("NBD server requires TLS")
	// ErrProtocol reports that the server said what the protocol does not allow.
	ErrProtocol = errors.New("NBD protocol violated")
	// ErrDisconnected reports that the connection is lost. Nothing is known of requests that were
	// under way.
	ErrDisconnected = errors.New("NBD connection lost")
	// ErrTimeout reports that the server did not answer a request in time; the connection is given
	// up.
	ErrTimeout = errors.New("NBD server does not answer")
	// ErrClosed reports a request on a Client after Close.
	ErrClosed = errors.New("NBD client is closed")
)

// Error is a server's refusal of one request. The connection goes on. It unwraps to its Errno.
type Error struct {
	Op      string // what was asked: read, write, …
	Off     int64
	Len     int64
	Errno   syscall.Errno
	Message string // the server's words, perhaps none
}

func (e *Error) Error() string {
	s := fmt.Sprintf("NBD %s of %d bytes at %d: %v", e.Op, e.Len, e.Off, e.Errno)
	if e.Message != "" {
		s += " (" + e.Message + ")"
	}
	return s
}

func (e *Error) Unwrap() error { return e.Errno }

func violated(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrProtocol, fmt.Sprintf(format, args...))
}
