package libvirt_test

import (
	"bufio"
	"io"
	"path/filepath"
	"strings"

	"github.com/holdfast-vm/holdfast/internal/capture"
	capturer "github.com/holdfast-vm/holdfast/internal/capture/libvirt"
	"github.com/holdfast-vm/holdfast/internal/hypervisor/libvirt/rpc"
)

// watch starts a watch over the machine, which has been told that it is about to be suspended, and
// suspends the machine.
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
	_, err := io.WriteString(in, "suspending\n")
	l.ok(err)
	l.ok(l.client.DomainSuspend(l.ctx, l.dom))
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

func (l *lab) requireRuns() {
	l.Helper()
	st, err := l.client.DomainState(l.ctx, l.dom)
	l.ok(err)
	if st.State != rpc.StateRunning {
		l.Fatalf("the machine is in state %d", st.State)
	}
}

// A machine that was suspended for the instant runs again when the process that suspended it dies,
// and when it only stops; what was captured in the latter case is known to be in doubt. Where all
// goes well the watch does nothing.
func testWatch(l *lab) {
	in, _, done := l.watch()
	l.ok(in.Close())
	l.ok(<-done)
	l.requireRuns()

	in, out, done := l.watch()
	for st, err := l.client.DomainState(l.ctx, l.dom); st.State != rpc.StateRunning; st,
		err = l.client.DomainState(l.ctx, l.dom) {
		l.ok(err)
	}
	_, err := io.WriteString(in, "resumed\n")
	l.ok(err)
	l.says(out, "woken\n")
	l.ok(<-done)

	in, out, done = l.watch()
	l.ok(l.client.DomainResume(l.ctx, l.dom))
	_, err = io.WriteString(in, "resumed\n")
	l.ok(err)
	l.says(out, "unharmed\n")
	l.ok(<-done)
}

// An instant in which the machine had to be resumed is taken again, and no change is lost.
func testInstantAgain(l *lab) {
	l.commit(l.capture(l.plan(), capture.Hooks{}))
	first := l.current()
	l.write("vda", 1<<20, 4096, 7)
	l.write("vdb", 2<<20, 4096, 8)
	once := filepath.Join(l.TempDir(), "once")
	usual := l.capturer
	l.capturer = capturer.New(l.host, l.state).WithWatch("sh", "-c", `echo ready; read a; read b; if [ -e `+once+` ]; then echo unharmed; else : >`+once+`; echo woken; fi`)
	r := l.capture(l.plan(), capture.Hooks{})
	l.tracked(r, "vda", "vdb")
	l.same(l.model)
	l.commit(r)
	l.clean(l.current())
	if l.current() == first {
		l.Error("no new epoch was begun")
	}

	l.write("vda", 3<<20, 4096, 9)
	l.capturer = capturer.New(l.host, l.state).WithWatch("sh", "-c", `echo ready; read a; read b; echo woken`)
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
