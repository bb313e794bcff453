package nbd_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-vm/holdfast/internal/nbd"
)

// The numbers of the protocol, once more, so that a wrong one is found.
const (
	optExportName, optAbort, optList, optStartTLS, optInfo, optGo = 1, 2, 3, 5, 6, 7

	optStructured, optListContext, optSetContext, optExtended = 8, 9, 10, 11

	cmdRead, cmdWrite, cmdDisconnect, cmdFlush, cmdTrim, cmdCache, cmdZeroes, cmdStatus = 0, 1, 2, 3, 4, 5, 6, 7

	flagFUA, flagNoHole, flagDF, flagReqOne, flagFast, flagPayload = 1, 2, 4, 8, 16, 32
)

// raw is a client that says what it is told to.
type raw struct {
	t    testing.TB
	conn net.Conn
	mode byte // 0, optStructured or optExtended
}

// pack concatenates big-endian integers, strings and bytes.
func pack(parts ...any) []byte {
	var b []byte
	for _, p := range parts {
		switch p := p.(type) {
		case string:
			b = append(b, p...)
		default:
			var err error
			if b, err = binary.Append(b, binary.BigEndian, p); err != nil {
				panic(err)
			}
		}
	}
	return b
}

func counted(s string) []byte { return pack(uint32(len(s)), s) }

func (r *raw) say(parts ...any) {
	r.t.Helper()
	if _, err := r.conn.Write(pack(parts...)); err != nil {
		r.t.Errorf("say: %v", err)
	}
}

func (r *raw) hear(n int) []byte {
	r.t.Helper()
	b := make([]byte, n)
	if _, err := io.ReadFull(r.conn, b); err != nil {
		r.t.Fatalf("hear: %v", err)
	}
	return b
}

// requireEnd requires that the server has closed the connection.
func (r *raw) requireEnd() {
	r.t.Helper()
	if b, err := io.ReadAll(r.conn); err != nil || len(b) > 0 {
		r.t.Errorf("instead of the end: %q, %v", b, err)
	}
}

func greet(t testing.TB, conn net.Conn) *raw {
	t.Helper()
	t.Cleanup(func() { conn.Close() })
	r := &raw{t: t, conn: conn}
	if got := r.hear(18); string(got) != "NBDMAGICIHAVEOPT\x00\x03" {
		t.Fatalf("greeting is %q", got)
	}
	r.say(uint32(3))
	return r
}

// reply is an answer to an option; errors are negative.
type reply struct {
	kind int32
	data string
}

// option says an option and returns the answers up to the last.
func (r *raw) option(opt uint32, data ...any) (list []reply) {
	r.t.Helper()
	d := pack(data...)
	r.say("IHAVEOPT", opt, uint32(len(d)), d)
	for {
		h := r.hear(20)
		if string(h[:12]) != string(pack(uint64(0x3e889045565a9), opt)) {
			r.t.Fatalf("answer to option %d begins with %x", opt, h)
		}
		kind := int32(binary.BigEndian.Uint32(h[12:]))
		if kind < 0 {
			kind = -(kind & 0x7fffffff)
		}
		list = append(list, reply{kind, string(r.hear(int(binary.BigEndian.Uint32(h[16:]))))})
		if kind < 0 || kind == 1 {
			return list
		}
	}
}

func kinds(list []reply) string {
	var s []string
	for _, a := range list {
		s = append(s, fmt.Sprint(a.kind))
	}
	return strings.Join(s, " ")
}

// enterRaw enters the export "disk", with base:allocation if answers can carry it.
func enterRaw(t testing.TB, conn net.Conn, mode byte) *raw {
	t.Helper()
	r := greet(t, conn)
	r.mode = mode
	if mode != 0 {
		r.option(uint32(mode))
		if got := kinds(r.option(optSetContext, counted("disk"), uint32(1), counted("base:allocation"))); got != "4 1" {
			t.Fatalf("SET_META_CONTEXT: %s", got)
		}
	}
	if got := kinds(r.option(optGo, counted("disk"), uint16(0))); got != "3 3 1" {
		t.Fatalf("GO: %s", got)
	}
	return r
}

