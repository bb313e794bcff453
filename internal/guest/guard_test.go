package guest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-vm/holdfast/internal/guest/guesttest"
	"github.com/holdfast-vm/holdfast/internal/hypervisor"
	"github.com/holdfast-vm/holdfast/internal/point"
)

// This test binary is also the guard, and the process that wants a point.
const roleEnv = "HOLDFAST_GUEST_TEST_ROLE"

func TestMain(m *testing.M) {
	switch os.Getenv(roleEnv) {
	case "guard":
		if err := GuardMain(context.Background(), os.Stdin, os.Stdout, openSocket); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	case "parent":
		parentMain()
	default:
		os.Exit(m.Run())
	}
}

func openSocket(ctx context.Context, path string) (hypervisor.Agent, error) {
	c, err := DialUnix(ctx, path)
	if err != nil {
		return nil, err
	}
	return c, nil
}

// testGuard starts this test binary as its guard.
func testGuard(stateDir string) Guard {
	return Guard{
		Command:  []string{"/proc/self/exe"},
		Env:      []string{roleEnv + "=guard", "GORACE=atexit_sleep_ms=0"},
		StateDir: stateDir,
		Open:     openSocket,
	}
}

// parentMain holds the guest of the socket in its first argument, says so, and waits to be killed.
func parentMain() {
	spec := GuardSpec{Machine: "m", Agent: os.Args[1], Want: point.Filesystem, Limits: Limits{Hold: time.Second}}
	if os.Args[3] == "hold" {
		spec.Limits.Hold = time.Hour
	}
	ctx := context.Background()
	h, err := testGuard(os.Args[2]).Start(ctx, spec)
	if err == nil {
		err = h.Quiesce(ctx)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(h.cmd.Process.Pid, h.Outcome().Reason)
	<-h.ended // as long as the guard lives
}

func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "hf")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// serve starts g's agent on a socket.
func serve(t *testing.T, g *guesttest.Guest) string {
	t.Helper()
	path := filepath.Join(shortDir(t), "qga")
	g.Listen(t, path)
	return path
}

// eventually waits for a condition that another process brings about.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	late := time.After(2 * time.Minute)
	for !ok() {
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("not within two minutes: %s", what)
		}
	}
}

// parent is a process that holds a guest through a guard.
type parent struct {
	cmd   *exec.Cmd
	guard int // process ID
}

func startParent(t *testing.T, socket, stateDir, mode string) *parent {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", socket, stateDir, mode)
	cmd.Env = append(os.Environ(), roleEnv+"=parent")
	var errs tail
	cmd.Stderr = &errs
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := &parent{cmd: cmd}
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGCONT)
		cmd.Process.Kill()
		cmd.Wait()
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("the parent said nothing: %v, %s", err, &errs)
	}
	if _, err := fmt.Sscan(line, &p.guard); err != nil || !strings.Contains(line, "held") {
		t.Fatalf("the parent said %q", line)
	}
	t.Cleanup(func() { eventually(t, "the guard has ended", func() bool { return !alive(p.guard) }) })
	return p
}

// threads returns the states of the threads of a process, such as S, T or Z. A process holds its
// files until its last thread is gone.
func threads(pid int) string {
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	states := ""
	for _, task := range tasks {
		if stat, err := os.ReadFile(task); err == nil {
			_, rest, _ := strings.Cut(string(stat), ") ")
			states += rest[:1]
		}
	}
	return states
}

// alive reports whether a process exists that is more than a zombie.
func alive(pid int) bool { return strings.Trim(threads(pid), "ZX") != "" }

func (p *parent) signal(t *testing.T, sig syscall.Signal) {
	t.Helper()
	if err := p.cmd.Process.Signal(sig); err != nil {
		t.Fatal(err)
	}
}

