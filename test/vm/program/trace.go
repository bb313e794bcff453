package program

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// Trace is a holdfast whose every process is watched: it is stopped each time that one of them has
// begun to run a program, before that has done anything, and looked at. What still runs when the
// test ends is killed.
//
// A process of its own does it, this very program: whoever traces must wait for all children of a
// thread, and would take those of others.
type Trace struct {
	tracer *exec.Cmd
	out    *os.File // of holdfast
	ended  chan struct{}
	status int // of holdfast; to be read when ended is closed

	mu   sync.Mutex
	seen []Program
}

// Program is a program as it begins to run.
type Program struct {
	PID   int
	Path  string // of the file
	Args  []string
	Env   []string
	Files map[int]string // what its descriptors lead to
}

// String is its command line.
func (p Program) String() string { return strings.Join(p.Args, " ") }

// traceEnv makes a program of this package the tracer; its value is a tracing.
const traceEnv = "HOLDFAST_TEST_TRACE"

// tracing is what a tracer is told.
type tracing struct {
	Args, Env []string
	Files     int // that holdfast gets, from its number 3 on
}

// event is what a tracer tells.
type event struct {
	Program *Program `json:",omitempty"`
	Ended   *int     `json:",omitempty"` // status of holdfast
}

// StartTrace starts holdfast with an environment and, from number 3 on, files that its parent has
// forgotten to close.
func StartTrace(t testing.TB, env []string, files []*os.File, args ...string) *Trace {
	t.Helper()
	out, err := os.CreateTemp(t.TempDir(), "out")
	if err != nil {
		t.Fatal(err)
	}
	told, err := json.Marshal(tracing{Args: append([]string{binary}, args...), Env: env, Files: len(files)})
	if err != nil {
		t.Fatal(err)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	tr := &Trace{tracer: exec.Command(exe), out: out, ended: make(chan struct{})}
	tr.tracer.Env = append(os.Environ(), traceEnv+"="+string(told))
	tr.tracer.Stderr, tr.tracer.ExtraFiles = out, files
	says, err := tr.tracer.StdoutPipe()
	if err == nil {
		err = tr.tracer.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	over := make(chan error, 1)
	go func() { over <- tr.listen(says) }()
	t.Cleanup(func() {
		tr.Signal(syscall.SIGTERM)
		if err := errors.Join(<-over, tr.tracer.Wait()); err != nil {
			t.Errorf("trace holdfast: %v\n%s", err, tr.Said())
		}
	})
	return tr
}

func (tr *Trace) listen(r io.Reader) error {
	for dec := json.NewDecoder(bufio.NewReader(r)); ; {
		var e event
		if err := dec.Decode(&e); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		tr.mu.Lock()
		if e.Program != nil {
			tr.seen = append(tr.seen, *e.Program)
		}
		tr.mu.Unlock()
		if e.Ended != nil {
			tr.status = *e.Ended
			close(tr.ended)
		}
	}
}

// Programs returns what has begun to run so far, except for holdfast itself.
func (tr *Trace) Programs() []Program {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	return append([]Program(nil), tr.seen...)
}

// Said returns what holdfast has printed so far.
func (tr *Trace) Said() string {
	text, _ := os.ReadFile(tr.out.Name())
	return string(text)
}

// Signal sends holdfast a signal; SIGTERM ends all that it has started, too.
func (tr *Trace) Signal(s syscall.Signal) { _ = tr.tracer.Process.Signal(s) }

// Finish waits for the end of holdfast, which must have status.
func (tr *Trace) Finish(t testing.TB, status int) {
	t.Helper()
	Until(t, "holdfast has ended", func() bool {
		select {
		case <-tr.ended:
			return true
		default:
			return false
		}
	})
	if tr.status != status {
		t.Fatalf("exit status %d, want %d:\n%s", tr.status, status, tr.Said())
	}
}

// tracer is the other process.
type tracer struct {
	told tracing
	say  *json.Encoder
	root int

	mu    sync.Mutex
	alive map[int]bool // processes that run a program, and whose end was not seen
}

// trace plays the tracer. All that it asks of the kernel must be asked by one thread.
func trace(text string) error {
	runtime.LockOSThread()
	tr := &tracer{say: json.NewEncoder(os.Stdout), alive: map[int]bool{}}
	if err := json.Unmarshal([]byte(text), &tr.told); err != nil {
		return err
	}
	if err := tr.start(); err != nil {
		return err
	}
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	go func() {
		for s := range signals {
			tr.pass(s.(syscall.Signal))
		}
	}()
	_ = unix.PtraceCont(tr.root, 0)
	for {
		var ws unix.WaitStatus
		pid, err := unix.Wait4(-1, &ws, unix.WALL, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.ECHILD):
			return nil
		case err != nil:
			return err
		default:
			tr.event(pid, ws)
		}
	}
}

// start starts holdfast, which is stopped.
func (tr *tracer) start() error {
	null, err := os.Open(os.DevNull)
	if err != nil {
		return err
	}
	files := []*os.File{null, os.Stderr, os.Stderr}
	for n := range tr.told.Files {
		files = append(files, os.NewFile(uintptr(3+n), "handed"))
	}
	p, err := os.StartProcess(tr.told.Args[0], tr.told.Args, &os.ProcAttr{Env: tr.told.Env, Files: files,
		Sys: &syscall.SysProcAttr{Ptrace: true}})
	if err != nil {
		return err
	}
	tr.root = p.Pid
	tr.alive[tr.root] = true
	var ws unix.WaitStatus
	if _, err := unix.Wait4(tr.root, &ws, unix.WALL, nil); err != nil {
		return err
	}
	return unix.PtraceSetOptions(tr.root, unix.PTRACE_O_EXITKILL|unix.PTRACE_O_TRACEFORK|unix.PTRACE_O_TRACEVFORK|
		unix.PTRACE_O_TRACECLONE|unix.PTRACE_O_TRACEEXEC)
}

// pass sends holdfast a signal, or ends everything.
func (tr *tracer) pass(s syscall.Signal) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	if s != syscall.SIGTERM {
		if tr.alive[tr.root] {
			_ = unix.Kill(tr.root, s)
		}
		return
	}
	for pid := range tr.alive {
		_ = unix.Kill(pid, unix.SIGKILL)
	}
}