func (r *raw) request(flags, cmd uint16, cookie, off, n uint64, payload ...any) {
	r.t.Helper()
	if r.mode == optExtended {
		r.say(uint32(0x21e41c71), flags, cmd, cookie, off, n, pack(payload...))
		return
	}
	r.say(uint32(0x25609513), flags, cmd, cookie, off, uint32(n), pack(payload...))
}

// chunk is what the server answers, in whichever mode. A simple reply is a chunk of kind 0 or, with
// an error, 0x8001.
type chunk struct {
	done    bool
	kind    uint16
	cookie  uint64
	payload string
}

// answer hears a chunk. n is what a simple reply carries.
func (r *raw) answer(n int) chunk {
	r.t.Helper()
	be := binary.BigEndian
	switch h := r.hear(16); be.Uint32(h) {
	case 0x67446698:
		c := chunk{done: true, cookie: be.Uint64(h[8:])}
		if errno := be.Uint32(h[4:]); errno != 0 {
			c.kind, c.payload = 0x8001, string(pack(errno))
		} else {
			c.payload = string(r.hear(n))
		}
		return c
	case 0x668e33ef:
		return r.rest(h, int(be.Uint32(r.hear(4))), optStructured)
	case 0x6e8a278c:
		return r.rest(h, int(be.Uint64(r.hear(16)[8:])), optExtended)
	default:
		r.t.Fatalf("not an answer: %x", h)
		return chunk{}
	}
}

func (r *raw) rest(h []byte, n int, mode byte) chunk {
	if r.mode != mode {
		r.t.Errorf("answer of mode %d in mode %d", mode, r.mode)
	}
	be := binary.BigEndian
	return chunk{be.Uint16(h[4:])&1 != 0, be.Uint16(h[6:]), be.Uint64(h[8:]), string(r.hear(n))}
}

// errno returns the error of c, 0 if it is not one.
func (c chunk) errno() syscall.Errno {
	if c.kind&0x8000 == 0 {
		return 0
	}
	return syscall.Errno(binary.BigEndian.Uint32([]byte(c.payload)))
}

func TestOptions(t *testing.T) {
	query := func(export string, names ...string) []byte {
		b := pack(counted(export), uint32(len(names)))
		for _, n := range names {
			b = append(b, counted(n)...)
		}
		return b
	}
	for _, tt := range []struct {
		name string
		opt  uint32
		data []byte
		want string
	}{
		{"unknown", 99, nil, "-1"},
		{"unknown with data", 99, make([]byte, 3000), "-1"},
		{"too much data", 99, make([]byte, 100_000), "-9"},
		{"peek of an export", 4, nil, "-1"},
		{"list", optList, nil, "2 1"},
		{"list with data", optList, []byte("x"), "-3"},
		{"TLS that is not there", optStartTLS, nil, "-2"},
		{"TLS with data", optStartTLS, []byte("x"), "-3"},
		{"structured with data", optStructured, []byte("x"), "-3"},
		{"info", optInfo, pack(counted("disk"), uint16(3), uint16(1), uint16(2), uint16(77)), "3 3 3 3 1"},
		{"info of the only export", optInfo, pack(counted(""), uint16(0)), "3 3 1"},
		{"info of no export", optInfo, pack(counted("x"), uint16(0)), "-6"},
		{"info cut short", optInfo, pack(counted("disk"), uint16(3)), "-3"},
		{"info with a name longer than itself", optInfo, pack(uint32(1<<31), "disk"), "-3"},
		{"info of a long name", optInfo, pack(counted(strings.Repeat("x", 5000)), uint16(0)), "-3"},
		{"go without anything", optGo, nil, "-3"},
		{"all contexts", optListContext, query("disk"), "4 1"},
		{"contexts of a name space", optListContext, query("disk", "base:"), "4 1"},
		{"other contexts", optListContext, query("disk", "qemu:"), "1"},
		{"contexts of no export", optListContext, query("x"), "-6"},
		{"contexts too early", optSetContext, query("disk", "base:allocation"), "-3"},
		{"fewer contexts than said", optListContext, pack(counted("disk"), uint32(1<<31)), "-3"},
		{"more contexts than said", optListContext, pack(counted("disk"), uint32(0), counted("base:")), "-3"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := newPipes()
			serve(t, l, only(newMemory(mib)))
			r := greet(t, l.dial())
			if got := kinds(r.option(tt.opt, tt.data)); got != tt.want {
				t.Errorf("answered %s, want %s", got, tt.want)
			}
			if got := kinds(r.option(optAbort)); got != "1" {
				t.Errorf("ABORT answered %s", got)
			}
			r.requireEnd()
		})
	}
}

