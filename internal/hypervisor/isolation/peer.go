package isolation

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

const (
	diagByFamily = 20 // SOCK_DIAG_BY_FAMILY
	showPeer     = 4  // UDIAG_SHOW_PEER
	attrPeer     = 2  // UNIX_DIAG_PEER
	diagHeader   = 16 // bytes of a unix_diag_msg
)

// unixPeer asks the kernel for the other end of a unix socket. One that nobody has accepted yet is 0.
func unixPeer(inode uint64) (peer uint32, connected bool, err error) {
	s, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return 0, false, err
	}
	defer unix.Close(s)
	if err := unix.SetsockoptTimeval(s, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 5}); err != nil {
		return 0, false, err
	}
	if err := unix.Sendto(s, peerRequest(uint32(inode)), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return 0, false, err
	}
	buf := make([]byte, 8192)
	n, _, err := unix.Recvfrom(s, buf, 0)
	if err != nil {
		return 0, false, err
	}
	return parsePeer(buf[:n])
}

func peerRequest(inode uint32) []byte {
	le := binary.NativeEndian
	b := make([]byte, unix.NLMSG_HDRLEN+24)
	le.PutUint32(b, uint32(len(b)))
	le.PutUint16(b[4:], diagByFamily)
	le.PutUint16(b[6:], unix.NLM_F_REQUEST)
	b[16] = unix.AF_UNIX
	le.PutUint32(b[20:], ^uint32(0)) // in any state
	le.PutUint32(b[24:], inode)
	le.PutUint32(b[28:], showPeer)
	le.PutUint64(b[32:], ^uint64(0)) // no cookie
	return b
}

// parsePeer finds the peer in an answer.
func parsePeer(b []byte) (peer uint32, connected bool, err error) {
	le := binary.NativeEndian
	if len(b) < unix.NLMSG_HDRLEN+4 {
		return 0, false, errors.New("the kernel's answer is too short")
	}
	switch kind := le.Uint16(b[4:]); kind {
	case unix.NLMSG_ERROR:
		return 0, false, fmt.Errorf("the kernel does not say: %w", unix.Errno(-int32(le.Uint32(b[16:]))))
	case diagByFamily:
	default:
		return 0, false, fmt.Errorf("the kernel's answer is of kind %d", kind)
	}
	if len(b) < unix.NLMSG_HDRLEN+diagHeader {
		return 0, false, errors.New("the kernel's answer is too short")
	}
	for rest := b[unix.NLMSG_HDRLEN+diagHeader:]; len(rest) >= 4; {
		n, kind := int(le.Uint16(rest)), le.Uint16(rest[2:])
		if n < 4 || n > len(rest) {
			break
		}
		if kind == attrPeer && n >= 8 {
			return le.Uint32(rest[4:]), true, nil
		}
		rest = rest[min(len(rest), (n+3)&^3):]
	}
	return 0, false, nil
}
