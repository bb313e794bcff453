package nbd

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

const (
	maxOptions      = 4096
	maxOption       = 64 << 10 // bytes of data that are looked at
	maxOptionHeard  = 1 << 20  // bytes of data that are read and refused
	greetingZeroes  = 124
	allocationName  = "base:allocation"
	allocationID    = 1 // of base:allocation, as a server may choose it
	preferredBlock  = 4096
	longestMinBlock = 64 << 10
)

// mode is how answers look.
type mode int

const (
	simpleReplies mode = iota
	structuredReplies
	extendedHeaders
)

// agreed is what the handshake ends with.
type agreed struct {
	mode     mode
	export   ServedExport
	writable WritableBackend // nil: read-only
	try      TryReader       // nil: every read may wait
	size     int64
	flags    Flags

	allocation bool // base:allocation may be asked for,
	contextsOf string
}

// handshake answers options until the client enters an export.
func (c *connection) handshake(ctx context.Context) error {
	be := binary.BigEndian
	greeting := be.AppendUint64(be.AppendUint64(nil, magicInit), magicOption)
	if _, err := c.raw.Write(be.AppendUint16(greeting, flagFixedNewstyle|flagNoZeroes)); err != nil {
		return err
	}
	b, err := c.hear(4)
	if err != nil {
		return err
	}
	flags := be.Uint32(b)
	if flags&flagFixedNewstyle == 0 || flags&^(flagFixedNewstyle|flagNoZeroes) != 0 {
		return violated("client flags %#x", flags)
	}
	for range maxOptions {
		entered, err := c.option(ctx, flags&flagNoZeroes != 0)
		if err != nil || entered {
			return err
		}
	}
	return violated("no end of options")
}

// hear reads n bytes and no more: what follows may be TLS.
func (c *connection) hear(n int) ([]byte, error) {
	b := make([]byte, n)
	_, err := io.ReadFull(c.conn, b)
	return b, err
}

// answers are replies to one option, collected to be written at once.
type answers struct {
	opt uint32
	out []byte
}

func (a *answers) add(kind uint32, parts ...[]byte) {
	n := 0
	for _, p := range parts {
		n += len(p)
	}
	be := binary.BigEndian
	a.out = be.AppendUint32(be.AppendUint64(a.out, magicOptReply), a.opt)
	a.out = be.AppendUint32(be.AppendUint32(a.out, kind), uint32(n))
	for _, p := range parts {
		a.out = append(a.out, p...)
	}
}

func (a *answers) refuse(kind uint32, why string) { a.add(kind, []byte(why[:min(len(why), maxName)])) }

// option hears one option and answers it.
func (c *connection) option(ctx context.Context, noZeroes bool) (entered bool, err error) {
	be := binary.BigEndian
	head, err := c.hear(16)
	if err != nil {
		return false, err
	}
	a := &answers{opt: be.Uint32(head[8:])}
	n := be.Uint32(head[12:])
	switch {
	case be.Uint64(head) != magicOption:
		return false, violated("not an option: %x", head[:8])
	case n > maxOptionHeard || n > maxName && a.opt == optExportName:
		return false, violated("option %d of %d bytes", a.opt, n)
	case n > maxOption:
		if _, err := io.CopyN(io.Discard, c.conn, int64(n)); err != nil {
			return false, err
		}
		a.refuse(repErrTooBig, fmt.Sprintf("%d bytes are too many", n))
		return false, c.say(a.out)
	}
	data, err := c.hear(int(n))
	if err != nil {
		return false, err
	}
	if a.opt == optExportName {
		return true, c.enterByName(ctx, string(data), noZeroes)
	}
	entered = c.answer(ctx, a, data)
	if err := c.say(a.out); err != nil {
		return false, err
	}
	if a.opt == optAbort {
		return false, errGoodbye
	}
	if a.opt == optStartTLS && len(data) == 0 && c.mustStartTLS() {
		return false, c.startTLS(ctx)
	}
	return entered, nil
}

func (c *connection) say(b []byte) error {
	_, err := c.conn.Write(b)
	return err
}

func (c *connection) mustStartTLS() bool { return c.opts.TLS != nil && c.hold == nil }