// stopGuard stops the guard, all threads of it.
func (p *parent) stopGuard(t *testing.T) {
	t.Helper()
	if err := syscall.Kill(p.guard, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the guard is stopped", func() bool { return strings.Trim(threads(p.guard), "T") == "" })
}

func noNote(dir string) func() bool {
	return func() bool {
		files, err := os.ReadDir(dir)
		return err == nil && len(files) == 0
	}
}

func TestParentKilledWhileTheGuestIsHeld(t *testing.T) {
	g, dir := plain(), t.TempDir()
	p := startParent(t, serve(t, g), dir, "hold")
	if !g.Held() || noNote(dir)() {
		t.Fatal("the guest is not held, or not noted as held")
	}
	p.signal(t, syscall.SIGKILL)
	eventually(t, "the guest is thawed", g.Thawed)
	eventually(t, "the note is gone", noNote(dir))
}

func TestParentStoppedWhileTheGuestIsHeld(t *testing.T) {
	g, dir := plain(), t.TempDir()
	p := startParent(t, serve(t, g), dir, "limit")
	p.signal(t, syscall.SIGSTOP)
	eventually(t, "the guest is thawed", g.Thawed)
	eventually(t, "the note is gone", noNote(dir))
}

func TestGuardKilledWhileTheGuestIsHeld(t *testing.T) {
	g, dir := plain(), t.TempDir()
	p := startParent(t, serve(t, g), dir, "hold")
	if err := syscall.Kill(p.guard, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the guest is thawed", g.Thawed)
	eventually(t, "the note is gone", noNote(dir))
}

func TestGuardStoppedWhileTheGuestIsHeld(t *testing.T) {
	g, dir := plain(), t.TempDir()
	h := quiesced(t, testGuard(dir), GuardSpec{Machine: "m", Agent: serve(t, g), Want: point.Filesystem})
	(&parent{guard: h.cmd.Process.Pid}).stopGuard(t)
	if !g.Held() || !h.watch.Stop() {
		t.Fatal("the guest is not held, or nobody watches the guard")
	}
	h.watch.Reset(0) // the time is up
	<-h.ended
	if err := h.Thaw(t.Context()); err != nil {
		t.Fatal(err)
	}
	if out := h.Outcome(); out.Level != point.Crash || !strings.Contains(out.Reason, "died") || !g.Thawed() ||
		!noNote(dir)() {
		t.Errorf("got %+v, thawed %v", out, g.Thawed())
	}
}

func TestGuardTerminatedWhileTheGuestIsHeld(t *testing.T) {
	g, dir := plain(), t.TempDir()
	p := startParent(t, serve(t, g), dir, "hold")
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGHUP, syscall.SIGTERM} {
		if err := syscall.Kill(p.guard, sig); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "the guest is thawed", g.Thawed)
	eventually(t, "the note is gone", noNote(dir))
}

func TestBothKilledWhileTheGuestIsHeld(t *testing.T) {
	g, dir := plain(), t.TempDir()
	socket := serve(t, g)
	p := startParent(t, socket, dir, "hold")
	p.stopGuard(t) // so that it does not see to the guest
	p.signal(t, syscall.SIGKILL)
	p.cmd.Wait()
	if err := syscall.Kill(p.guard, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the guard is dead", func() bool { return !alive(p.guard) })
	if !g.Held() {
		t.Fatal("the guest is not held: nothing is tested")
	}
	left, err := Leftovers(dir)
	if err != nil || len(left) != 1 || left[0].Machine != "m" || left[0].Agent != socket {
		t.Fatalf("Leftovers() = %v, %v", left, err)
	}
	did, err := ThawLeftover(t.Context(), opener(socket), dir, "m")
	if !did || err != nil || !g.Thawed() || !noNote(dir)() {
		t.Errorf("ThawLeftover() = %v, %v; thawed %v", did, err, g.Thawed())
	}
}

// The next quiesce of a guest that was left held releases it first, and is then like any other.
func TestNextQuiesceThawsALeftover(t *testing.T) {
	g, dir := plain(), t.TempDir()
	socket := serve(t, g)
	c, err := newClaim(dir, Leftover{Machine: "m", Agent: socket})
	if err != nil {
		t.Fatal(err)
	}
	g.Freeze()
	c.f.Close() // as the death of its process does
	h := quiesced(t, testGuard(dir), GuardSpec{Machine: "m", Agent: socket, Want: point.Filesystem})
	if err := h.Thaw(t.Context()); err != nil {
		t.Fatal(err)
	}
	if out := h.Outcome(); out.Level != point.Filesystem || !g.Thawed() || g.Calls("guest-fsfreeze-thaw") != 2 {
		t.Errorf("got %+v, thawed %v, after %v", out, g.Thawed(), g.Commands())
	}
}

func opener(socket string) Opener {
	return func(ctx context.Context) (hypervisor.Agent, error) { return openSocket(ctx, socket) }
}

func quiesced(t *testing.T, g Guard, spec GuardSpec) *Held {
	t.Helper()
	h, err := g.Start(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	if err := h.Quiesce(t.Context()); err != nil {
		t.Fatal(err)
	}
	return h
}

func TestGuardQuiescesAndThaws(t *testing.T) {
	g, dir := withHooks(ourHook, "/x/db.sh"), t.TempDir()
	h := quiesced(t, testGuard(dir), GuardSpec{Machine: "m", Agent: serve(t, g), Want: point.Application})
	if !g.Held() {
		t.Errorf("the guest is not held: %+v", h.Outcome())
	}
	if left, err := Leftovers(dir); err != nil || len(left) != 0 {
		t.Errorf("what a live guard holds is left over: %v, %v", left, err)
	}
	if did, err := ThawLeftover(t.Context(), nil, dir, "m"); did || err != nil || !g.Held() {
		t.Errorf("ThawLeftover() of what a live guard holds = %v, %v", did, err)
	}
	if err := h.Thaw(t.Context()); err != nil {
		t.Fatal(err)
	}
	out := h.Outcome()
	if out.Level != point.Application || out.Held <= 0 || out.Stuck != "" || !g.Thawed() || !noNote(dir)() {
		t.Errorf("got %+v, thawed %v", out, g.Thawed())
	}
	if r := h.Guest(); r == nil || r.Agent != "7.2.22" {
		t.Errorf("Guest() = %+v", r)
	}
}

func TestCloseThaws(t *testing.T) {
	g, dir := plain(), t.TempDir()
	h := quiesced(t, testGuard(dir), GuardSpec{Machine: "m", Agent: serve(t, g), Want: point.Filesystem})
	h.Close()
	if out := h.Outcome(); out.Level != point.Crash || !g.Thawed() || !noNote(dir)() {
		t.Errorf("got %+v, thawed %v", out, g.Thawed())
	}
}

func TestCloseWithoutQuiesce(t *testing.T) {
	g := plain()
	h, err := testGuard(t.TempDir()).Start(t.Context(),
		GuardSpec{Machine: "m", Agent: serve(t, g), Want: point.Filesystem})
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Thaw(t.Context()); err != nil { // as a capture does that failed early
		t.Error(err)
	}
	h.Close()
	if out := h.Outcome(); out.Level != point.Crash || out.Reason == "" || g.Calls("guest-fsfreeze-freeze") != 0 {
		t.Errorf("got %+v after %v", out, g.Commands())
	}
}

func TestQuiesceIsCancelled(t *testing.T) {
	g := faulty(plain(), "guest-fsfreeze-freeze", guesttest.Fault{Kind: guesttest.Mute})
	h, err := testGuard(t.TempDir()).Start(t.Context(),
		GuardSpec{Machine: "m", Agent: serve(t, g), Want: point.Filesystem})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	failed := make(chan error)
	go func() { failed <- h.Quiesce(ctx) }()
	eventually(t, "the freeze was sent", func() bool { return g.Calls("guest-fsfreeze-freeze") > 0 })
	cancel()
	if err := <-failed; !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled Quiesce returned %v", err)
	}
	h.Close()
	if !g.Thawed() {
		t.Error("the guest is still held")
	}
}

func TestCrashLeavesTheGuestAlone(t *testing.T) {
	g := plain()
	h := quiesced(t, testGuard(t.TempDir()), GuardSpec{Machine: "m", Agent: serve(t, g), Want: point.Crash})
	if err := h.Thaw(t.Context()); err != nil {
		t.Error(err)
	}
	if out := h.Outcome(); out.Level != point.Crash || out.Reason == "" || len(g.Commands()) != 0 {
		t.Errorf("got %+v after %v", out, g.Commands())
	}
}

func TestMachineWithoutAgent(t *testing.T) {
	h := quiesced(t, testGuard(t.TempDir()),
		GuardSpec{Machine: "m", Agent: filepath.Join(shortDir(t), "qga"), Want: point.Application})
	if out := h.Outcome(); out.Level != point.Crash || !strings.Contains(out.Reason, "no guest agent") {
		t.Errorf("got %+v", out)
	}
}

func TestGuardThatCanNotStart(t *testing.T) {
	g := testGuard(t.TempDir())
	g.Command = []string{"/nonexistent/holdfast"}
	h := quiesced(t, g, GuardSpec{Machine: "m", Want: point.Application})
	if out := h.Outcome(); out.Level != point.Crash || !strings.Contains(out.Reason, "could not be started") {
		t.Errorf("got %+v", out)
	}
}

// Where the note cannot be written, nothing is held.
func TestNoNoteNoQuiesce(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	g := plain()
	h := quiesced(t, testGuard(file), GuardSpec{Machine: "m", Agent: serve(t, g), Want: point.Filesystem})
	if out := h.Outcome(); out.Level != point.Crash || g.Calls("guest-fsfreeze-freeze") != 0 {
		t.Errorf("got %+v after %v", out, g.Commands())
	}
}

func TestTwoGuardsOfOneGuest(t *testing.T) {
	g, dir := plain(), t.TempDir()
	first, second := serve(t, g), filepath.Join(shortDir(t), "qga")
	g.Listen(t, second)
	a := quiesced(t, testGuard(dir), GuardSpec{Machine: "m", Agent: first, Want: point.Filesystem})
	g.Revive(true) // the second sees a guest that seems free
	b := quiesced(t, testGuard(dir), GuardSpec{Machine: "m", Agent: second, Want: point.Filesystem})
	if out := b.Outcome(); out.Level != point.Crash || out.Reason != ErrHeldByUs.Error() {
		t.Errorf("the second got %+v", out)
	}
	if err := a.Thaw(t.Context()); err != nil || !noNote(dir)() {
		t.Errorf("Thaw() = %v", err)
	}
}
