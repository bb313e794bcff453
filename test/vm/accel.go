package vm

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// accelEnv overrides what the lab finds out.
	accelEnv = "HOLDFAST_LAB_ACCEL"
	// accelTimeout is far above the half second that a kernel takes to its first line under KVM.
	accelTimeout = 6 * time.Second

	kvmDevice = "/dev/kvm"
	emulator  = "qemu-system-x86_64"
)

// Accel is what runs the lab's guests, and why.
type Accel struct {
	Name string `json:"name"` // kvm or tcg, as QEMU calls them
	Why  string `json:"why"`
}

func (a Accel) String() string {
	return fmt.Sprintf("guests of the lab run under %s: %s", strings.ToUpper(a.Name), a.Why)
}

// accelProbe finds out whether guests run on the processor itself. That the device opens says
// little: there are hosts where the firmware runs and every kernel stands still at its first
// instructions.
type accelProbe struct {
	device string                               // KVM's
	memory string                               // the file that remembers; one process asks at a time
	key    string                               // of what was asked: another key is another question
	boot   func(context.Context) (Accel, error) // boots a kernel under KVM
}

// findAccel says how guests of kernel run here, in one line to log too. A kernel is booted once for
// each boot of the machine, version of QEMU and kernel; the file memory remembers.
func findAccel(ctx context.Context, kernel, memory string, log io.Writer) (Accel, error) {
	var a Accel
	var err error
	switch forced := os.Getenv(accelEnv); forced {
	case "kvm", "tcg":
		a = Accel{Name: forced, Why: accelEnv + " says so"}
	case "":
		p := accelProbe{device: kvmDevice, memory: memory}
		if p.key, err = accelKey(kernel); err != nil {
			return Accel{}, err
		}
		p.boot = func(ctx context.Context) (Accel, error) { return bootUnderKVM(ctx, kernel) }
		a, err = p.find(ctx)
	default:
		err = fmt.Errorf("%s is %q: it must be kvm or tcg", accelEnv, forced)
	}
	if err == nil {
		fmt.Fprintln(log, a)
	}
	return a, err
}

// accelKey names what a verdict is true of: this boot of the machine with its KVM, QEMU, and the
// kernel.
func accelKey(kernel string) (string, error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", err
	}
	program, err := exec.LookPath(emulator)
	if err != nil {
		return "", err
	}
	key := strings.TrimSpace(string(boot))
	for _, path := range []string{kvmDevice, program, kernel} {
		info, err := os.Stat(path)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return "", err
		}
		key += fmt.Sprintf(" %s:%d:%d", path, info.Size(), info.ModTime().UnixNano())
	}
	return key, nil
}

func (p accelProbe) find(ctx context.Context) (Accel, error) {
	device, err := os.OpenFile(p.device, os.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return Accel{Name: "tcg", Why: err.Error()}, nil
	}
	device.Close()
	unlock, err := lockFile(p.memory + ".lock")
	if err != nil {
		return Accel{}, err
	}
	defer unlock()
	var known struct {
		Key string `json:"key"`
		Accel
	}
	if text, err := os.ReadFile(p.memory); err == nil && json.Unmarshal(text, &known) == nil && known.Key == p.key {
		return known.Accel, nil
	}
	known.Key = p.key
	if known.Accel, err = p.boot(ctx); err != nil {
		return Accel{}, err
	}
	text, err := json.Marshal(known)
	if err != nil {
		return Accel{}, err
	}
	return known.Accel, os.WriteFile(p.memory, append(text, '\n'), 0o644)
}

// bootUnderKVM boots kernel until its first line. What the firmware and the kernel's loader in real
// mode write proves nothing.
func bootUnderKVM(ctx context.Context, kernel string) (Accel, error) {
	limited, cancel := context.WithTimeout(ctx, accelTimeout)
	defer cancel()
	var said bytes.Buffer
	cmd := exec.CommandContext(limited, emulator, "-machine", "pc", "-accel", "kvm", "-cpu", "max", "-m", "384", "-smp",
		"1",
		"-nodefaults", "-display", "none", "-no-reboot", "-serial", "stdio",
		"-kernel", kernel, "-append", "console=ttyS0 earlyprintk=serial,ttyS0 panic=1 no_timer_check")
	cmd.Stderr = &said
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	console, err := cmd.StdoutPipe()
	if err != nil {
		return Accel{}, err
	}
	start := time.Now()
	if err := cmd.Start(); err != nil {
		return Accel{}, err
	}
	ran := saysFirstLine(console)
	took, stood := time.Since(start), limited.Err() != nil
	cancel()
	how := cmd.Wait()
	switch {
	case ctx.Err() != nil:
		return Accel{}, ctx.Err()
	case ran:
		return Accel{Name: "kvm", Why: fmt.Sprintf("a kernel said its first line within %v",
			took.Round(10*time.Millisecond))}, nil
	case !stood:
		return Accel{Name: "tcg", Why: fmt.Sprintf("QEMU ended under KVM (%v): %s", how, oneLine(said.String()))}, nil
	default:
		return Accel{Name: "tcg", Why: fmt.Sprintf("%s opens, but a kernel under KVM said nothing for %v", kvmDevice,
			accelTimeout)}, nil
	}
}

// saysFirstLine reads a console until a kernel has said which it is, or the console ends.
func saysFirstLine(console io.Reader) bool {
	var text []byte
	for buf := make([]byte, 4096); ; {
		n, err := console.Read(buf)
		text = append(text, buf[:n]...)
		if bytes.Contains(text, []byte("Linux version ")) {
			return true
		}
		if err != nil {
			return false
		}
	}
}

// oneLine is what QEMU said, without its name.
func oneLine(text string) string {
	text = strings.ReplaceAll(strings.TrimSpace(text), emulator+": ", "")
	return strings.ReplaceAll(text, "\n", "; ")
}

// accelMemory is the file that remembers how guests of the image in dir run.
func accelMemory(dir string) string { return filepath.Clean(dir) + ".accel" }
