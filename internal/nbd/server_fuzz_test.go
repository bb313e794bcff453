package nbd_test

import (
	"io"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/nbd"
)

// Whatever a client says, in the handshake and after it, the server ends the connection when the
// client does, and serves the next.
func FuzzServer(f *testing.F) {
	export := pack(counted("disk"), uint16(1), uint16(3))
	contexts := pack(counted("disk"), uint32(1), counted("base:allocation"))
	option := func(opt uint32, data []byte) []byte { return pack("IHAVEOPT", opt, uint32(len(data)), data) }
	short := func(flags, cmd uint16, off uint64, n uint32, payload string) []byte {
		return pack(uint32(0x25609513), flags, cmd, uint64(1), off, n, payload)
	}
	long := func(flags, cmd uint16, off, n uint64, payload string) []byte {
		return pack(uint32(0x21e41c71), flags, cmd, uint64(1), off, n, payload)
	}
	f.Add(pack(uint32(3), option(optList, nil), option(optInfo, export), option(optListContext, contexts),
		option(99, nil), option(optAbort, nil)), byte(0))
	f.Add(pack(uint32(1), option(optExportName, []byte("disk")), short(0, cmdRead, 0, 512, "")), byte(0))
	f.Add(pack(short(0, cmdWrite, 512, 4, "abcd"), short(1, cmdZeroes, 4096, 65536, ""), short(0, cmdFlush, 0, 0, "")),
		byte(1))
	f.Add(pack(short(flagDF, cmdRead, 0, 65536, ""), short(0, cmdStatus, 0, 65536, ""),
		short(flagReqOne, cmdStatus, 5, 9, "")), byte(2))
	f.Add(pack(long(flagPayload, cmdWrite, 512, 4, "abcd"),
		long(flagPayload, cmdStatus, 0, 12, "\x00\x00\x00\x00\x00\x00\x10\x00\x00\x00\x00\x01"),
		long(0, cmdTrim, 0, 1<<63, ""), long(0, cmdCache, 0, 65536, ""), long(0, cmdDisconnect, 0, 0, "")), byte(3))
	l := newPipes()
	o := only(quick{newMemory(65536 + 100)})
	o.MemoryLimit, o.MaxRequests = 1<<20, 4
	serve(f, l, o)
	f.Fuzz(func(t *testing.T, in []byte, mode byte) {
		conn := l.dial()
		if mode %= 4; mode > 0 {
			enterRaw(t, conn, []byte{0, 0, optStructured, optExtended}[mode])
		} else if _, err := io.ReadFull(conn, make([]byte, 18)); err != nil {
			t.Fatal(err)
		}
		gone := make(chan struct{})
		go func() {
			defer close(gone)
			io.Copy(io.Discard, conn)
		}()
		conn.Write(in)
		conn.Close()
		<-gone
		r := enterRaw(t, l.dial(), optStructured)
		r.request(0, cmdRead, 1, 0, 512)
		if c := r.answer(0); c.errno() != 0 {
			t.Fatalf("afterwards a read: %+v", c)
		}
	})
}

var _ nbd.WritableBackend = (*memory)(nil)
