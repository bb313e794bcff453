// Package libvirtd gives a test a libvirtd of its own.
//
// The daemon is a real one, in session mode, in its own user, process and mount namespaces and with
// all its directories in one short temporary directory: nothing of the machine's own libvirt is
// seen or touched, and neither the daemon nor any QEMU it started can outlive the test, not even
// one that is killed. Files of the test are reached under their usual paths, with the test's own
// rights.
package libvirtd

import (
	"context"
	"errors"
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

	"github.com/holdfast-vm/holdfast/internal/hypervisor/libvirt/rpc"
)

// Driver is what to open on the daemon's socket.
const Driver = "qemu:///session"

const startTimeout = 60 * time.Second

// Daemon is a libvirtd of one's own.
type Daemon struct {
	URI    string // for hypervisor/libvirt
	Socket string // its unix socket
	Dir    string // short; readable by the QEMUs it starts; removed at the end

	tb  testing.TB // nil if no test started it; then only Close may be called
	cmd *exec.Cmd
}

// Start starts a libvirtd and returns its URI. It ends with the test, and every QEMU it started
// with it.
func Start(tb testing.TB) string { return New(tb).URI }

// New starts a libvirtd that ends with the test, and every QEMU it started with it.
func New(tb testing.TB) *Daemon {
	tb.Helper()
	d, err := Launch()
	if err != nil {
		tb.Fatal(err)
	}
	d.tb = tb
	tb.Cleanup(func() {
		err := d.stop()
		d.logOnFailure()
		if err := errors.Join(err, os.RemoveAll(d.Dir)); err != nil {
			tb.Error(err)
		}
	})
	return d
}

// Launch starts a libvirtd that ends with Close or with the process, for a program that is not a
// test.
func Launch() (*Daemon, error) {
	dir, err := os.MkdirTemp("", "hf") // short: socket paths have 107 bytes
	if err != nil {
		return nil, fmt.Errorf("make a directory for libvirtd: %w", err)
	}
	d := &Daemon{Dir: dir, Socket: filepath.Join(dir, "r/libvirt/libvirt-sock")}
	d.URI = "qemu+unix:///session?socket=" + d.Socket + "&config=" + filepath.Join(dir, "c/libvirt")
	if err := errors.Join(d.configure(), d.loadProbes()); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	if err := d.run(); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	if err := d.wait(); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

// Close ends the daemon and every QEMU it started, and removes its directory.
func (d *Daemon) Close() error { return errors.Join(d.stop(), os.RemoveAll(d.Dir)) }

func (d *Daemon) configure() error {
	for _, sub := range []string{"c/libvirt", "r", "k", "d"} {
		if err := os.MkdirAll(filepath.Join(d.Dir, sub), 0o700); err != nil {
			return err
		}
	}
	return errors.Join(
		write(filepath.Join(d.Dir, "libvirtd.conf"),
			fmt.Sprintf("log_outputs=\"3:file:%s/log\"\nkeepalive_interval=1\n", d.Dir)),
		write(filepath.Join(d.Dir, "c/libvirt/qemu.conf"), "security_driver = \"none\"\nstdio_handler = \"file\"\n"))
}

func write(path, text string) error { return os.WriteFile(path, []byte(text), 0o600) }

// run starts the daemon, again and again, below a first process that reaps what QEMU leaves.
// Killing unshare kills that one, and the kernel then kills all the rest.
func (d *Daemon) run() error {
	// Entering a user namespace clears the signal that a parent's death would send, so the first
	// process waits for the end of its input too, which is this process' end.
	script := "while :; do /usr/sbin/libvirtd --config " + filepath.Join(d.Dir, "libvirtd.conf") +
		"; sleep 0.1; done & cat >/dev/null"
	d.cmd = exec.Command("unshare", "--user", "--map-user=1000", "--map-group=1000", "--pid", "--fork", "--kill-child",
		"--mount-proc", "sh", "-c", script)
	d.cmd.Env = append(os.Environ(), "HOME="+d.Dir,
		"XDG_CONFIG_HOME="+filepath.Join(d.Dir, "c"), "XDG_RUNTIME_DIR="+filepath.Join(d.Dir, "r"),
		"XDG_CACHE_HOME="+filepath.Join(d.Dir, "k"), "XDG_DATA_HOME="+filepath.Join(d.Dir, "d"))
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if _, err := d.cmd.StdinPipe(); err != nil {
		return err
	}
	out, err := os.Create(filepath.Join(d.Dir, "out"))
	if err != nil {
		return err
	}
	defer out.Close()
	d.cmd.Stdout, d.cmd.Stderr = out, out
	if err := d.cmd.Start(); err != nil {
		return fmt.Errorf("start libvirtd in namespaces of its own: %w", err)
	}
	return nil
}

// probes is what daemons of this process found out about the QEMU binaries, by file name: asking
// again takes each a second.
var probes sync.Map

func (d *Daemon) probeDir() string { return filepath.Join(d.Dir, "k/libvirt/qemu/capabilities") }

func (d *Daemon) loadProbes() error {
	err := os.MkdirAll(d.probeDir(), 0o700)
	probes.Range(func(name, text any) bool {
		err = errors.Join(err, write(filepath.Join(d.probeDir(), name.(string)), text.(string)))
		return true
	})
	return err
}

func (d *Daemon) saveProbes() {
	names, _ := filepath.Glob(filepath.Join(d.probeDir(), "*.xml"))
	for _, name := range names {
		if text, err := os.ReadFile(name); err == nil {
			probes.Store(filepath.Base(name), string(text))
		}
	}
}

// stop ends the daemon; its being killed is not an error.
func (d *Daemon) stop() error {
	d.cmd.Process.Kill()
	d.cmd.Wait()
	err := d.awaitEnd()
	d.saveProbes()
	return err
}

func (d *Daemon) logOnFailure() {
	if !d.tb.Failed() {
		return
	}
	for _, name := range []string{"out", "log"} {
		if text, err := os.ReadFile(filepath.Join(d.Dir, name)); err == nil && len(text) > 0 {
			d.tb.Logf("libvirtd %s:\n%s", name, text[max(0, len(text)-4000):])
		}
	}
}

// awaitEnd returns when the kernel has ended all that ran in the daemon's namespace, so that
// nothing is written any more.
func (d *Daemon) awaitEnd() error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(startTimeout)
	for d.process(func(args string) bool { return strings.Contains(args, d.Dir) }) != 0 {
		select {
		case <-tick.C:
		case <-deadline:
			return errors.New("libvirtd or a QEMU of it does not end")
		}
	}
	return nil
}

