package dir

import (
	"bufio"
	"fmt"
	"os"
	"slices"
	"strings"
)

// mountOf is a file system as /proc/self/mountinfo describes it.
type mountOf struct {
	point   string
	kind    string   // nfs, nfs4, cifs, fuse.sshfs, ext4, …
	source  string   // as SERVER:/PATH
	options []string // of the mount and of the file system
}

// Concerns implements [blob.Concerned]: it says what about the file system that holds the store
// endangers it, each in a sentence with what to do about it; none where nothing is known to. It
// reads how the file system is mounted now, and asks no server. docs/design/network-stores.md has
// the reasons.
func (s *Store) Concerns() []string {
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return []string{fmt.Sprintf("how %s is mounted cannot be told: %v", s.root, err)}
	}
	m, ok := findMount(string(table), s.root)
	if !ok {
		return nil
	}
	return m.concerns()
}

// findMount returns the mount that holds a path: of those whose point is on the way to it the
// innermost, and of several on one point the one that lies on top.
func findMount(table, path string) (best mountOf, ok bool) {
	lines := bufio.NewScanner(strings.NewReader(table))
	for lines.Scan() {
		m, valid := parseMount(lines.Text())
		holds := m.point == "/" || path == m.point || strings.HasPrefix(path, m.point+"/")
		if valid && holds && len(m.point) >= len(best.point) {
			best, ok = m, true
		}
	}
	return best, ok
}

// parseMount reads a line of mountinfo: ID, parent, device, root, point, options, fields up to a
// dash, kind, source, options of the file system.
func parseMount(line string) (mountOf, bool) {
	head, tail, ok := strings.Cut(line, " - ")
	before, after := strings.Fields(head), strings.Fields(tail)
	if !ok || len(before) < 6 || len(after) < 2 {
		return mountOf{}, false
	}
	m := mountOf{point: unescape(before[4]), kind: after[0], source: unescape(after[1]),
		options: strings.Split(before[5], ",")}
	if len(after) > 2 {
		m.options = append(m.options, strings.Split(after[2], ",")...)
	}
	return m, true
}

// unescape undoes how mountinfo writes spaces and the like.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

func (m mountOf) has(option string) bool { return slices.Contains(m.options, option) }

// value returns what an option is set to, "" if it is not.
func (m mountOf) value(option string) string {
	for _, o := range m.options {
		if v, ok := strings.CutPrefix(o, option+"="); ok {
			return v
		}
	}
	return ""
}

func (m mountOf) concerns() []string {
	var all []string
	say := func(what, then, do string) {
		all = append(all, fmt.Sprintf("%s is mounted on %s %s: %s; %s", m.source, m.point, what, then, do))
	}
	switch {
	case m.kind == "nfs" || m.kind == "nfs4":
		m.nfs(say)
	case m.kind == "cifs" || m.kind == "smb3":
		m.smb(say)
	case strings.HasPrefix(m.kind, "fuse.") || m.kind == "fuse":
		m.fuse(say)
	}
	return all
}

func (m mountOf) nfs(say func(what, then, do string)) {
	if m.has("soft") || m.has("softerr") {
		say("with soft", "a write that the server has taken may be reported as failed, and one that it has not taken "+
			"be noticed late", "mount it with hard")
	}
	if m.has("nocto") {
		say("with nocto", "what other hosts have put is overlooked", "mount it without nocto")
	}
	if m.has("nolock") || m.value("local_lock") == "flock" || m.value("local_lock") == "all" {
		say("without locks at the server", noLocks, "mount it without nolock and local_lock")
	}
	cache := m.value("lookupcache")
	if !m.version4() && cache != "pos" && cache != "positive" && cache != "none" && !m.has("noac") {
		say("with NFS "+m.value("vers")+" and without lookupcache=positive",
			"what other hosts have put may be overlooked where the server's times are coarse",
			"mount it with lookupcache=positive, or with NFS 4")
	}
}

func (m mountOf) version4() bool { return m.kind == "nfs4" || strings.HasPrefix(m.value("vers"), "4") }

func (m mountOf) smb(say func(what, then, do string)) {
	if m.value("cache") == "loose" {
		say("with cache=loose", "what other hosts have written is not asked for", "mount it with cache=strict")
	}
	if m.has("nobrl") {
		say("with nobrl", noLocks, "mount it without nobrl")
	}
}

// noLocks is what happens where locks are not the server's.
const noLocks = "another host may remove a file that is being written, as one that was left behind"

// weakFUSE are FUSE file systems that several hosts may mount, and that promise too little.
var weakFUSE = []string{"fuse.sshfs", "fuse.s3fs", "fuse.rclone", "fuse.gcsfuse", "fuse.goofys", "fuse.mount-s3"}

func (m mountOf) fuse(say func(what, then, do string)) {
	if slices.Contains(weakFUSE, m.kind) {
		say("as "+m.kind, "it does not promise that only one of two hosts gets a name, nor that what it has taken "+
			"survives", "use it from one host at a time, and better another file system")
	}
}
