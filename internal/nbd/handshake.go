package nbd

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
	"time"
)

// Export is an entry of a server's list.
type Export struct {
	Name        string
	Description string
}

// exportInfo is what the handshake agreed on.
type exportInfo struct {
	size               int64
	flags              Flags
	minBlock, maxBlock int64 // of requests: alignment, and longest payload
	structured         bool
	extended           bool
	contexts           map[string]uint32 // of the meta contexts selected
}

// handshake is the connection while options are haggled over. Reads are not buffered: what follows
// the handshake is not lost.
type handshake struct {
	conn net.Conn
}

// connect dials and goes through the greeting and TLS. On error the connection is closed.
func connect(ctx context.Context, o Options) (*handshake, error) {
	d := net.Dialer{Timeout: o.RequestTimeout}
	conn, err := d.DialContext(ctx, o.Network, o.Address)
	if err != nil {
		return nil, err
	}
	if u, ok := conn.(*net.UnixConn); ok {
		u.SetWriteBuffer(socketBuffer) // best effort: the default throttles large requests
		u.SetReadBuffer(socketBuffer)
	}
	h := &handshake{conn}
	defer h.bound(ctx, o.RequestTimeout)()
	if err = h.greet(); err == nil && o.TLS != nil {
		err = h.startTLS(ctx, o)
	}
	if err != nil {
		conn.Close()
		return nil, contextual(ctx, err)
	}
	return h, nil
}

// bound ends all I/O with ctx or after limit, until the function returned is called.
func (h *handshake) bound(ctx context.Context, limit time.Duration) (release func()) {
	conn := h.conn
	conn.SetDeadline(time.Now().Add(limit))
	done := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(done)
		conn.SetDeadline(time.Unix(1, 0))
	})
	return func() {
		if !stop() {
			<-done
		}
		conn.SetDeadline(time.Time{})
	}
}

// contextual prefers the reason for which the caller gave up.
func contextual(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) ||
		errors.Is(err, syscall.EPIPE) {
		return fmt.Errorf("%w: closed by the server during the handshake", ErrDisconnected)
	}
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		return fmt.Errorf("%w: handshake", ErrTimeout)
	}
	return err
}

func (h *handshake) read(n int) ([]byte, error) {
	buf := make([]byte, n)
	_, err := io.ReadFull(h.conn, buf)
	return buf, err
}

func (h *handshake) greet() error {
	be := binary.BigEndian
	b, err := h.read(18)
	if err != nil {
		return err
	}
	flags := be.Uint16(b[16:])
	if be.Uint64(b) != magicInit || be.Uint64(b[8:]) != magicOption || flags&flagFixedNewstyle == 0 {
		return violated("not a server of the fixed newstyle handshake")
	}
	_, err = h.conn.Write(be.AppendUint32(nil, uint32(flags&(flagFixedNewstyle|flagNoZeroes))))
	return err
}

func (h *handshake) startTLS(ctx context.Context, o Options) error {
	if ok, err := h.agree(optStartTLS); err != nil || !ok {
		return errors.Join(errors.New("the server offers no TLS"), err)
	}
	config := o.TLS.Clone()
	if config.ServerName == "" && o.Network != "unix" {
		host, _, err := net.SplitHostPort(o.Address)
		if err != nil {
			return err
		}
		config.ServerName = host
	}
	conn := tls.Client(h.conn, config)
	if err := conn.HandshakeContext(ctx); err != nil {
		return fmt.Errorf("TLS: %w", err)
	}
	h.conn = conn
	return nil
}

// option sends an option and its data.
func (h *handshake) option(opt uint32, data []byte) error {
	be := binary.BigEndian
	msg := be.AppendUint64(nil, magicOption)
	msg = be.AppendUint32(msg, opt)
	msg = be.AppendUint32(msg, uint32(len(data)))
	_, err := h.conn.Write(append(msg, data...))
	return err
}

// reply reads one reply to opt. Refusals are OptionErrors, all but "I do not know this option" and
// policy after which a client goes on.
func (h *handshake) reply(opt uint32) (kind uint32, data []byte, err error) {
	be := binary.BigEndian
	b, err := h.read(20)
	if err != nil {
		return 0, nil, err
	}
	if be.Uint64(b) != magicOptReply || be.Uint32(b[8:]) != opt {
		return 0, nil, violated("the answer to option %d is for option %d", opt, be.Uint32(b[8:]))
	}
	kind = be.Uint32(b[12:])
	n := be.Uint32(b[16:])
	if n > maxOptionReply {
		return 0, nil, violated("answer of %d bytes to option %d", n, opt)
	}
	if data, err = h.read(int(n)); err != nil {
		return 0, nil, err
	}
	if kind&repErrBit != 0 {
		return kind, nil, refusal(kind, string(data))
	}
	return kind, data, nil
}

// errRefused reports that a server does not want an option.
var errRefused = errors.New("option refused by the NBD server")