func TestModesAreAgreedOnOnce(t *testing.T) {
	l := newPipes()
	serve(t, l, only(newMemory(mib)))
	r := greet(t, l.dial())
	for _, step := range []struct {
		opt  uint32
		want string
	}{{optStructured, "1"}, {optStructured, "-3"}, {optExtended, "1"}, {optExtended, "-3"}, {optStructured, "-10"}} {
		if got := kinds(r.option(step.opt)); got != step.want {
			t.Errorf("option %d: %s, want %s", step.opt, got, step.want)
		}
	}
	// Wildcards are for lists; contexts of one export are not those of another.
	if got := kinds(r.option(optSetContext, counted("disk"), uint32(1), counted("base:"))); got != "1" {
		t.Errorf("SET_META_CONTEXT base: %s", got)
	}
	if got := kinds(r.option(optSetContext, counted("disk"), uint32(1), counted("base:allocation"))); got != "4 1" {
		t.Errorf("SET_META_CONTEXT: %s", got)
	}
	r.option(optGo, counted(""), uint16(0))
	r.mode = optExtended
	r.request(0, cmdStatus, 1, 0, page)
	if c := r.answer(0); c.errno() != syscall.EINVAL {
		t.Errorf("status of a context selected for another name: %+v", c)
	}
}

// The oldest way in has no answer but the size.
func TestExportName(t *testing.T) {
	for flags, zeroes := range map[uint32]int{1: 124, 3: 0} {
		l := newPipes()
		serve(t, l, only(newMemory(mib)))
		r := &raw{t: t, conn: l.dial()}
		r.hear(18)
		r.say(flags, "IHAVEOPT", uint32(optExportName), counted("disk"))
		want := pack(uint64(mib), uint16(nbd.HasFlags|nbd.SendFlush|nbd.SendFUA|nbd.SendTrim|nbd.SendZeroes|
			nbd.CanMultiConn|nbd.SendCache), make([]byte, zeroes))
		if got := r.hear(len(want)); !bytes.Equal(got, want) {
			t.Errorf("answered %x, want %x", got, want)
		}
		r.request(0, cmdRead, 7, 0, 512)
		if c := r.answer(512); c.cookie != 7 || c.payload != strings.Repeat("\x00", 512) {
			t.Errorf("read: %+v", c)
		}
		r.request(0, cmdDisconnect, 8, 0, 0)
		r.requireEnd()
	}
}

// What is not the protocol ends the connection, and only that.
func TestGarbageEndsTheConnection(t *testing.T) {
	for name, say := range map[string]func(r *raw){
		"client flags":    func(r *raw) { r.hear(18); r.say(uint32(4)) },
		"oldstyle":        func(r *raw) { r.hear(18); r.say(uint32(0)) },
		"option magic":    func(r *raw) { r.hear(18); r.say(uint32(3), "IHAVEOPX", uint32(3), uint32(0)) },
		"2 GiB of option": func(r *raw) { r.hear(18); r.say(uint32(3), "IHAVEOPT", uint32(99), uint32(1<<31)) },
		"no such export":  func(r *raw) { r.hear(18); r.say(uint32(3), "IHAVEOPT", uint32(1), counted("x")) },
		"request magic":   func(r *raw) { *r = *enterRaw(r.t, r.conn, 0); r.say(make([]byte, 28)) },
		"extended, unasked": func(r *raw) {
			*r = *enterRaw(r.t, r.conn, 0)
			r.say(uint32(0x21e41c71), make([]byte, 24))
		},
		"4 GiB to write": func(r *raw) {
			*r = *enterRaw(r.t, r.conn, optStructured)
			r.request(0, cmdWrite, 1, 0, 1<<32-1)
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := newPipes()
			serve(t, l, only(newMemory(mib)))
			bystander := enterRaw(t, l.dial(), 0)
			r := &raw{t: t, conn: l.dial()}
			defer r.conn.Close()
			say(r)
			r.requireEnd()
			bystander.request(0, cmdFlush, 1, 0, 0)
			bystander.answer(0)
		})
	}
}

