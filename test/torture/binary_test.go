package torture

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/point"
	"github.com/holdfast-vm/holdfast/test/vm/program"
)

func TestMain(m *testing.M) { program.Main(m) }

// start starts holdfast as a user would, with the vault and the directories of the lab.
func (l *lab) start(args ...string) *program.Run {
	l.t.Helper()
	return program.Start(l.t, l.env(), args...)
}

// run runs holdfast to its end.
func (l *lab) run(args ...string) *program.Run {
	l.t.Helper()
	r := l.start(args...)
	r.Wait(l.t)
	return r
}

// must runs a holdfast that must succeed.
func (l *lab) must(args ...string) string {
	l.t.Helper()
	return l.start(args...).Finish(l.t, 0)
}

// fails runs a holdfast that must end with status, and whose message must contain words.
func (l *lab) fails(status int, words []string, args ...string) {
	l.t.Helper()
	l.failed(l.run(args...), status, words...)
}

func (l *lab) failed(r *program.Run, status int, words ...string) {
	l.t.Helper()
	if r.Status() != status {
		l.t.Errorf("want exit status %d: %v", status, r)
	}
	for _, w := range words {
		if !strings.Contains(r.Said(), w) {
			l.t.Errorf("the message lacks %q: %v", w, r)
		}
	}
}

func decode[T any](t testing.TB, text string) T {
	t.Helper()
	var v T
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatalf("%v in %q", err, text)
	}
	return v
}

// backup takes a point, which must succeed.
func (l *lab) backup(flags ...string) point.RecoveryPoint {
	l.t.Helper()
	return decode[point.RecoveryPoint](l.t, l.must(l.backupArgs(flags...)...))
}

func (l *lab) backupArgs(flags ...string) []string {
	return append([]string{"vm", "backup", l.vm.Name, "--json"}, flags...)
}

// points returns all points of the vault, oldest first.
func (l *lab) points() []point.RecoveryPoint {
	l.t.Helper()
	return decode[[]point.RecoveryPoint](l.t, l.must("point", "list", "--json"))
}

// processes returns what runs of the binary for this lab, guards included.
func (l *lab) processes() map[int]string {
	l.t.Helper()
	links, err := filepath.Glob("/proc/[0-9]*/exe")
	if err != nil {
		l.t.Fatal(err)
	}
	found := map[int]string{}
	for _, link := range links {
		if exe, err := os.Readlink(link); err != nil || exe != program.Path() {
			continue
		}
		dir := filepath.Dir(link)
		environ, err := os.ReadFile(filepath.Join(dir, "environ"))
		if err != nil || !bytes.Contains(environ, []byte("HOLDFAST_STATE="+l.state+"\x00")) {
			continue
		}
		args, err := os.ReadFile(filepath.Join(dir, "cmdline"))
		// a zombie has none
		if pid, convErr := strconv.Atoi(filepath.Base(dir)); err == nil && convErr == nil && len(args) > 0 {
			found[pid] = strings.ReplaceAll(string(args), "\x00", " ")
		}
	}
	return found
}

// killAll kills all of Holdfast's processes of this lab at once.
func (l *lab) killAll() {
	for pid := range l.processes() {
		syscall.Kill(pid, syscall.SIGKILL)
	}
}