func refusal(kind uint32, message string) error {
	sentinel := errRefused
	switch kind {
	case repErrUnknown:
		sentinel = ErrNoExport
	case repErrTLSReqd:
		sentinel = ErrTLSRequired
	}
	if message == "" {
		message = fmt.Sprintf("code %d", kind&^repErrBit)
	}
	return fmt.Errorf("%w: %s", sentinel, message)
}

// agree asks for an option without data and reports whether the server agrees.
func (h *handshake) agree(opt uint32) (bool, error) {
	if err := h.option(opt, nil); err != nil {
		return false, err
	}
	kind, _, err := h.reply(opt)
	switch {
	case kind == repAck:
		return true, nil
	case errors.Is(err, errRefused):
		return false, nil
	case err == nil:
		err = violated("answer of type %d to option %d", kind, opt)
	}
	return false, err
}

// negotiate selects contexts and enters the export.
func (h *handshake) negotiate(o Options) (*exportInfo, error) {
	x := &exportInfo{minBlock: 1, maxBlock: maxPayload, size: -1}
	var err error
	if x.extended, err = h.agree(optExtendedHeaders); err != nil {
		return nil, err
	}
	if x.structured = x.extended; !x.structured {
		if x.structured, err = h.agree(optStructuredReply); err != nil {
			return nil, err
		}
	}
	if x.structured && len(o.MetaContexts) > 0 {
		if x.contexts, err = h.selectContexts(o); err != nil {
			return nil, err
		}
	}
	return x, h.enter(o.Export, x)
}

// appendString appends s with its length before it.
func appendString(b []byte, s string) []byte {
	return append(binary.BigEndian.AppendUint32(b, uint32(len(s))), s...)
}

func (h *handshake) selectContexts(o Options) (map[string]uint32, error) {
	query := appendString(nil, o.Export)
	query = binary.BigEndian.AppendUint32(query, uint32(len(o.MetaContexts)))
	for _, name := range o.MetaContexts {
		query = appendString(query, name)
	}
	if err := h.option(optSetMetaContext, query); err != nil {
		return nil, err
	}
	found := make(map[string]uint32)
	for range len(o.MetaContexts) + 1 {
		kind, data, err := h.reply(optSetMetaContext)
		switch {
		case errors.Is(err, errRefused):
			return nil, nil
		case err != nil:
			return nil, err
		case kind == repAck:
			return found, nil
		case kind != repMetaContext || len(data) < 4:
			return nil, violated("answer of type %d and %d bytes to a query of contexts", kind, len(data))
		}
		found[string(data[4:])] = binary.BigEndian.Uint32(data)
	}
	return nil, violated("more contexts than were asked for")
}

func (h *handshake) enter(export string, x *exportInfo) error {
	data := appendString(nil, export)
	data = binary.BigEndian.AppendUint16(data, 1)
	data = binary.BigEndian.AppendUint16(data, infoBlockSize)
	if err := h.option(optGo, data); err != nil {
		return err
	}
	for range 64 {
		kind, data, err := h.reply(optGo)
		switch {
		case err != nil:
			return err
		case kind == repAck && x.size < 0:
			return violated("export entered without its size")
		case kind == repAck:
			return nil
		case kind != repInfo || len(data) < 2:
			return violated("answer of type %d and %d bytes to GO", kind, len(data))
		}
		if err := x.decode(binary.BigEndian.Uint16(data), data[2:]); err != nil {
			return err
		}
	}
	return violated("no end of answers to GO")
}

func (x *exportInfo) decode(info uint16, data []byte) error {
	be := binary.BigEndian
	switch {
	case info == infoExport && len(data) == 10:
		size := be.Uint64(data)
		if size > maxExport {
			return violated("export of %d bytes", size)
		}
		x.size, x.flags = int64(size), Flags(be.Uint16(data[8:]))
	case info == infoBlockSize && len(data) == 12:
		x.minBlock, x.maxBlock = int64(be.Uint32(data)), int64(be.Uint32(data[8:]))
		if x.minBlock < 1 || x.minBlock > 64<<10 || x.minBlock&(x.minBlock-1) != 0 || x.maxBlock < x.minBlock {
			return violated("block sizes from %d to %d", x.minBlock, x.maxBlock)
		}
		x.maxBlock = min(x.maxBlock, maxPayload) &^ (x.minBlock - 1)
	case info == infoExport || info == infoBlockSize:
		return violated("information %d of %d bytes", info, len(data))
	}
	return nil
}

// list asks for the exports' names.
func (h *handshake) list() ([]Export, error) {
	if err := h.option(optList, nil); err != nil {
		return nil, err
	}
	var exports []Export
	for range 10_000 {
		kind, data, err := h.reply(optList)
		if err != nil {
			return nil, err
		}
		if kind == repAck {
			h.option(optAbort, nil) // a courtesy before the connection is closed
			return exports, nil
		}
		if kind != repServer || len(data) < 4 || uint64(binary.BigEndian.Uint32(data)) > uint64(len(data)-4) {
			return nil, violated("answer of type %d and %d bytes to LIST", kind, len(data))
		}
		n := binary.BigEndian.Uint32(data)
		exports = append(exports, Export{Name: string(data[4 : 4+n]), Description: string(data[4+n:])})
	}
	return nil, violated("no end of exports")
}