// Each wrong request is refused by itself, in every mode, and the bytes that follow it are taken
// away.
func TestRefusals(t *testing.T) {
	const size = mib + 512
	for _, tt := range []struct {
		name       string
		flags, cmd uint16
		off, n     uint64
		payload    int
		want       syscall.Errno
		readOnly   syscall.Errno
	}{
		{"read", 0, cmdRead, 0, 512, 0, 0, 0},
		{"read of nothing", 0, cmdRead, 0, 0, 0, 0, 0},
		{"read past the end", 0, cmdRead, mib, 1024, 0, syscall.EINVAL, syscall.EINVAL},
		{"read far away", 0, cmdRead, 1 << 63, 512, 0, syscall.EINVAL, syscall.EINVAL},
		{"read around the world", 0, cmdRead, 1<<64 - 512, 1024, 0, syscall.EINVAL, syscall.EINVAL},
		{"read with unknown flags", 1 << 9, cmdRead, 0, 512, 0, syscall.EINVAL, syscall.EINVAL},
		{"unaligned read", 0, cmdRead, 100, 512, 0, syscall.EINVAL, syscall.EINVAL},
		{"write", 0, cmdWrite, 0, 512, 512, 0, syscall.EPERM},
		{"write past the end", 0, cmdWrite, size, 512, 512, syscall.ENOSPC, syscall.EPERM},
		{"unaligned write", flagFUA, cmdWrite, 0, 100, 100, syscall.EINVAL, syscall.EPERM},
		{"zeros", flagNoHole | flagFUA, cmdZeroes, 512, 512, 0, 0, syscall.EPERM},
		{"fast zeros, not offered", flagFast, cmdZeroes, 0, 512, 0, syscall.EINVAL, syscall.EPERM},
		{"zeros past the end", 0, cmdZeroes, size, 512, 0, syscall.ENOSPC, syscall.EPERM},
		{"trim", 0, cmdTrim, 0, 512, 0, 0, syscall.EPERM},
		{"trim past the end", 0, cmdTrim, size, 512, 0, syscall.EINVAL, syscall.EPERM},
		{"flush", 0, cmdFlush, 0, 0, 0, 0, 0},
		{"cache", 0, cmdCache, 0, mib, 0, 0, 0},
		{"cache past the end", 0, cmdCache, mib, mib, 0, syscall.EINVAL, syscall.EINVAL},
		{"status past the end", 0, cmdStatus, mib, mib, 0, syscall.EINVAL, syscall.EINVAL},
		{"unknown command", 0, 99, 0, 512, 0, syscall.EINVAL, syscall.EINVAL},
	} {
		for _, mode := range []byte{0, optStructured, optExtended} {
			for _, readOnly := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s/mode %d/read-only %v", tt.name, mode, readOnly), func(t *testing.T) {
					disk := newMemory(size)
					l := newPipes()
					serve(t, l,
						nbd.ServerOptions{Exports: nbd.ExportList{{Name: "disk", Backend: disk, ReadOnly: readOnly,
							MinBlock: 512}}})
					r := enterRaw(t, l.dial(), mode)
					flags, want := tt.flags, tt.want
					if mode == optExtended && tt.cmd == cmdWrite {
						flags |= flagPayload
					}
					if readOnly {
						want = tt.readOnly
					}
					r.request(flags, tt.cmd, 42, tt.off, tt.n, make([]byte, tt.payload))
					carried := 0
					if tt.cmd == cmdRead {
						carried = int(tt.n)
					}
					if c := r.answer(carried); c.errno() != want || c.cookie != 42 || !c.done {
						t.Errorf("answered %v: %+v, want %v", c.errno(), c, want)
					}
					r.request(0, cmdFlush, 43, 0, 0)
					if c := r.answer(0); c.cookie != 43 || c.errno() != 0 {
						t.Errorf("afterwards a flush: %+v", c)
					}
				})
			}
		}
	}
}

