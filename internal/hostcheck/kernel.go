package hostcheck

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/holdfast-vm/holdfast/internal/child"
	"github.com/holdfast-vm/holdfast/internal/hypervisor/isolation"
)

const lostNamespaces = "what takes the host's own view: firmware variables and TPM state in backups, scratch space, " +
	"drills"

// checkNamespaces looks whether this process sees processes and files as the hosts do. In a
// container it may not.
func checkNamespaces(_ context.Context, l *look) []Finding {
	var all []Finding
	for _, h := range l.met {
		if h.err == nil {
			all = append(all, l.sees(h))
		}
	}
	if len(all) == 0 {
		return one(Finding{Verdict: Unknown, Found: "no host answers, see the check hosts"})
	}
	return all
}

func (l *look) sees(h met) Finding {
	f := Finding{Subject: h.URI(), Verdict: Works}
	advice := "run Holdfast where the hypervisor runs, outside of containers, or give the container the host's " +
		"processes " +
		"and files under the same names"
	pid := h.software.Process
	if pid == 0 {
		f.Verdict, f.Lost, f.Advice = Fails, lostNamespaces, advice
		f.Found = "its process is not in this process' namespace of processes"
		return f
	}
	dir := existing(l.Scratch)
	ours, err := os.Stat(dir)
	if err != nil {
		f.Verdict, f.Found = Unknown, err.Error()
		return f
	}
	theirs, err := os.Stat(fmt.Sprintf("/proc/%d/root%s", pid, dir))
	switch {
	case errors.Is(err, fs.ErrPermission):
		f.Verdict, f.Found = Unknown, fmt.Sprintf("process %d is seen, but not its files: only root may look", pid)
	case err != nil || !os.SameFile(ours, theirs):
		f.Verdict, f.Lost, f.Advice = Fails, lostNamespaces, advice
		f.Found = fmt.Sprintf("process %d has other files at %s than this process", pid, dir)
	default:
		f.Found = fmt.Sprintf("process %d is seen, and has the same files at %s", pid, dir)
	}
	return f
}

// checkIsolation looks whether the kernel tells what a drill has to know of QEMU.
func checkIsolation(context.Context, *look) []Finding {
	f := Finding{Verdict: Works, Found: "open files and sockets of a process can be told"}
	if err := isolation.Available(); err != nil {
		f = Finding{Verdict: Fails, Found: err.Error(), Lost: "drills: whether a machine is isolated cannot be told",
			Advice: "use a kernel with unix_diag (module unix_diag, CONFIG_UNIX_DIAG), and a mounted /proc"}
	}
	if os.Geteuid() != 0 && f.Verdict == Works {
		f.Verdict, f.Lost = Limited, "no drills under qemu:///system: only root may look at those processes"
	}
	return one(f)
}

// checkConfinement tells of security modules that keep QEMU from files.
func checkConfinement(_ context.Context, l *look) []Finding {
	var all []Finding
	for _, h := range l.met {
		if h.err != nil || h.software.Libvirt == "" {
			continue
		}
		f := Finding{Subject: h.URI(), Verdict: Works, Found: "machines are confined by users' rights alone"}
		if models := h.software.Confined; len(models) > 0 {
			f.Verdict, f.Found = Limited, "machines are confined by "+strings.Join(models, ", ")
			f.Lost = "instant restores and drills do not start before QEMU may connect to the export's socket"
			f.Advice = "allow it: the manual has the line for AppArmor"
			f.See = "docs/manual/instant-restore.md#what-it-needs"
		}
		all = append(all, f)
	}
	if len(all) == 0 {
		return one(Finding{Verdict: Unknown, Found: "no libvirt answers; a plain QEMU has the rights of who starts it"})
	}
	return all
}

// checkFUSE mounts a file system that nobody serves.
func checkFUSE(context.Context, *look) []Finding {
	f := Finding{Verdict: Works, Found: "a file system could be mounted"}
	lost := Finding{Verdict: Fails, Lost: "`point mount`",
		Advice: "`holdfast point get` fetches files without it; for `point " +
			"mount` load the kernel module fuse, and as another user than root install fuse3"}
	err := tryFUSE()
	switch {
	case errors.Is(err, unix.EPERM):
		path, missing := child.Find("fusermount3")
		if missing != nil {
			lost.Found = "only root may mount, and there is no fusermount3"
			return one(lost)
		}
		f.Found = path + " is there, which mounts for others than root; not tried"
	case err != nil:
		lost.Found = err.Error()
		return one(lost)
	}
	return one(f)
}

func tryFUSE() error {
	device, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer device.Close()
	dir, err := os.MkdirTemp("", "hf")
	if err != nil {
		return err
	}
	defer os.Remove(dir)
	options := fmt.Sprintf("fd=%d,rootmode=40000,user_id=%d,group_id=%d", device.Fd(), os.Getuid(), os.Getgid())
	if err := unix.Mount("holdfast-check", dir, "fuse", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_RDONLY,
		options); err != nil {
		return fmt.Errorf("mount a file system of FUSE: %w", err)
	}
	return unix.Unmount(dir, unix.MNT_DETACH)
}
