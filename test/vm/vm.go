package vm

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-vm/holdfast/test/vm/wgen"
)

const (
	// BootTimeout is far above the 5 to 8 s that a boot takes without KVM on an idle machine.
	BootTimeout = 3 * time.Minute
	// callTimeout bounds one command to QEMU or into the guest.
	callTimeout = time.Minute
)

// VM is a lab guest that was started. Its methods are safe for concurrent use.
type VM struct {
	Name  string
	UUID  string
	Disks []Disk // vda, vdb, vdc

	QMPPath     string // for the product: QEMU serves one client per socket; "" under libvirt
	HarnessPath string // the lab's own QMP socket; "" under libvirt
	QGAPath     string // for the product: the guest agent; "" without a channel, and under libvirt, which takes it
	LabPath     string // the lab's own agent in the guest
	ConsolePath string // what the guest wrote to its console

	// PID is QEMU's; under libvirt it is 0, see [VM.Process].
	PID int

	done    <-chan struct{} // closed when QEMU has ended; nil under libvirt
	how     error           // how it ended: what Wait returned; to be read when done is closed
	libvirt *domain         // nil for a plain QEMU process
	sockets string          // directory of the sockets
}

// StartQEMU boots a lab guest as a plain QEMU process and waits until it is up. It ends with the
// test.
func StartQEMU(t testing.TB, o Options) *VM {
	t.Helper()
	if o.Dir == "" {
		o.Dir = t.TempDir()
	}
	v, err := LaunchQEMU(LabImage(t), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		v.logOnFailure(t)
		if err := v.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := v.WaitUp(); err != nil {
		t.Fatal(err)
	}
	return v
}

func (v *VM) logOnFailure(t testing.TB) {
	if t.Failed() {
		console := v.Console()
		t.Logf("console of %s:\n%s", v.Name, console[max(0, len(console)-4000):])
	}
}

// socketDir makes a directory whose sockets stay below the limit of 107 bytes.
func socketDir() (string, error) {
	dir, err := os.MkdirTemp("", "hf")
	if err != nil {
		return "", fmt.Errorf("make a directory for sockets: %w", err)
	}
	return dir, nil
}

// WaitUp returns when both agents of the guest have been started.
func (v *VM) WaitUp() error {
	_, err := v.WaitConsole(`GUEST-UP \S+`, BootTimeout)
	return err
}

// Console returns all that the guest has written to its console.
func (v *VM) Console() string {
	text, err := os.ReadFile(v.ConsolePath)
	if err != nil {
		return ""
	}
	return strings.ReplaceAll(string(text), "\r", "")
}

// WaitConsole waits until pattern, a regular expression, occurs on the console, and returns its
// first occurrence with the groups. It gives up early if QEMU ends.
func (v *VM) WaitConsole(pattern string, timeout time.Duration) ([]string, error) {
	re, err := regexp.Compile(pattern)
	if err != nil {
		return nil, err
	}
	var match []string
	err = waitFor(fmt.Sprintf("%q on the console of %s", pattern, v.Name), timeout, func() (bool, error) {
		ended := v.Ended()
		if match = re.FindStringSubmatch(v.Console()); match != nil {
			return true, nil
		}
		if ended {
			return false, fmt.Errorf("QEMU of %s ended before %q was on its console: %s", v.Name, pattern, v.stderr())
		}
		return false, nil
	})
	return match, err
}

// Acked returns the last number that the console says is durable: of "disks" for word "ACKED", of
// "db" for "COMMITTED"; 0 if there is none.
func (v *VM) Acked(word string) uint64 {
	all := regexp.MustCompile(word+` (\d+)\n`).FindAllStringSubmatch(v.Console(), -1)
	if len(all) == 0 {
		return 0
	}
	var n uint64
	fmt.Sscan(all[len(all)-1][1], &n)
	return n
}

// WaitAcked waits until at least n is durable.
func (v *VM) WaitAcked(word string, n uint64, timeout time.Duration) error {
	return waitFor(fmt.Sprintf("%s %d of %s", word, n, v.Name), timeout, func() (bool, error) {
		if v.Acked(word) >= n {
			return true, nil
		}
		if v.Ended() {
			return false, fmt.Errorf("QEMU of %s ended: %s", v.Name, v.stderr())
		}
		return false, nil
	})
}

// Ended says whether QEMU has ended.
func (v *VM) Ended() bool {
	if v.libvirt != nil {
		return v.libvirt.ended()
	}
	select {
	case <-v.done:
		return true
	default:
		return false
	}
}

// WaitEnded waits until QEMU has ended.
func (v *VM) WaitEnded(timeout time.Duration) error {
	return waitFor("the end of "+v.Name, timeout, func() (bool, error) { return v.Ended(), nil })
}

// Exec runs a shell command in the guest, through the lab's own agent, which also answers while the
// file systems are frozen. It returns what the command wrote to stdout and stderr, and its exit
// status.
func (v *VM) Exec(command string) (output string, status int, err error) {
	agent, err := dialAgent(v.LabPath, time.Now().Add(callTimeout))
	if err != nil {
		return "", 0, fmt.Errorf("run %q in %s: %w", command, v.Name, err)
	}
	defer agent.close()
	var started struct{ PID int }
	err = agent.call("guest-exec", map[string]any{
		"path": "/bin/sh", "arg": []string{"-c", "exec 2>&1\n" + command}, "capture-output": true,
	}, &started)
	if err != nil {
		return "", 0, fmt.Errorf("run %q in %s: %w", command, v.Name, err)
	}
	var ended struct {
		Exited   bool
		ExitCode int
		OutData  string `json:"out-data"`
	}
	err = waitFor(fmt.Sprintf("%q in %s", command, v.Name), callTimeout, func() (bool, error) {
		err := agent.call("guest-exec-status", map[string]any{"pid": started.PID}, &ended)
		return ended.Exited, err
	})
	if err != nil {
		return "", 0, err
	}
	text, err := base64.StdEncoding.DecodeString(ended.OutData)
	return string(text), ended.ExitCode, err
}

// MustExec is [VM.Exec] for a command that must succeed. It returns its output without the last
// line's end.
func (v *VM) MustExec(t testing.TB, command string) string {
	t.Helper()
	output, status, err := v.Exec(command)
	if err != nil {
		t.Fatal(err)
	}
	if status != 0 {
		t.Fatalf("%q in %s: exit status %d: %s", command, v.Name, status, output)
	}
	return strings.TrimSuffix(output, "\n")
}

// Rows returns how many rows the guest's database has, and the greatest number among them. They
// are equal unless a committed row was lost.
func (v *VM) Rows() (count, last uint64, err error) {
	output, status, err := v.Exec("lab rows")
	if err == nil && status != 0 {
		err = fmt.Errorf("count rows in %s: exit status %d: %s", v.Name, status, output)
	}
	if err != nil {
		return 0, 0, err
	}
	if _, err := fmt.Sscanf(output, "%d|%d", &count, &last); err != nil {
		return 0, 0, fmt.Errorf("count rows in %s: %q: %w", v.Name, output, err)
	}
	return count, last, nil
}

// Shutdown asks the guest to power off and waits until QEMU has ended.
func (v *VM) Shutdown() error {
	agent, err := dialAgent(v.LabPath, time.Now().Add(callTimeout))
	if err != nil {
		return fmt.Errorf("shut down %s: %w", v.Name, err)
	}
	defer agent.close()
	// The agent does not answer a shutdown that succeeds.
	if _, err := agent.conn.Write([]byte(`{"execute":"guest-shutdown"}` + "\n")); err != nil {
		return fmt.Errorf("shut down %s: %w", v.Name, err)
	}
	return v.WaitEnded(callTimeout)
}

// Process returns the ID of QEMU's process.
func (v *VM) Process() (int, error) {
	if v.libvirt == nil {
		return v.PID, nil
	}
	return findProcess(v.UUID)
}

// Kill ends QEMU as a power cut would, and waits until it has ended.
func (v *VM) Kill() error {
	pid, err := v.Process()
	if err != nil {
		return fmt.Errorf("kill %s: %w", v.Name, err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("kill %s: %w", v.Name, err)
	}
	return v.WaitEnded(callTimeout)
}

// Stop ends QEMU without asking the guest; what QEMU holds is flushed.
func (v *VM) Stop() error {
	if v.Ended() {
		return nil
	}
	if v.libvirt != nil {
		return v.libvirt.destroy()
	}
	if err := v.Monitor("quit", nil, nil); err != nil {
		return fmt.Errorf("stop %s: %w", v.Name, err)
	}
	return v.WaitEnded(callTimeout)
}

// Monitor runs a QMP command on the lab's own monitor.
func (v *VM) Monitor(command string, arguments, result any) error {
	monitor, err := dialMonitor(v.HarnessPath, time.Now().Add(callTimeout))
	if err != nil {
		return fmt.Errorf("monitor of %s: %w", v.Name, err)
	}
	defer monitor.close()
	return monitor.call(command, arguments, result)
}

// CheckDisks checks what the job "disks" wrote, in images of vdb and vdc that no QEMU has open.
func CheckDisks(ctx context.Context, vdb, vdc Disk) (nA, nB uint64, err error) {
	dir, err := os.MkdirTemp("", "hf-check")
	if err != nil {
		return 0, 0, err
	}
	defer os.RemoveAll(dir)
	var files [2]*os.File
	var sizes [2]int64
	for i, d := range []Disk{vdb, vdc} {
		raw := d.Path
		if d.Format == "qcow2" {
			raw = filepath.Join(dir, filepath.Base(d.Path)+".raw")
			if err := run("qemu-img", "convert", "-f", d.Format, "-O", "raw", d.Path, raw); err != nil {
				return 0, 0, err
			}
		}
		if files[i], err = os.Open(raw); err != nil {
			return 0, 0, err
		}
		defer files[i].Close()
		info, err := files[i].Stat()
		if err != nil {
			return 0, 0, err
		}
		sizes[i] = info.Size()
	}
	return wgen.Check(files[0], files[1], sizes[0], sizes[1])
}