func TestStatusOptions(t *testing.T) {
	disk := newMemory(8 * page)
	disk.WriteAt(context.Background(), make([]byte, 2*page), page)
	l := newPipes()
	serve(t, l, only(disk))
	r := enterRaw(t, l.dial(), optStructured)
	r.request(0, cmdStatus, 1, 0, 8*page)
	want := pack(uint32(1), uint32(page), uint32(3), uint32(2*page), uint32(0), uint32(5*page), uint32(3))
	if c := r.answer(0); c.kind != 5 || c.payload != string(want) {
		t.Errorf("status: %+v, want %x", c, want)
	}
	r.request(flagReqOne, cmdStatus, 2, page+512, 8*page-page-512)
	want = pack(uint32(1), uint32(2*page-512), uint32(0))
	if c := r.answer(0); c.payload != string(want) {
		t.Errorf("status of one: %+v, want %x", c, want)
	}
	r = enterRaw(t, l.dial(), optExtended)
	r.request(0, cmdStatus, 1, 0, page)
	want = pack(uint32(1), uint32(1), uint64(page), uint64(3))
	if c := r.answer(0); c.kind != 6 || c.payload != string(want) {
		t.Errorf("extended status: %+v, want %x", c, want)
	}
	r.request(flagPayload, cmdStatus, 1, 0, 12, uint64(page), uint32(1))
	if c := r.answer(0); c.payload != string(want) {
		t.Errorf("status of a named context: %+v, want %x", c, want)
	}
	for name, payload := range map[string][]byte{
		"another context": pack(uint64(page), uint32(2)), "twice the same": pack(uint64(page), uint32(1), uint32(1)),
		"none": pack(uint64(page)), "half a context": pack(uint64(page), uint32(1), uint16(0)),
		"too long": pack(uint64(1<<60), uint32(1)),
		"too many": make([]byte, 8+4*1000),
	} {
		r.request(flagPayload, cmdStatus, 1, 0, uint64(len(payload)), payload)
		if c := r.answer(0); c.errno() != syscall.EINVAL {
			t.Errorf("%s: %+v", name, c)
		}
	}
	r.request(flagPayload, cmdRead, 9, 0, 100, make([]byte, 100))
	if c := r.answer(0); c.errno() != syscall.EINVAL {
		t.Errorf("read with a payload: %+v", c)
	}
}

// A read that must not be split comes in one piece, and one that may is sent with its holes.
func TestFragments(t *testing.T) {
	disk := newMemory(3 * mib)
	disk.WriteAt(context.Background(), []byte("x"), mib)
	l := newPipes()
	serve(t, l, only(disk))
	r := enterRaw(t, l.dial(), optStructured)
	r.request(flagDF, cmdRead, 1, 0, 3*mib)
	if c := r.answer(0); c.kind != 1 || len(c.payload) != 8+3*mib || !c.done {
		t.Errorf("unfragmented: kind %d, %d bytes", c.kind, len(c.payload))
	}
	r.request(0, cmdRead, 2, 0, 3*mib)
	var got []string
	for done := false; !done; {
		c := r.answer(0)
		done = c.done
		got = append(got, fmt.Sprint(c.kind, " ", len(c.payload)))
	}
	if want := []string{"2 12", fmt.Sprint("1 ", 8+page), "2 12"}; !slices.Equal(got, want) {
		t.Errorf("chunks %q, want %q", got, want)
	}
}

