package isolation

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// families are the kernel's tables of sockets that carry traffic, and what their sockets are
// called.
var families = []struct{ table, name string }{
	{"tcp", "TCP"}, {"tcp6", "TCP"}, {"udp", "UDP"}, {"udp6", "UDP"}, {"udplite", "UDP-Lite"}, {"udplite6", "UDP-Lite"},
	{"raw", "raw IP"}, {"raw6", "raw IP"},
	{"icmp", "ICMP"}, {"icmp6", "ICMP"}, {"packet", "packet"}, {"netlink", "netlink"},
}

// tables are the sockets of a network namespace, by inode.
type tables struct {
	name map[uint64]string // of sockets that carry traffic: what they are
	unix map[uint64]string // the path that a unix socket is bound to; "" for none
}

// readTables reads the tables of the namespace that a process is in. Tables that this kernel does
// not have are empty: their sockets count as unknown.
func readTables(proc string) (tables, error) {
	t := tables{name: make(map[uint64]string), unix: make(map[uint64]string)}
	for _, f := range families {
		text, err := os.ReadFile(proc + "/net/" + f.table)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return t, err
		}
		readTable(text, f.name, t.name)
	}
	text, err := os.ReadFile(proc + "/net/unix")
	if err != nil {
		return t, err
	}
	readUnix(text, t.unix)
	return t, nil
}

// readTable finds the column of inodes by the table's head. The heads of TCP and its like have a
// column of two more words than the rows.
func readTable(text []byte, name string, into map[uint64]string) {
	head, rows, _ := strings.Cut(string(text), "\n")
	heads := strings.Fields(head)
	column := -1
	for i, h := range heads {
		if strings.EqualFold(h, "inode") {
			column = i
		}
	}
	if column < 0 {
		return
	}
	if len(heads) > 4 && heads[3] == "st" {
		column = 9 // "tx_queue rx_queue" and "tr tm->when" are one word each below
	}
	for row := range strings.Lines(rows) {
		fields := strings.Fields(row)
		if column >= len(fields) {
			continue
		}
		if inode, err := strconv.ParseUint(fields[column], 10, 64); err == nil && inode != 0 {
			what := name + " socket"
			if heads[1] == "local_address" && len(fields) > 2 {
				what += " " + address(fields[1]) + " to " + address(fields[2])
			}
			into[inode] = what
		}
	}
}

// address writes 0100007F:1F90 as people do; what it does not understand stays.
func address(s string) string {
	host, port, ok := strings.Cut(s, ":")
	n, err := strconv.ParseUint(port, 16, 16)
	if !ok || err != nil {
		return s
	}
	var b [4]byte
	if len(host) == 8 {
		if _, err := fmt.Sscanf(host, "%02x%02x%02x%02x", &b[3], &b[2], &b[1], &b[0]); err == nil {
			host = fmt.Sprintf("%d.%d.%d.%d", b[0], b[1], b[2], b[3])
		}
	}
	return fmt.Sprintf("%s:%d", host, n)
}

// readUnix reads the table of unix sockets: the inode is the seventh word, a path follows.
func readUnix(text []byte, into map[uint64]string) {
	for row := range bytes.Lines(text) {
		fields := strings.SplitN(strings.TrimRight(string(row), "\n"), " ", 8)
		var words []string
		for _, f := range fields {
			words = append(words, strings.Fields(f)...)
		}
		if len(words) < 7 {
			continue
		}
		inode, err := strconv.ParseUint(words[6], 10, 64)
		if err != nil || inode == 0 { // one that nobody has accepted yet has none
			continue
		}
		path := ""
		if len(words) > 7 {
			_, path, _ = strings.Cut(string(bytes.TrimRight(row, "\n")), " "+words[6]+" ")
		}
		into[inode] = path
	}
}

func socketInode(target string) (uint64, bool) {
	text, ok := strings.CutPrefix(target, "socket:[")
	if !ok {
		return 0, false
	}
	inode, err := strconv.ParseUint(strings.TrimSuffix(text, "]"), 10, 64)
	return inode, err == nil
}

// socket judges the socket that a descriptor is.
func (l look) socket(fd string, inode uint64) []string {
	if name, ok := l.tables.name[inode]; ok {
		return []string{name}
	}
	path, ok := l.tables.unix[inode]
	switch {
	case !ok && l.closed(fd, inode):
		return nil
	case !ok:
		return []string{"a socket of a family that the kernel does not tell"}
	case path != "" && l.isOwn(path):
		return nil
	case path != "":
		return []string{"unix socket " + path}
	}
	return l.connected(inode)
}

// connected judges a unix socket without a path by the other end.
func (l look) connected(inode uint64) []string {
	peer, connected, err := unixPeer(inode)
	if err != nil {
		return []string{fmt.Sprintf("a unix socket whose other end cannot be told (%v)", err)}
	}
	if !connected {
		return nil
	}
	if peer.path != "" && l.isOwn(peer.path) || l.holds(uint64(peer.inode)) {
		return nil
	}
	holder := l.stranger(uint64(peer.inode))
	if holder != "" && peer.path != "" {
		holder = "unix socket " + peer.path + " of " + holder
	}
	if holder != "" {
		return []string{"connected to " + holder}
	}
	return nil // to this process: it serves the disks
}

// closed reports whether a descriptor is no longer what it was when the look began: the tables were
// read later and do not have it.
func (l look) closed(fd string, inode uint64) bool {
	target, err := os.Readlink(l.proc + "/fd/" + fd)
	return err != nil || target != fmt.Sprintf("socket:[%d]", inode)
}

func (l look) holds(inode uint64) bool {
	want := fmt.Sprintf("socket:[%d]", inode)
	for _, target := range l.held {
		if target == want {
			return true
		}
	}
	return false
}

// stranger returns, in words, a process that holds the other end of a connection and is neither
// this one nor the machine's own; "" if there is none.
func (l look) stranger(inode uint64) string {
	want := fmt.Sprintf("socket:[%d]", inode)
	dirs, _ := filepath.Glob("/proc/[0-9]*") // the pattern is well formed
	found := false
	for _, dir := range dirs {
		links, err := readLinks(dir)
		if err != nil {
			continue // of another user, or gone
		}
		for _, target := range links {
			if target != want {
				continue
			}
			found = true
			pid, _ := strconv.Atoi(filepath.Base(dir))
			text, _ := os.ReadFile(dir + "/cmdline")
			if pid != os.Getpid() && !l.names(text) {
				return fmt.Sprintf("process %d (%s)", pid, filepath.Base(firstWord(text)))
			}
		}
	}
	if !found {
		return "a process that cannot be told"
	}
	return ""
}

// names reports whether a command line has a path of the machine's own.
func (l look) names(cmdline []byte) bool {
	for _, own := range l.own {
		if own != "" && bytes.Contains(cmdline, []byte(own)) {
			return true
		}
	}
	return false
}

func firstWord(cmdline []byte) string {
	first, _, _ := bytes.Cut(cmdline, []byte{0})
	return string(first)
}
