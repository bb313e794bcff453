package nbd

import (
	"fmt"
	"net"
	"net/url"
	"strings"
)

// URI returns the address of an export as qemu-img, QEMU, nbdcopy and nbdinfo take it:
// nbd+unix:///EXPORT?socket=PATH for a unix socket, else nbd://HOST:PORT/EXPORT, and nbds where the
// connection is encrypted. It holds no byte that means something to a shell between single quotes
// or to a list of QEMU options.
func URI(addr net.Addr, export string, encrypted bool) string {
	scheme := "nbd"
	if encrypted {
		scheme = "nbds"
	}
	if addr.Network() == "unix" {
		return scheme + "+unix:///" + escape(export) + "?socket=" + escape(addr.String())
	}
	return scheme + "://" + addr.String() + "/" + escape(export)
}

// escape writes every byte but letters, digits, - . _ ~ and / as %XX. Form encoding, with its + for
// a space, is not for these URIs: nobody decodes it.
func escape(s string) string {
	var b strings.Builder
	for i := range len(s) {
		c := s[i]
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', strings.IndexByte("-._~/", c) >= 0:
			b.WriteByte(c)
		default:
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}

// ParseUnixURI splits nbd+unix:///EXPORT?socket=PATH.
func ParseUnixURI(uri string) (export, socket string, err error) {
	u, err := url.Parse(uri)
	if err != nil {
		return "", "", fmt.Errorf("NBD export: %w", err)
	}
	for part := range strings.SplitSeq(u.RawQuery, "&") {
		if value, ok := strings.CutPrefix(part, "socket="); ok && socket == "" {
			if socket, err = url.PathUnescape(value); err != nil { // a path's rules: + is a plus sign
				return "", "", fmt.Errorf("NBD export %q: %w", uri, err)
			}
		}
	}
	if u.Scheme != "nbd+unix" || u.Host != "" || socket == "" {
		return "", "", fmt.Errorf("NBD export %q is not of the form nbd+unix:///NAME?socket=PATH", uri)
	}
	return strings.TrimPrefix(u.Path, "/"), socket, nil
}
