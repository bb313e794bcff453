// Package program builds the holdfast binary and runs it as a user would, for tests that boot
// guests.
//
// A package calls [Main] from its TestMain; [Start] then runs the binary with the environment that
// the test gives it. What was started is killed when its test ends, what it started itself (guards,
// machines) is the test's to look after: [Processes] finds it. Nothing waits longer than
// [Patience].
package program

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Patience is the longest that anything may take on a slow and busy machine.
const Patience = 5 * time.Minute

var binary string

// Path returns the holdfast under test.
func Path() string { return binary }

// Main builds holdfast, runs the tests and exits with their status.
func Main(m *testing.M) { os.Exit(buildAndRun(m)) }

// buildAndRun builds with the flags that the tests themselves are built with, so that what both use
// is compiled once.
func buildAndRun(m *testing.M) int {
	if text := os.Getenv(traceEnv); text != "" {
		if err := trace(text); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return 0
	}
	dir, err := os.MkdirTemp("", "hf")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	os.Setenv("HOLDFAST_MEMORY", filepath.Join(dir, "memory")) // no test touches what the user's host remembers
	binary = filepath.Join(dir, "holdfast")
	build := exec.Command("go", "build", "-o", binary, "github.com/holdfast-vm/holdfast/cmd/holdfast")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build holdfast: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}

// Run is a holdfast that was started.
type Run struct {
	Began time.Time
	Done  chan struct{} // closed when it has ended
	Out   bytes.Buffer  // its standard output, to be read when it has ended
	Took  time.Duration // to be read when it has ended

	cmd  *exec.Cmd
	errs words
}

// Start starts holdfast with env on top of the test's own environment.
func Start(t testing.TB, env []string, args ...string) *Run {
	t.Helper()
	r := &Run{cmd: exec.Command(binary, args...), Done: make(chan struct{}), Began: time.Now()}
	r.cmd.Env = append(os.Environ(), env...)
	r.cmd.Stdout, r.cmd.Stderr = &r.Out, &r.errs
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	r.cmd.WaitDelay = time.Second // a guard or QEMU that outlives it has its standard error
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.cmd.Process.Kill() })
	go func() {
		r.cmd.Wait() // how it ended is in its state
		r.Took = time.Since(r.Began)
		close(r.Done)
	}()
	return r
}

// Said returns what it has printed to standard error so far.
func (r *Run) Said() string { return r.errs.String() }

// Ended reports whether it has ended.
func (r *Run) Ended() bool {
	select {
	case <-r.Done:
		return true
	default:
		return false
	}
}

// Status returns how it ended: its exit status, or -1 if it was killed.
func (r *Run) Status() int { return r.cmd.ProcessState.ExitCode() }

// Signal sends it a signal.
func (r *Run) Signal(s syscall.Signal) { r.cmd.Process.Signal(s) }

// Kill kills it as a crash would, and returns when it has ended.
func (r *Run) Kill() {
	r.cmd.Process.Kill()
	<-r.Done
}

// Wait returns when it has ended; one that does not end says where it hangs and fails the test.
func (r *Run) Wait(t testing.TB) {
	t.Helper()
	if !r.within(Patience) {
		r.Signal(syscall.SIGQUIT)
		r.within(10 * time.Second)
		t.Fatalf("it does not end: holdfast %v\n%s", r.cmd.Args[1:], r.Said())
	}
}

func (r *Run) within(d time.Duration) bool {
	select {
	case <-r.Done:
		return true
	case <-time.After(d):
		return false
	}
}

// Finish waits for its end, which must have status, and returns its standard output.
func (r *Run) Finish(t testing.TB, status int) string {
	t.Helper()
	r.Wait(t)
	if got := r.Status(); got != status {
		t.Fatalf("want exit status %d: %v", status, r)
	}
	return r.Out.String()
}

// String says what was run and, when it has ended, how and with which words.
func (r *Run) String() string {
	how, out := "runs still", ""
	if r.Ended() {
		how, out = r.cmd.ProcessState.String(), r.Out.String()
	}
	return fmt.Sprintf("holdfast %s: %s\n%s%s", strings.Join(r.cmd.Args[1:], " "), how, out, r.Said())
}

// words collects what a process prints while others read it.
type words struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (w *words) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.text.Write(p)
}

func (w *words) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.text.String()
}

// Processes returns the other processes, by ID, whose command lines match. Zombies have none.
func Processes(match func(args string) bool) map[int]string {
	found := map[int]string{}
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, file := range files {
		text, err := os.ReadFile(file)
		args := strings.TrimSpace(strings.ReplaceAll(string(text), "\x00", " "))
		pid, badPID := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		if err == nil && badPID == nil && args != "" && pid != os.Getpid() && match(args) {
			found[pid] = args
		}
	}
	return found
}

// Gone reports whether a process has ended and holds no file any more. One that is ending has no
// command line, but its files until its last thread is a zombie.
func Gone(pid int) bool {
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	for _, task := range tasks {
		stat, err := os.ReadFile(task)
		_, state, _ := strings.Cut(string(stat), ") ")
		if err == nil && !strings.HasPrefix(state, "Z") && !strings.HasPrefix(state, "X") {
			return false
		}
	}
	return true
}

// Hypervisors runs a test under plain QEMU and under libvirt.
func Hypervisors(t *testing.T, test func(t *testing.T, libvirt bool)) {
	t.Run("qemu", func(t *testing.T) { test(t, false) })
	t.Run("libvirt", func(t *testing.T) { test(t, true) })
}

// Number returns a number that the environment may set.
func Number(t testing.TB, name string, otherwise uint64) uint64 {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}

// Until polls a condition until it is true, or fails the test.
func Until(t testing.TB, what string, done func() bool) {
	t.Helper()
	if !Eventually(done) {
		t.Fatalf("not within %v: %s", Patience, what)
	}
}

// Eventually polls a condition and reports whether it became true. It looks often at first, to meet
// the moments of a command that was just started, and less often later: what takes long is a guest
// that needs the processor.
func Eventually(done func() bool) bool {
	began := time.Now()
	for !done() {
		waited := time.Since(began)
		if waited > Patience {
			return false
		}
		<-time.After(min(max(2*time.Millisecond, waited/100), 20*time.Millisecond))
	}
	return true
}
