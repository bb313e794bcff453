package isolation

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
)

// The protocol is in Linux' include/uapi/linux/{sock_diag,unix_diag}.h.
const (
	diagByFamily = 20 // SOCK_DIAG_BY_FAMILY
	diagHeader   = 16 // bytes of a unix_diag_msg, whose inode is at 4

	showName  = 1 // UDIAG_SHOW_NAME
	showPeer  = 4 // UDIAG_SHOW_PEER
	showIcons = 8 // UDIAG_SHOW_ICONS

	attrName  = 0 // UNIX_DIAG_NAME
	attrPeer  = 2 // UNIX_DIAG_PEER
	attrIcons = 3 // UNIX_DIAG_ICONS: the inodes that wait to be accepted

	anyState    = ^uint32(0)
	stateListen = 1 << 10 // TCP_LISTEN
)

// peerTries is how often a connection is looked for that was just being accepted.
const peerTries = 100

// errNotTold reports a connection that neither end of a connection nor a listener owns up to.
var errNotTold = errors.New("nobody has accepted it")

// unixSocket is what the kernel says of a unix socket.
type unixSocket struct {
	inode     uint32
	path      string // "" for none; an abstract one begins with @
	connected bool
	peer      uint32   // 0 while nobody has accepted the connection
	waiting   []uint32 // the inodes of the connections that a listener has not accepted
}

// unixPeer finds the other end of a unix socket: what accepted it, or will. connected is false if
// there is none.
func unixPeer(inode uint64) (peer unixSocket, connected bool, err error) {
	d, err := openDiag()
	if err != nil {
		return unixSocket{}, false, err
	}
	defer unix.Close(int(d))
	for range peerTries {
		s, err := d.socket(uint32(inode), showPeer)
		if err != nil || !s.connected {
			return unixSocket{}, false, err
		}
		if s.peer != 0 {
			peer, err := d.socket(s.peer, showName)
			if errors.Is(err, unix.ENOENT) {
				continue // it was closed since
			}
			return peer, true, err
		}
		listeners, err := d.ask(0, stateListen, showName|showIcons)
		if err != nil {
			return unixSocket{}, false, err
		}
		if i := slices.IndexFunc(listeners, func(l unixSocket) bool {
			return slices.Contains(l.waiting, uint32(inode))
		}); i >= 0 {
			return listeners[i], true, nil
		} // else it was accepted since
	}
	return unixSocket{}, false, errNotTold
}

// diag is a socket on which the kernel tells of others.
type diag int

func openDiag() (diag, error) {
	s, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return 0, err
	}
	if err := unix.SetsockoptTimeval(s, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 30}); err != nil {
		unix.Close(s)
		return 0, err
	}
	return diag(s), nil
}

// socket asks for one socket; [unix.ENOENT] says that there is none.
func (d diag) socket(inode uint32, show uint32) (unixSocket, error) {
	found, err := d.ask(inode, anyState, show)
	if err != nil {
		return unixSocket{}, err
	}
	if len(found) != 1 {
		return unixSocket{}, fmt.Errorf("the kernel tells of %d sockets with the inode %d", len(found), inode)
	}
	return found[0], nil
}

// ask asks for the socket with an inode, or with inode 0 for all in the states.
func (d diag) ask(inode, states, show uint32) ([]unixSocket, error) {
	if err := unix.Sendto(int(d), diagRequest(inode, states, show), 0,
		&unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, err
	}
	var found []unixSocket
	buf := make([]byte, 64<<10)
	for {
		n, _, err := unix.Recvfrom(int(d), buf, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, err
		}
		more, done, err := parseDiag(buf[:n])
		if err != nil {
			return nil, err
		}
		found = append(found, more...)
		if done || inode != 0 {
			return found, nil
		}
	}
}

func diagRequest(inode, states, show uint32) []byte {
	ne := binary.NativeEndian
	b := make([]byte, unix.NLMSG_HDRLEN+24)
	flags := uint16(unix.NLM_F_REQUEST)
	if inode == 0 {
		flags |= unix.NLM_F_DUMP
	}
	ne.PutUint32(b, uint32(len(b)))
	ne.PutUint16(b[4:], diagByFamily)
	ne.PutUint16(b[6:], flags)
	b[16] = unix.AF_UNIX
	ne.PutUint32(b[20:], states)
	ne.PutUint32(b[24:], inode)
	ne.PutUint32(b[28:], show)
	ne.PutUint64(b[32:], ^uint64(0)) // no cookie
	return b
}

// parseDiag reads the messages of an answer; done says that it was the last of a dump.
func parseDiag(b []byte) (found []unixSocket, done bool, err error) {
	ne := binary.NativeEndian
	for len(b) > 0 {
		if len(b) < unix.NLMSG_HDRLEN {
			return nil, false, errors.New("the kernel's answer is too short")
		}
		n, kind := int(ne.Uint32(b)), ne.Uint16(b[4:])
		if n < unix.NLMSG_HDRLEN+4 || n > len(b) {
			return nil, false, errors.New("the kernel's answer is too short")
		}
		body := b[unix.NLMSG_HDRLEN:n]
		switch {
		case kind == unix.NLMSG_DONE:
			return found, true, nil
		case kind == unix.NLMSG_ERROR:
			return nil, false, fmt.Errorf("the kernel does not say: %w", unix.Errno(-int32(ne.Uint32(body))))
		case kind != diagByFamily:
			return nil, false, fmt.Errorf("the kernel's answer is of kind %d", kind)
		case len(body) < diagHeader:
			return nil, false, errors.New("the kernel's answer is too short")
		}
		found = append(found, parseSocket(body))
		b = b[min(len(b), (n+3)&^3):]
	}
	return found, false, nil
}

// parseSocket reads a unix_diag_msg and its attributes.
func parseSocket(b []byte) unixSocket {
	ne := binary.NativeEndian
	s := unixSocket{inode: ne.Uint32(b[4:])}
	for rest := b[diagHeader:]; len(rest) >= 4; {
		n, kind := int(ne.Uint16(rest)), ne.Uint16(rest[2:])
		if n < 4 || n > len(rest) {
			break
		}
		value := rest[4:n]
		switch {
		case kind == attrName:
			s.path = socketPath(value)
		case kind == attrPeer && len(value) >= 4:
			s.peer, s.connected = ne.Uint32(value), true
		case kind == attrIcons:
			for ; len(value) >= 4; value = value[4:] {
				s.waiting = append(s.waiting, ne.Uint32(value))
			}
		}
		rest = rest[min(len(rest), (n+3)&^3):]
	}
	return s
}

// socketPath writes a name as /proc/net/unix does: a path without the zero byte at its end, an
// abstract name with @ for each.
func socketPath(name []byte) string {
	if len(name) > 0 && name[0] != 0 {
		name = bytes.TrimSuffix(name, []byte{0})
	}
	return string(bytes.ReplaceAll(name, []byte{0}, []byte{'@'}))
}

// Available returns nil if this kernel tells what [Inspect] has to know: it looks at two sockets of
// this process that are connected to each other.
func Available() error {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(pair[0])
	defer unix.Close(pair[1])
	if _, err := readTables("/proc/self"); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(pair[0], &st); err != nil {
		return err
	}
	_, connected, err := unixPeer(st.Ino)
	if err == nil && !connected {
		err = errors.New("the kernel does not tell the other end of a unix socket")
	}
	return err
}