// Virtual time: a handshake has 10 seconds, however slowly it comes; an idle connection what it was
// given; half a request five minutes.
func TestSlowClients(t *testing.T) {
	for _, tt := range []struct {
		name  string
		limit time.Duration
		do    func(t *testing.T, conn net.Conn)
	}{
		{"silent", 10 * time.Second, func(t *testing.T, conn net.Conn) { (&raw{t: t, conn: conn}).hear(18) }},
		{"a byte a second", 10 * time.Second, func(t *testing.T, conn net.Conn) {
			greet(t, conn)
			for _, b := range pack("IHAVEOPT", uint32(3), uint32(50), make([]byte, 50)) {
				time.Sleep(time.Second)
				if _, err := conn.Write([]byte{b}); err != nil {
					return
				}
			}
			t.Error("never ended")
		}},
		{"answers not taken", 10 * time.Second, func(t *testing.T, conn net.Conn) { time.Sleep(10 * time.Second) }},
		{"idle", time.Hour, func(t *testing.T, conn net.Conn) { enterRaw(t, conn, 0) }},
		{"half a header", 5 * time.Minute, func(t *testing.T, conn net.Conn) {
			enterRaw(t, conn, 0).say(uint32(0x25609513))
		}},
		{"half a payload", 5 * time.Minute, func(t *testing.T, conn net.Conn) {
			enterRaw(t, conn, 0).request(0, cmdWrite, 1, 0, 1000, make([]byte, 500))
		}},
		{"half an answer", 5 * time.Minute, func(t *testing.T, conn net.Conn) {
			r := enterRaw(t, conn, 0)
			r.request(0, cmdRead, 1, 0, 100_000)
			r.hear(1000)
			time.Sleep(5*time.Minute + time.Second/2)
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newPipes()
				o := only(newMemory(mib))
				o.IdleTimeout = time.Hour
				serve(t, l, o)
				conn := l.dial()
				from := time.Now()
				tt.do(t, conn)
				io.Copy(io.Discard, conn)
				if took := time.Since(from); took < tt.limit*3/4 || took > tt.limit+time.Second {
					t.Errorf("ended after %v, want %v", took, tt.limit)
				}
			})
		})
	}
}

// However many connections say nothing, a new one comes through; past the handshake there is a
// limit.
func TestConnectionLimits(t *testing.T) {
	l := newPipes()
	o := only(newMemory(mib))
	o.MaxConnections = 3
	serve(t, l, o)
	var silent []net.Conn
	for range 10 {
		conn := l.dial()
		defer conn.Close()
		(&raw{t: t, conn: conn}).hear(18)
		silent = append(silent, conn)
	}
	for range 3 {
		r := enterRaw(t, l.dial(), 0)
		r.request(0, cmdRead, 1, 0, 512) // one that is served is counted
		r.answer(512)
	}
	r := greet(t, l.dial())
	r.option(optGo, counted("disk"), uint16(0))
	r.requireEnd()
	(&raw{t: t, conn: silent[0]}).requireEnd()
}

// Clients that ask for a lot and take nothing leave the others' requests running.
func TestGreedyClientsHurtThemselves(t *testing.T) {
	disk := newMemory(mib)
	disk.WriteAt(context.Background(), bytes.Repeat([]byte{1}, mib), 0)
	l := newPipes()
	o := only(disk)
	o.MemoryLimit = 2 * mib
	serve(t, l, o)
	for range 6 {
		r := enterRaw(t, l.dial(), optStructured)
		for i := range 8 {
			r.request(0, cmdRead, uint64(i), 0, mib)
		}
	}
	r := enterRaw(t, l.dial(), optStructured)
	for i := range 5 {
		r.request(flagDF, cmdRead, uint64(i), 0, mib)
		if c := r.answer(0); len(c.payload) != 8+mib {
			t.Fatalf("answered %d bytes", len(c.payload))
		}
		r.request(0, cmdWrite, uint64(i), 0, mib, make([]byte, mib))
		r.answer(0)
	}
}