// answer adds the replies to an option, and reports whether the client has entered an export.
func (c *connection) answer(ctx context.Context, a *answers, data []byte) (entered bool) {
	switch a.opt {
	case optInfo, optGo:
		if !c.mustStartTLS() {
			return c.answerInfo(ctx, a, data)
		}
	case optListMetaContext, optSetMetaContext:
		if !c.mustStartTLS() {
			c.answerContexts(ctx, a, data)
			return false
		}
	case optAbort:
		a.add(repAck)
		return false
	}
	switch {
	case c.mustStartTLS() && a.opt != optStartTLS:
		a.refuse(repErrTLSReqd, "this server speaks only over TLS")
	case a.opt != optStartTLS && a.opt != optList && a.opt != optStructuredReply && a.opt != optExtendedHeaders:
		a.refuse(repErrUnsup, "unknown option")
	case len(data) > 0:
		a.refuse(repErrInvalid, "this option has no data")
	case a.opt == optList:
		c.answerList(ctx, a)
	case a.opt == optStartTLS:
		c.answerTLS(a)
	default:
		c.answerMode(a)
	}
	return false
}

func (c *connection) answerTLS(a *answers) {
	switch {
	case c.opts.TLS == nil:
		a.refuse(repErrPolicy, "this server has no TLS")
	case c.hold != nil:
		a.refuse(repErrInvalid, "TLS has started already")
	default:
		a.add(repAck)
	}
}

func (c *connection) startTLS(ctx context.Context) error {
	hold := &heldConn{Conn: c.raw}
	conn := tls.Server(hold, c.opts.TLS)
	if err := conn.HandshakeContext(ctx); err != nil {
		return fmt.Errorf("TLS: %w", err)
	}
	c.conn, c.hold = conn, hold
	return nil
}

// answerMode agrees on what answers look like. Contexts selected before are forgotten, for their
// answers would look otherwise.
func (c *connection) answerMode(a *answers) {
	wanted := structuredReplies
	if a.opt == optExtendedHeaders {
		wanted = extendedHeaders
	}
	switch {
	case c.mode == wanted:
		a.refuse(repErrInvalid, "that is agreed on already")
	case c.mode > wanted:
		a.refuse(repErrExtended, "extended headers are agreed on already")
	default:
		c.mode, c.allocation = wanted, false
		a.add(repAck)
	}
}

func (c *connection) answerList(ctx context.Context, a *answers) {
	var list []Export
	err := c.guarded("list", func() error {
		list = c.opts.Exports.List(ctx)
		return nil
	})
	if err != nil {
		a.refuse(repErrPlatform, err.Error())
		return
	}
	for _, e := range list {
		if len(e.Name) <= maxName {
			a.add(repServer, appendString(nil, e.Name), []byte(e.Description[:min(len(e.Description), maxName)]))
		}
	}
	a.add(repAck)
}

// open finds an export and sets it up as the one that the client may enter.
func (c *connection) open(ctx context.Context, name string) error {
	if len(name) > maxName {
		return violated("export name of %d bytes", len(name))
	}
	return c.guarded("look up", func() error {
		e, err := c.opts.Exports.Lookup(ctx, name)
		if err != nil {
			return err
		}
		if err := e.normalize(); err != nil {
			return err
		}
		c.export, c.size = e, e.Backend.Size()
		if c.size < 0 || c.size > maxExport {
			return fmt.Errorf("export %q has %d bytes", name, c.size)
		}
		c.writable, _ = e.Backend.(WritableBackend)
		if e.ReadOnly {
			c.writable = nil
		}
		c.try, _ = e.Backend.(TryReader)
		c.flags = c.offered()
		return nil
	})
}

// normalize fills in defaults.
func (e *ServedExport) normalize() error {
	if e.MinBlock == 0 {
		e.MinBlock = 1
	}
	if e.PreferredBlock == 0 {
		e.PreferredBlock = max(preferredBlock, e.MinBlock)
	}
	power := func(v int64) bool { return v > 0 && v&(v-1) == 0 }
	switch {
	case e.Backend == nil:
		return fmt.Errorf("export %q has nothing to serve", e.Name)
	case !power(e.MinBlock) || e.MinBlock > longestMinBlock || !power(e.PreferredBlock) ||
		e.PreferredBlock < max(e.MinBlock, 512) ||
		e.PreferredBlock > maxPayload:
		return fmt.Errorf("export %q has blocks of %d and %d bytes", e.Name, e.MinBlock, e.PreferredBlock)
	}
	return nil
}

// offered returns what the export can do over this connection. Many connections see the same bytes,
// for Flush is for all of them.
func (c *connection) offered() Flags {
	f := HasFlags | CanMultiConn | SendCache
	if c.writable == nil {
		f |= ReadOnly
	} else {
		f |= SendFlush | SendFUA | SendTrim | SendZeroes
		if z, ok := c.writable.(FastZeroer); ok && z.FastZeroes() {
			f |= SendFastZero
		}
	}
	if c.mode >= structuredReplies {
		f |= SendDF
	}
	if c.mode >= extendedHeaders {
		f |= StatusPayload
	}
	return f
}

