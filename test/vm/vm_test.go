package vm_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-vm/holdfast/test/vm"
	"github.com/holdfast-vm/holdfast/test/vm/libvirtd"
	"github.com/holdfast-vm/holdfast/test/vm/wgen"
)

const patience = time.Minute

// agent sends commands to the product's guest agent channel, as the product would.
type agent struct {
	t   *testing.T
	in  *json.Decoder
	out net.Conn
}

func dialAgent(t *testing.T, path string) *agent {
	t.Helper()
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return &agent{t: t, in: json.NewDecoder(conn), out: conn}
}

// call returns what the agent returned, or its error.
func (a *agent) call(command string) (json.RawMessage, error) {
	a.t.Helper()
	a.out.SetDeadline(time.Now().Add(patience))
	if _, err := fmt.Fprintf(a.out, `{"execute":%q}`+"\n", command); err != nil {
		a.t.Fatal(err)
	}
	var reply struct {
		Return json.RawMessage
		Error  *struct{ Desc string }
	}
	if err := a.in.Decode(&reply); err != nil {
		a.t.Fatalf("%s: %v", command, err)
	}
	if reply.Error != nil {
		return nil, errors.New(reply.Error.Desc)
	}
	return reply.Return, nil
}

func (a *agent) must(command string) string {
	a.t.Helper()
	result, err := a.call(command)
	if err != nil {
		a.t.Fatalf("%s: %v", command, err)
	}
	return string(result)
}

func TestQEMUGuest(t *testing.T) {
	v := vm.StartQEMU(t, vm.Options{Name: "lab one"})
	if err := errors.Join(v.WaitAcked("ACKED", 20, patience), v.WaitAcked("COMMITTED", 3, patience)); err != nil {
		t.Fatal(err)
	}
	t.Run("agent", func(t *testing.T) { dialAgent(t, v.QGAPath).must("guest-ping") })
	t.Run("hooks hold the database", func(t *testing.T) { hooksHold(t, v) })
	t.Run("a failing hook refuses the freeze", func(t *testing.T) { failingHook(t, v) })
	t.Run("a lost lock fails the thaw", func(t *testing.T) { lostLock(t, v) })
	t.Run("power cut", func(t *testing.T) { powerCut(t, v) })
}

