package torture

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-vm/holdfast/internal/point"
)

// binary is the holdfast under test.
var binary string

func TestMain(m *testing.M) { os.Exit(buildAndRun(m)) }

func buildAndRun(m *testing.M) int {
	dir, err := os.MkdirTemp("", "hf")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	binary = filepath.Join(dir, "holdfast")
	build := exec.Command("go", "build", "-trimpath", "-o", binary, "github.com/holdfast-vm/holdfast/cmd/holdfast")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build holdfast: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}

// running is a holdfast that was started.
type running struct {
	cmd         *exec.Cmd
	out, errors bytes.Buffer  // to be read when done is closed
	done        chan struct{} // closed when it has ended
	began       time.Time
	took        time.Duration
}

// start starts holdfast as a user would, with the vault and the directories of the lab.
func (l *lab) start(args ...string) *running {
	l.t.Helper()
	r := &running{cmd: exec.Command(binary, args...), done: make(chan struct{}), began: time.Now()}
	r.cmd.Env = append(os.Environ(), l.env()...)
	r.cmd.Stdout, r.cmd.Stderr = &r.out, &r.errors
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	r.cmd.WaitDelay = time.Second // a guard that outlives a killed holdfast has its stderr
	if err := r.cmd.Start(); err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { r.cmd.Process.Kill() })
	go func() {
		r.cmd.Wait() // how it ended is in its state
		r.took = time.Since(r.began)
		close(r.done)
	}()
	return r
}

func (r *running) signal(s syscall.Signal) { r.cmd.Process.Signal(s) }

func (r *running) ended() bool {
	select {
	case <-r.done:
		return true
	default:
		return false
	}
}

// status returns how it ended: its exit status, or -1 if it was killed.
func (r *running) status() int { return r.cmd.ProcessState.ExitCode() }

func (r *running) String() string {
	return fmt.Sprintf("holdfast %s: exit status %d\n%s%s", strings.Join(r.cmd.Args[1:], " "), r.status(), r.out.String(), r.errors.String())
}

// wait returns when it has ended.
func (l *lab) wait(r *running) {
	l.t.Helper()
	select {
	case <-r.done:
	case <-time.After(patience):
		r.signal(syscall.SIGQUIT) // it says where it hangs
		select {
		case <-r.done:
		case <-time.After(10 * time.Second):
		}
		l.t.Fatalf("it does not end: holdfast %v\n%s", r.cmd.Args[1:], r.errors.String())
	}
}

// run runs holdfast to its end.
func (l *lab) run(args ...string) *running {
	l.t.Helper()
	r := l.start(args...)
	l.wait(r)
	return r
}

// must runs a holdfast that must succeed.
func (l *lab) must(args ...string) string {
	l.t.Helper()
	r := l.run(args...)
	if r.status() != 0 {
		l.t.Fatal(r)
	}
	return r.out.String()
}

// fails runs a holdfast that must end with status, and whose message must contain words.
func (l *lab) fails(status int, words []string, args ...string) {
	l.t.Helper()
	l.failed(l.run(args...), status, words...)
}

func (l *lab) failed(r *running, status int, words ...string) {
	l.t.Helper()
	if r.status() != status {
		l.t.Errorf("want exit status %d: %v", status, r)
	}
	for _, w := range words {
		if !strings.Contains(r.errors.String(), w) {
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
		if exe, err := os.Readlink(link); err != nil || exe != binary {
			continue
		}
		dir := filepath.Dir(link)
		environ, err := os.ReadFile(filepath.Join(dir, "environ"))
		if err != nil || !bytes.Contains(environ, []byte("HOLDFAST_STATE="+l.state+"\x00")) {
			continue
		}
		args, err := os.ReadFile(filepath.Join(dir, "cmdline"))
		if pid, convErr := strconv.Atoi(filepath.Base(dir)); err == nil && convErr == nil && len(args) > 0 { // a zombie has none
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