// enterByName answers EXPORT_NAME, to which there is no other refusal than the end.
func (c *connection) enterByName(ctx context.Context, name string, noZeroes bool) error {
	if c.mustStartTLS() {
		return fmt.Errorf("%w, and it is not started", ErrTLSRequired)
	}
	if err := c.open(ctx, name); err != nil {
		return err
	}
	c.allocation = c.allocation && c.contextsOf == name
	b := binary.BigEndian.AppendUint64(nil, uint64(c.size))
	b = binary.BigEndian.AppendUint16(b, uint16(c.flags))
	if !noZeroes {
		b = append(b, make([]byte, greetingZeroes)...)
	}
	return c.say(b)
}

// answerInfo answers INFO and GO.
func (c *connection) answerInfo(ctx context.Context, a *answers, data []byte) (entered bool) {
	name, rest, ok := cutString(data)
	if !ok || len(rest) < 2 || len(rest) != 2+2*int(binary.BigEndian.Uint16(rest)) {
		a.refuse(repErrInvalid, "malformed")
		return false
	}
	if err := c.open(ctx, name); err != nil {
		a.refuseExport(err)
		return false
	}
	be := binary.BigEndian
	info := be.AppendUint64(be.AppendUint16(nil, infoExport), uint64(c.size))
	a.add(repInfo, be.AppendUint16(info, uint16(c.flags)))
	info = be.AppendUint32(be.AppendUint16(nil, infoBlockSize), uint32(c.export.MinBlock))
	a.add(repInfo, be.AppendUint32(be.AppendUint32(info, uint32(c.export.PreferredBlock)), maxPayload))
	for asked := rest[2:]; len(asked) > 0; asked = asked[2:] {
		switch kind := be.Uint16(asked); {
		case kind == infoName:
			a.add(repInfo, be.AppendUint16(nil, kind), []byte(c.export.Name))
		case kind == infoDescription && c.export.Description != "":
			a.add(repInfo, be.AppendUint16(nil, kind),
				[]byte(c.export.Description[:min(len(c.export.Description), maxName)]))
		}
		if len(a.out) > maxOption {
			break // it asks the same again and again
		}
	}
	a.add(repAck)
	if a.opt == optGo {
		c.allocation = c.allocation && c.contextsOf == name
	}
	return a.opt == optGo
}

func (a *answers) refuseExport(err error) {
	switch {
	case errors.Is(err, ErrNoExport):
		a.refuse(repErrUnknown, err.Error())
	case errors.Is(err, ErrProtocol):
		a.refuse(repErrInvalid, err.Error())
	default:
		a.refuse(repErrPlatform, err.Error())
	}
}

// cutString splits off a string with its length before it.
func cutString(b []byte) (s string, rest []byte, ok bool) {
	if len(b) < 4 {
		return "", nil, false
	}
	n := binary.BigEndian.Uint32(b)
	if uint64(n) > uint64(len(b)-4) {
		return "", nil, false
	}
	return string(b[4 : 4+n]), b[4+n:], true
}

// cutQueries splits the data of a query of contexts.
func cutQueries(data []byte) (export string, queries []string, ok bool) {
	export, rest, ok := cutString(data)
	if !ok || len(rest) < 4 {
		return "", nil, false
	}
	n := binary.BigEndian.Uint32(rest)
	for rest = rest[4:]; len(rest) > 0; {
		var q string
		if q, rest, ok = cutString(rest); !ok {
			return "", nil, false
		}
		queries = append(queries, q)
	}
	return export, queries, uint64(n) == uint64(len(queries))
}

// answerContexts answers queries of meta contexts, of which there is base:allocation.
func (c *connection) answerContexts(ctx context.Context, a *answers, data []byte) {
	set := a.opt == optSetMetaContext
	if set {
		c.allocation = false
	}
	export, queries, ok := cutQueries(data)
	switch {
	case !ok:
		a.refuse(repErrInvalid, "malformed")
		return
	case set && c.mode == simpleReplies:
		a.refuse(repErrInvalid, "structured replies are not agreed on")
		return
	}
	if err := c.open(ctx, export); err != nil {
		a.refuseExport(err)
		return
	}
	found := !set && len(queries) == 0
	for _, q := range queries {
		found = found || q == allocationName || !set && q == "base:"
	}
	if found {
		a.add(repMetaContext, binary.BigEndian.AppendUint32(nil, allocationID), []byte(allocationName))
	}
	a.add(repAck)
	if set {
		c.allocation, c.contextsOf = found, export
	}
}