// While frozen no row is committed, and the last one is the one that the hook recorded.
func hooksHold(t *testing.T, v *vm.VM) {
	a := dialAgent(t, v.QGAPath)
	if frozen := a.must("guest-fsfreeze-freeze"); frozen != "1" {
		t.Errorf("freeze returned %s file systems, want 1", frozen)
	}
	if status := a.must("guest-fsfreeze-status"); status != `"frozen"` {
		t.Errorf("status is %s", status)
	}
	held := v.MustExec(t, "cat /var/lib/app/quiesced")
	// Steps of the other job go on: they are the clock that shows that time passes.
	if err := v.WaitAcked("ACKED", v.Acked("ACKED")+50, patience); err != nil {
		t.Fatal(err)
	}
	if rows := v.MustExec(t,
		"sqlite3 -readonly 'file:/var/lib/app/app.db?immutable=1' 'SELECT max(n) FROM entry'"); rows != held {
		t.Errorf("row %s was committed after the hook held row %s", rows, held)
	}
	if thawed := a.must("guest-fsfreeze-thaw"); thawed != "1" {
		t.Errorf("thaw returned %s", thawed)
	}
	n, err := strconv.ParseUint(held, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	if err := v.WaitAcked("COMMITTED", n+2, patience); err != nil {
		t.Fatal(err)
	}
	log := v.MustExec(t, "cat /var/log/qga-fsfreeze-hook.log")
	for _, want := range []string{"freeze: 2 hooks done", "thaw: 2 hooks done"} {
		if !strings.Contains(log, want) {
			t.Errorf("hook log lacks %q:\n%s", want, log)
		}
	}
}

func failingHook(t *testing.T, v *vm.VM) {
	a := dialAgent(t, v.QGAPath)
	before := v.MustExec(t, "cat /var/lib/app/freezes; touch /run/fail-freeze")
	if _, err := a.call("guest-fsfreeze-freeze"); err == nil {
		t.Error("a freeze with a failing hook succeeded")
	}
	if status := a.must("guest-fsfreeze-status"); status != `"thawed"` {
		t.Errorf("status after a refused freeze is %s", status)
	}
	if after := v.MustExec(t, "rm /run/fail-freeze; cat /var/lib/app/freezes"); after != before {
		t.Errorf("freezes counted: %s, then %s", before, after)
	}
	// The lock that the first hook took was given back.
	if err := v.WaitAcked("COMMITTED", v.Acked("COMMITTED")+2, patience); err != nil {
		t.Error(err)
	}
}

func lostLock(t *testing.T, v *vm.VM) {
	a := dialAgent(t, v.QGAPath)
	a.must("guest-fsfreeze-freeze")
	v.MustExec(t, "kill -s KILL -- -$(cat /run/fsfreeze-sqlite/1.pid)")
	if _, err := a.call("guest-fsfreeze-thaw"); err == nil {
		t.Error("a thaw after the lock was lost succeeded")
	}
	if status := a.must("guest-fsfreeze-status"); status != `"thawed"` {
		t.Errorf("status after the thaw is %s", status)
	}
}

// After a power cut the disks show one instant, a torn pair does not, and a new boot carries on.
func powerCut(t *testing.T, v *vm.VM) {
	early := vm.Disk{Path: filepath.Join(t.TempDir(), "early.raw"), Format: "raw"}
	acked, committed := v.Acked("ACKED"), v.Acked("COMMITTED")
	copyFile(t, v.Disks[2].Path, early.Path)
	if err := v.WaitAcked("ACKED", acked+100, patience); err != nil {
		t.Fatal(err)
	}
	if err := v.Kill(); err != nil {
		t.Fatal(err)
	}
	_, nB, err := vm.CheckDisks(t.Context(), v.Disks[1], v.Disks[2])
	if err != nil || nB < acked {
		t.Fatalf("after a power cut: step %d, %v; step %d was acknowledged", nB, err, acked)
	}
	if _, _, err := vm.CheckDisks(t.Context(), v.Disks[1], early); !errors.Is(err, wgen.ErrInconsistent) {
		t.Errorf("vdb with a vdc of another instant: %v, want ErrInconsistent", err)
	}

	again := vm.StartQEMU(t, vm.Options{System: v.Disks[0], DataA: v.Disks[1], DataB: v.Disks[2]})
	begin, err := again.WaitConsole(`WGEN-BEGIN (\d+)`, patience)
	if err != nil {
		t.Fatal(err)
	}
	if begin[1] != fmt.Sprint(nB) {
		t.Errorf("the writer carries on at step %s, want %d", begin[1], nB)
	}
	count, last, err := again.Rows()
	if err != nil || count != last || last < committed {
		t.Errorf("%d rows up to %d, %v; row %d was committed", count, last, err, committed)
	}
	if check := again.MustExec(t, "lab check"); check != "ok" {
		t.Errorf("database: %s", check)
	}
	if err := again.Shutdown(); err != nil {
		t.Error(err)
	}
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	content, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, content, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestLibvirtGuest(t *testing.T) {
	uri := libvirtd.Start(t)
	v := vm.DefineLibvirt(t, uri, vm.Options{Name: "lab two"})
	if err := v.WaitAcked("COMMITTED", 2, patience); err != nil {
		t.Fatal(err)
	}
	ping := exec.Command("virsh", "--connect", uri, "qemu-agent-command", v.UUID, `{"execute":"guest-ping"}`)
	if out, err := ping.CombinedOutput(); err != nil {
		t.Errorf("guest-ping through libvirt: %v: %s", err, out)
	}
	if err := v.Shutdown(); err != nil {
		t.Fatal(err)
	}
	if nA, nB, err := vm.CheckDisks(t.Context(), v.Disks[1], v.Disks[2]); err != nil || nA != nB || nB == 0 {
		t.Errorf("after a clean shutdown: A=%d B=%d, %v", nA, nB, err)
	}
	if err := v.Start(); err != nil {
		t.Fatal(err)
	}
	if err := v.Kill(); err != nil {
		t.Fatal(err)
	}
}