// wait returns when the daemon answers.
func (d *Daemon) wait() error {
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		c, err := rpc.Dial(ctx, d.Socket, Driver)
		if err == nil {
			c.Close()
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("libvirtd did not come up: %w", err)
		}
	}
}

// Client opens a connection that ends with the test.
func (d *Daemon) Client() *rpc.Client {
	d.tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	c, err := rpc.Dial(ctx, d.Socket, Driver)
	if err != nil {
		d.tb.Fatal(err)
	}
	d.tb.Cleanup(func() { c.Close() })
	return c
}

// Restart kills libvirtd, and returns when another runs. Its machines go on.
func (d *Daemon) Restart() {
	d.tb.Helper()
	pid := d.process(func(args string) bool {
		return strings.HasPrefix(args, "/usr/sbin/libvirtd\x00") && strings.Contains(args, d.Dir)
	})
	if pid == 0 {
		d.tb.Fatal("no libvirtd runs")
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		d.tb.Fatalf("kill libvirtd: %v", err)
	}
	if err := d.wait(); err != nil {
		d.tb.Fatal(err)
	}
}

// QEMU returns the process that runs the machine, as a process ID of the test's own namespace, to
// be killed or stopped.
func (d *Daemon) QEMU(machine string) int {
	d.tb.Helper()
	pid := d.process(func(args string) bool {
		return strings.Contains(args, "\x00guest="+machine+",") && strings.Contains(args, d.Dir)
	})
	if pid == 0 {
		d.tb.Fatalf("no QEMU runs machine %s", machine)
	}
	return pid
}

// process returns a process whose arguments match, 0 if there is none.
func (d *Daemon) process(match func(args string) bool) int {
	dirs, _ := filepath.Glob("/proc/[0-9]*") // fails only for a malformed pattern
	for _, dir := range dirs {
		if cmdline, err := os.ReadFile(filepath.Join(dir, "cmdline")); err == nil && match(string(cmdline)) {
			pid, _ := strconv.Atoi(filepath.Base(dir))
			return pid
		}
	}
	return 0
}
