package vm

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// LaunchQEMU starts a lab guest as a plain QEMU process and returns once its monitor answers. The
// caller closes it; if the caller's process dies, so does QEMU.
func LaunchQEMU(image Image, o Options) (*VM, error) {
	o = o.withDefaults()
	disks, err := o.disks(image)
	if err != nil {
		return nil, err
	}
	dir, err := filepath.Abs(o.Dir)
	if err != nil {
		return nil, err
	}
	sockets, err := socketDir()
	if err != nil {
		return nil, err
	}
	v := &VM{
		Name: o.Name, UUID: o.UUID, Disks: disks, sockets: sockets,
		QMPPath:     filepath.Join(sockets, "qmp"),
		HarnessPath: filepath.Join(sockets, "oob"),
		LabPath:     filepath.Join(sockets, "lab"),
		ConsolePath: filepath.Join(dir, o.Name+".console"),
	}
	if !o.NoChannel {
		v.QGAPath = filepath.Join(sockets, "qga")
	}
	if err := v.start(image, o); err != nil {
		return nil, errors.Join(fmt.Errorf("start QEMU of %s: %w", o.Name, err), os.RemoveAll(sockets))
	}
	err = waitFor("the monitor of "+o.Name, callTimeout, func() (bool, error) {
		if v.Ended() {
			return false, fmt.Errorf("QEMU of %s ended: %s", o.Name, v.stderr())
		}
		return v.Monitor("query-status", nil, nil) == nil, nil
	})
	if err != nil {
		return nil, errors.Join(err, v.Close())
	}
	return v, nil
}

// LaunchDetached is [LaunchQEMU] for a guest that outlives the calling process.
func LaunchDetached(image Image, o Options) (*VM, error) {
	o.outlive = true
	return LaunchQEMU(image, o)
}

// Done is closed when QEMU has ended.
func (v *VM) Done() <-chan struct{} { return v.done }

func (v *VM) start(image Image, o Options) error {
	stderr, err := os.Create(filepath.Join(v.sockets, "stderr"))
	if err != nil {
		return err
	}
	defer stderr.Close()
	cmd := exec.Command(emulator, v.arguments(image, o)...)
	cmd.Stdout, cmd.Stderr = stderr, stderr
	// A terminal's interrupt is for the one who started the guest, not for the guest.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if !o.outlive {
		cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	v.PID = cmd.Process.Pid
	done := make(chan struct{})
	v.done = done
	go func() {
		defer close(done)
		v.how = cmd.Wait()
	}()
	return nil
}

// arguments is QEMU's command line; every path in it is absolute.
func (v *VM) arguments(image Image, o Options) []string {
	args := []string{
		"-name", v.Name, "-uuid", v.UUID,
		"-machine", "pc", "-accel", image.Accel.Name, "-cpu", "max", "-m", strconv.Itoa(o.Memory), "-smp", "1",
		"-nodefaults", "-display", "none", "-no-reboot",
		"-kernel", image.Kernel, "-initrd", image.Initrd, "-append", o.commandLine(),
		"-serial", "file:" + escape(v.ConsolePath),
		"-qmp", "unix:" + v.QMPPath + ",server=on,wait=off",
		"-qmp", "unix:" + v.HarnessPath + ",server=on,wait=off",
	}
	if !o.NoIOThread {
		args = append(args, "-object", "iothread,id=io0")
	}
	for i, node := range []string{"root0", "a", "b"} {
		d := v.Disks[i]
		device := fmt.Sprintf("virtio-blk-pci,drive=%s,id=%s", node, d.Name)
		if d.Name == "vdb" && !o.NoIOThread {
			device += ",iothread=io0"
		}
		args = append(args,
			"-blockdev", fmt.Sprintf("driver=file,filename=%s,node-name=%s-f", escape(d.Path), node),
			"-blockdev", fmt.Sprintf("driver=%s,file=%s-f,node-name=%s", d.Format, node, node),
			"-device", device)
	}
	args = append(args, "-device", "virtio-serial-pci,id=serial0")
	if v.QGAPath != "" {
		args = append(args, port("qga0", v.QGAPath, "org.qemu.guest_agent.0")...)
	}
	args = append(args, port("lab0", v.LabPath, "org.holdfast.lab.0")...)
	return append(args, o.Extra...)
}

// port is a virtio serial port of the guest whose other end is a unix socket.
func port(id, socket, name string) []string {
	return []string{
		"-chardev", fmt.Sprintf("socket,path=%s,server=on,wait=off,id=%s", socket, id),
		"-device", fmt.Sprintf("virtserialport,bus=serial0.0,chardev=%s,name=%s", id, name),
	}
}

// escape doubles the commas that would end a value in QEMU's option syntax.
func escape(path string) string { return strings.ReplaceAll(path, ",", ",,") }

// stderr returns what QEMU said, and how it ended if it has.
func (v *VM) stderr() string {
	text, err := os.ReadFile(filepath.Join(v.sockets, "stderr"))
	if err != nil {
		return ""
	}
	said := strings.TrimSpace(string(text))
	select {
	case <-v.done:
		if v.how != nil {
			said += " (" + v.how.Error() + ")"
		}
	default:
	}
	return said
}

// Close ends the guest as a power cut would, and removes its sockets. Its disks stay.
func (v *VM) Close() error {
	if v.libvirt != nil {
		return errors.Join(v.libvirt.remove(), os.RemoveAll(v.sockets))
	}
	if !v.Ended() {
		syscall.Kill(v.PID, syscall.SIGKILL)
	}
	return errors.Join(v.WaitEnded(10*time.Second), os.RemoveAll(v.sockets))
}
