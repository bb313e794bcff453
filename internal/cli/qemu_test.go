package cli_test

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/holdfast-vm/holdfast/internal/guest/guesttest"
	"github.com/holdfast-vm/holdfast/internal/qmp"
)

// qemuCmd runs "qemu VAR ARGS...": it starts a QEMU with no guest running in it and puts the path
// of its QMP socket into VAR. It is ready when the command returns, and ended with the script.
func qemuCmd(ts *testscript.TestScript, _ bool, args []string) {
	dir, err := os.MkdirTemp("", "hf") // socket paths are short
	ts.Check(err)
	ts.Defer(func() { os.RemoveAll(dir) })
	pidFile, socket := filepath.Join(dir, "pid"), filepath.Join(dir, "q")
	ts.Check(ts.Exec("qemu-system-x86_64", append([]string{
		"-machine", "q35,accel=tcg", "-m", "64", "-S", "-display", "none", "-nodefaults", "-daemonize", "-pidfile",
		pidFile,
		"-qmp", "unix:" + socket + ",server=on,wait=off", "-qmp", "unix:" + hmpSocket(socket) + ",server=on,wait=off",
	}, args[1:]...)...))
	data, err := os.ReadFile(pidFile)
	ts.Check(err)
	pid, err := strconv.Atoi(strings.TrimSpace(string(data)))
	ts.Check(err)
	ts.Defer(func() { syscall.Kill(pid, syscall.SIGKILL) })
	ts.Setenv(args[0], socket)
	ts.Setenv(args[0]+"_PID", strconv.Itoa(pid))
}

// agentCmd runs "agent VAR": a scripted guest agent of a Linux serves a socket, whose path is put
// into VAR, until the script ends.
func agentCmd(ts *testscript.TestScript, _ bool, args []string) {
	dir, err := os.MkdirTemp("", "hf")
	ts.Check(err)
	ts.Defer(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "a")
	l, err := net.Listen("unix", path)
	ts.Check(err)
	ts.Defer(func() { l.Close() })
	var g guesttest.Guest
	go g.Serve(l)
	ts.Setenv(args[0], path)
}

// hmpSocket is the second monitor of a QEMU: the first is holdfast's.
func hmpSocket(socket string) string { return socket + "2" }

// hmpCmd runs "hmp SOCKET COMMAND": a line of QEMU's human monitor.
func hmpCmd(ts *testscript.TestScript, _ bool, args []string) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	c, err := qmp.Dial(ctx, hmpSocket(args[0]))
	ts.Check(err)
	defer c.Close()
	var said string
	ts.Check(c.Execute(ctx, "human-monitor-command", map[string]string{"command-line": args[1]}, &said))
	if strings.Contains(strings.ToLower(said), "error") || strings.Contains(said, "failed") {
		ts.Fatalf("%s: %s", args[1], said)
	}
}

// newVMCmd runs "newvm VAR": VAR is the path of a monitor socket that nobody serves yet. The QEMU
// that serves it at the end of the script is told to quit.
func newVMCmd(ts *testscript.TestScript, _ bool, args []string) {
	dir, err := os.MkdirTemp("", "hf")
	ts.Check(err)
	ts.Defer(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "q")
	ts.Defer(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		c, err := qmp.Dial(ctx, path)
		if err != nil {
			return
		}
		defer c.Close()
		c.Execute(ctx, "quit", nil, nil)
		<-c.Done()
	})
	ts.Setenv(args[0], path)
}
