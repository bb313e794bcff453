// Package isolation looks at a running QEMU from outside and says by which ways its machine could
// reach anything but itself.
//
// What is not known to be harmless is a way out: a socket of a family that the kernel does not name
// counts as one, and so does a file that belongs to somebody else and is open for writing. A
// [Report] without ways out holds for the moment of the look; a caller that needs more looks again
// at the end.
//
// It needs /proc and may look at processes of this user, or as root at all.
package isolation

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Report is what a look at a process came to.
type Report struct {
	Process int      `json:"process"`
	Files   int      `json:"files"`   // descriptors looked at
	Sockets int      `json:"sockets"` // of those
	Found   []string `json:"found"`   // ways out, in words; none means isolated
}

// Isolated reports whether no way out was found.
func (r Report) Isolated() bool { return len(r.Found) == 0 }

// add notes ways out, each once.
func (r *Report) add(found ...string) {
	for _, f := range found {
		if !slices.Contains(r.Found, f) {
			r.Found = append(r.Found, f)
		}
	}
}

// Add returns the report with further ways out.
func (r Report) Add(found ...string) Report {
	r.add(found...)
	return r
}

// Inspect looks at all descriptors of a process. own says what belongs to the machine: directories,
// and parts of names; a path that lies in such a directory, or has an element with such a part in
// its name, is the machine's own. An error means that the process could not be looked at.
func Inspect(pid int, own []string) (Report, error) {
	r := Report{Process: pid}
	proc := fmt.Sprintf("/proc/%d", pid)
	links, err := readLinks(proc)
	if err != nil {
		return r, fmt.Errorf("look at the open files of process %d: %w", pid, err)
	}
	tables, err := readTables(proc)
	if err != nil {
		return r, fmt.Errorf("look at the sockets of process %d: %w", pid, err)
	}
	look := look{proc: proc, own: own, tables: tables, held: links}
	r.Files = len(links)
	for fd, target := range links {
		if inode, ok := socketInode(target); ok {
			r.Sockets++
			r.add(look.socket(fd, inode)...)
			continue
		}
		r.add(look.file(target, writable(proc, fd))...)
	}
	slices.Sort(r.Found)
	return r, nil
}

// look is what it takes to judge the descriptors of one process.
type look struct {
	proc   string
	own    []string
	tables tables
	held   map[string]string // the process' own descriptors
}

// readLinks returns what the descriptors of a process are, by number.
func readLinks(proc string) (map[string]string, error) {
	entries, err := os.ReadDir(proc + "/fd")
	if err != nil {
		return nil, err
	}
	links := make(map[string]string)
	for _, e := range entries {
		if target, err := os.Readlink(proc + "/fd/" + e.Name()); err == nil {
			links[e.Name()] = target
		} // else it was closed since
	}
	return links, nil
}

// writable reports whether a descriptor can be written to; one that is gone cannot.
func writable(proc, fd string) bool {
	text, err := os.ReadFile(proc + "/fdinfo/" + fd)
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, "flags:"); ok {
			flags, err := strconv.ParseUint(strings.TrimSpace(value), 8, 64)
			return err != nil || flags&uint64(os.O_WRONLY|os.O_RDWR) != 0
		}
	}
	return true
}

// hostDevices are devices that lead out of the machine, by the beginnings of their names.
var hostDevices = []string{"/dev/net/", "/dev/tap", "/dev/macvtap", "/dev/vhost-", "/dev/vfio", "/dev/bus/usb",
	"/dev/vsock", "/dev/ttyS", "/dev/ttyUSB",
	"/dev/ttyACM", "/dev/parport", "/dev/usb", "/dev/input", "/dev/snd", "/dev/sg", "/dev/infiniband", "/dev/iommu"}

// plainDevices lead nowhere.
var plainDevices = []string{"/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/kvm",
	"/dev/ptmx", "/dev/pts/", "/dev/shm/",
	"/dev/hugepages", "/dev/dri/", "/dev/sev", "/dev/sgx", "/dev/udmabuf", "/dev/userfaultfd", "/dev/hpet", "/dev/rtc",
	"/dev/tty"}

// file judges a descriptor that is not a socket.
func (l look) file(target string, writable bool) []string {
	switch {
	case startsWithAny(target, hostDevices):
		return []string{"the host's device " + target + " is open"}
	case !writable || !filepath.IsAbs(target) || startsWithAny(target, plainDevices):
		return nil // pipes and what the kernel makes for one process have no path
	case strings.HasPrefix(target, "/memfd:") || strings.HasSuffix(target, " (deleted)") || l.isOwn(target):
		return nil
	}
	return []string{target + " is open for writing"}
}

func startsWithAny(s string, prefixes []string) bool {
	return slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(s, p) })
}

// isOwn reports whether a path is the machine's own.
func (l look) isOwn(path string) bool {
	for _, own := range l.own {
		if filepath.IsAbs(own) {
			if rest, ok := strings.CutPrefix(path, own); ok && (rest == "" || rest[0] == '/') {
				return true
			}
			continue
		}
		if own != "" && slices.ContainsFunc(strings.Split(path, "/"), func(element string) bool {
			return strings.Contains(element, own)
		}) {
			return true
		}
	}
	return false
}
