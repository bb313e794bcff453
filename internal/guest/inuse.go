package guest

import (
	"bufio"
	"io"
	"net"
	"os"
	"strings"
)

// States of a socket in /proc/net/unix.
const (
	socketConnecting = "02" // in the accept queue of a listener
	socketConnected  = "03"
)

// notAccepted reports whether nc waits behind another client of a server that accepts one at a
// time, as QEMU does.
func notAccepted(nc net.Conn) bool {
	addr := nc.RemoteAddr()
	if addr == nil || addr.String() == "" {
		return false
	}
	states := socketStates(addr.String())
	return states[socketConnecting] && states[socketConnected]
}

// hasClient reports whether a server's socket that was bound to path has a client that it accepted.
func hasClient(path string) bool { return socketStates(path)[socketConnected] }

func socketStates(path string) map[string]bool {
	f, err := os.Open("/proc/net/unix")
	if err != nil {
		return nil
	}
	defer f.Close()
	return parseSocketStates(f, path)
}

// parseSocketStates returns which states the sockets bound to path are in. Lines are: Num RefCount
// Protocol Flags Type St Inode Path.
func parseSocketStates(r io.Reader, path string) map[string]bool {
	states := make(map[string]bool)
	for sc := bufio.NewScanner(r); sc.Scan(); {
		line := sc.Text()
		f := strings.Fields(line)
		if len(f) >= 8 && strings.HasSuffix(line, " "+path) {
			states[f[5]] = true
		}
	}
	return states
}
