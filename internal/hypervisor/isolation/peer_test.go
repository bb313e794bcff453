package isolation

import (
	"encoding/binary"
	"testing"

	"golang.org/x/sys/unix"
)

// FuzzDiag reads what a kernel could answer.
func FuzzDiag(f *testing.F) {
	ne := binary.NativeEndian
	message := func(kind uint16, body []byte) []byte {
		b := make([]byte, unix.NLMSG_HDRLEN, unix.NLMSG_HDRLEN+len(body))
		ne.PutUint32(b, uint32(unix.NLMSG_HDRLEN+len(body)))
		ne.PutUint16(b[4:], kind)
		return append(b, body...)
	}
	f.Add(message(unix.NLMSG_DONE, make([]byte, 4)))
	f.Add(message(unix.NLMSG_ERROR, make([]byte, 20)))
	f.Add(message(diagByFamily, append(make([]byte, diagHeader), 8, 0, attrPeer, 0, 1, 2, 3, 4, 6, 0, attrName, 0, '/',
		0, 0, 0)))
	f.Fuzz(func(t *testing.T, b []byte) {
		found, _, err := parseDiag(b)
		if err == nil && len(found)*(unix.NLMSG_HDRLEN+diagHeader) > len(b) {
			t.Errorf("%d sockets in %d bytes", len(found), len(b))
		}
	})
}

func TestSocketPath(t *testing.T) {
	for name, want := range map[string]string{"": "", "/run/x\x00": "/run/x", "/run/x": "/run/x",
		"\x00abc\x00d": "@abc@d", "\x00abc\x00": "@abc@"} {
		if got := socketPath([]byte(name)); got != want {
			t.Errorf("%q is %q, want %q", name, got, want)
		}
	}
}