func (tr *tracer) event(pid int, ws unix.WaitStatus) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	if ws.Exited() || ws.Signaled() {
		delete(tr.alive, pid)
		if status := ws.ExitStatus(); pid == tr.root {
			_ = tr.say.Encode(event{Ended: &status})
		}
		return
	}
	pass := int(ws.StopSignal())
	switch {
	case ws.StopSignal() == unix.SIGTRAP && ws.TrapCause() == unix.PTRACE_EVENT_EXEC:
		tr.alive[pid] = true
		_ = tr.say.Encode(event{Program: look(pid)})
		pass = 0
	case ws.StopSignal() == unix.SIGTRAP && ws.TrapCause() > 0, ws.StopSignal() == unix.SIGSTOP: // its first
		pass = 0
	}
	_ = unix.PtraceCont(pid, pass) // one that was killed meanwhile is gone
}

func look(pid int) *Program {
	dir := fmt.Sprintf("/proc/%d", pid)
	p := &Program{PID: pid, Args: zeroSeparated(dir + "/cmdline"), Env: zeroSeparated(dir + "/environ"),
		Files: map[int]string{}}
	p.Path, _ = os.Readlink(dir + "/exe")
	fds, _ := filepath.Glob(dir + "/fd/*") // the pattern is well formed
	for _, path := range fds {
		n, _ := strconv.Atoi(filepath.Base(path))
		p.Files[n], _ = os.Readlink(path)
	}
	return p
}

func zeroSeparated(path string) (out []string) {
	text, _ := os.ReadFile(path)
	for part := range bytes.SplitSeq(bytes.TrimSuffix(text, []byte{0}), []byte{0}) {
		out = append(out, string(part))
	}
	return out
}
