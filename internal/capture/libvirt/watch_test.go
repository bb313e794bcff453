package libvirt_test

import (
	"bufio"
	"io"
	"path/filepath"
	"strings"
	"time"

	"github.com/holdfast-vm/holdfast/internal/capture"
	capturer "github.com/holdfast-vm/holdfast/internal/capture/libvirt"
	"github.com/holdfast-vm/holdfast/internal/hypervisor/libvirt/rpc"
)

// watch starts a watch over the machine, which has suspended it.
func (l *lab) watch() (in io.WriteCloser, out *bufio.Reader, done chan error) {
	fromUs, in := io.Pipe()
	toUs, itsOut := io.Pipe()
	done = make(chan error, 1)
	go func() {
		done <- capturer.Watch(l.ctx, fromUs, itsOut, l.host.URI(), "one")
		itsOut.Close()
	}()
	out = bufio.NewReader(toUs)
	l.says(out, "ready\n")
	_, err := io.WriteString(in, "suspend\n")
	l.ok(err)
	l.says(out, "suspended\n")
	l.requireState(rpc.StatePaused)
	return in, out, done
}

func (l *lab) says(out *bufio.Reader, want string) {
	l.Helper()
	line, err := out.ReadString('\n')
	l.ok(err)
	if line != want {
		l.Fatalf("the watch says %q, not %q", line, want)
	}
}

func (l *lab) requireRuns() { l.requireState(rpc.StateRunning) }

func (l *lab) requireState(want int32) {
	l.Helper()
	st, err := l.client.DomainState(l.ctx, l.dom)
	l.ok(err)
	if st.State != want {
		l.Fatalf("the machine is in state %d, not in %d", st.State, want)
	}
}

// A machine that was suspended for the instant runs again when the process that asked for it dies,
// and when it only stops; what was captured in the latter case is known to be in doubt. What an
// administrator pauses after that stays paused.
func testWatch(l *lab) {
	in, _, done := l.watch()
	l.ok(in.Close())
	l.ok(<-done)
	l.requireRuns()

	in, out, done := l.watch()
	l.awaitState(rpc.StateRunning)
	l.ok(l.client.DomainSuspend(l.ctx, l.dom)) // an administrator
	_, err := io.WriteString(in, "resume\n")
	l.ok(err)
	l.says(out, "woken\n")
	l.ok(<-done)
	l.requireState(rpc.StatePaused)
	l.ok(l.client.DomainResume(l.ctx, l.dom))

	in, out, done = l.watch()
	l.ok(l.client.DomainResume(l.ctx, l.dom)) // an administrator, who pauses it again
	l.workFor(10 * time.Millisecond)
	l.ok(l.client.DomainSuspend(l.ctx, l.dom))
	_, err = io.WriteString(in, "resume\n")
	l.ok(err)
	l.says(out, "woken\n")
	l.ok(<-done)
	l.requireState(rpc.StatePaused)
	l.ok(l.client.DomainResume(l.ctx, l.dom))

	in, out, done = l.watch()
	_, err = io.WriteString(in, "resume\n")
	l.ok(err)
	l.says(out, "resumed\n")
	l.ok(<-done)
	l.requireRuns()
}

// A watch does not suspend, and so does not resume, what stands still already.
func testWatchOfPaused(l *lab) {
	l.ok(l.client.DomainSuspend(l.ctx, l.dom))
	var said strings.Builder
	l.ok(capturer.Watch(l.ctx, strings.NewReader("suspend\n"), &said, l.host.URI(), "one"))
	if said.String() != "ready\nstill\n" {
		l.Errorf("the watch says %q", said.String())
	}
	l.requireState(rpc.StatePaused)
	l.ok(l.client.DomainResume(l.ctx, l.dom))
}

func (l *lab) awaitState(want int32) {
	l.Helper()
	l.await(func() bool {
		st, err := l.client.DomainState(l.ctx, l.dom)
		l.ok(err)
		return st.State == want
	})
}

// A machine that somebody paused between the look at it and the suspension is not suspended, and so
// not resumed.
func testPausedMeanwhile(l *lab) {
	l.commit(l.capture(l.plan(), capture.Hooks{}))
	l.write("vda", 1<<20, 4096, 6)
	usual := l.capturer
	defer func() { l.capturer = usual }()
	l.capturer = capturer.New(l.host, capturer.Options{StateDir: l.state, Watch: []string{"sh", "-c",
		`virsh -q -c "$0" suspend one >&2; echo ready; read a; echo still`, l.daemon.URI}})
	r := l.capture(l.plan(), capture.Hooks{})
	l.tracked(r, "vda", "vdb")
	l.same(l.model)
	l.commit(r)
	l.requireState(rpc.StatePaused)
	l.ok(l.client.DomainResume(l.ctx, l.dom))
	l.clean(l.current())
}

// An instant in which the machine had to be resumed is taken again, and no change is lost.
func testInstantAgain(l *lab) {
	l.commit(l.capture(l.plan(), capture.Hooks{}))
	first := l.current()
	l.write("vda", 1<<20, 4096, 7)
	l.write("vdb", 2<<20, 4096, 8)
	once := filepath.Join(l.TempDir(), "once")
	usual := l.capturer
	l.capturer = capturer.New(l.host, capturer.Options{StateDir: l.state, Watch: []string{"sh", "-c", `echo ready; read a; echo suspended; read b; if [ -e ` + once + ` ]; then echo resumed; else : >` + once + `; echo woken; fi`}})
	r := l.capture(l.plan(), capture.Hooks{})
	l.tracked(r, "vda", "vdb")
	l.same(l.model)
	l.commit(r)
	l.clean(l.current())
	if l.current() == first {
		l.Error("no new epoch was begun")
	}

	l.write("vda", 3<<20, 4096, 9)
	l.capturer = capturer.New(l.host, capturer.Options{StateDir: l.state, Watch: []string{"sh", "-c", `echo ready; read a; echo suspended; read b; echo woken`}})
	r = l.capture(l.plan(), capture.Hooks{}) // all is read, which needs no watch
	if l.tracked(r); !strings.Contains(r.Disks[0].Reason, "too busy") {
		l.Errorf("read whole because %q", r.Disks[0].Reason)
	}
	l.same(l.model)
	l.commit(r)
	l.requireRuns()
	l.write("vdb", 3<<20, 4096, 9)
	l.capturer = usual
	r = l.capture(l.plan(), capture.Hooks{})
	l.tracked(r, "vda", "vdb")
	l.same(l.model)
	l.commit(r)
}
