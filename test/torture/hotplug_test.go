package torture

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/holdfast-vm/holdfast/internal/point"
	"github.com/holdfast-vm/holdfast/test/vm"
	"github.com/holdfast-vm/holdfast/test/vm/program"
)

// monitorInUse has another program on the monitor, which serves one client at a time.
func monitorInUse(l *lab) {
	conn, err := net.Dial("unix", l.vm.QMPPath)
	if err != nil {
		l.t.Fatal(err)
	}
	defer conn.Close()
	var greeting map[string]any
	if err := json.NewDecoder(conn).Decode(&greeting); err != nil {
		l.t.Fatal(err)
	}
	l.unchanged(func() { l.fails(1, []string{"monitor is in use by another client"}, l.backupArgs()...) })
	conn.Close()
	l.takes()
}

func diskAddedAndRemoved(l *lab) {
	path := filepath.Join(l.opts.Dir, "vdd.qcow2")
	l.qemuImg("create", "-q", "-f", "qcow2", path, "32M")
	l.do("qemu-io", "-c", "write -P 77 5M 3M", path)
	l.plug(path)
	p := l.takes("--consistency=crash")
	l.untracked(p, "vdd", "no earlier point")
	l.tracked(p, "vda", "vdb")
	l.same(p.ID, path)
	l.tracked(l.takes("--consistency=crash"), "vda", "vdb", "vdd")
	l.unplug(path)
	p = l.takes("--consistency=crash")
	l.tracked(p, "vda", "vdb")
	if len(p.Disks) != 3 || len(p.Warnings) == 0 {
		l.t.Errorf("a disk is gone: %d disks in the point, warnings %q", len(p.Disks), p.Warnings)
	}
	l.do("qemu-io", "-c", "write -P 78 1M 1M", path)
	l.plug(path)
	p = l.takes("--consistency=crash")
	l.same(p.ID, path)
	l.unplug(path)
	l.takes("--consistency=crash")
}

func (l *lab) do(name string, args ...string) {
	l.t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		l.t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
}

func (l *lab) qemuImg(args ...string) {
	l.t.Helper()
	l.do("qemu-img", args...)
}

// same compares a disk of a point with the image that it was, which nobody writes to.
func (l *lab) same(id point.ID, path string) {
	l.t.Helper()
	dir := shortDir(l.t)
	defer os.RemoveAll(dir)
	restored := l.restore(id, "vdd", filepath.Join(dir, "vdd.qcow2"))
	l.qemuImg("compare", "-U", restored.Path, path)
}

func (l *lab) plug(path string) {
	l.t.Helper()
	if l.daemon != nil {
		l.mustVirsh("attach-disk", l.vm.UUID, path, "vdd", "--subdriver", "qcow2", "--live")
	} else {
		l.mustMonitor("blockdev-add", map[string]any{"driver": "qcow2", "node-name": "d",
			"file": map[string]any{"driver": "file", "filename": path}}, nil)
		l.mustMonitor("device_add", map[string]any{"driver": "virtio-blk-pci", "drive": "d", "id": "vdd"}, nil)
	}
	program.Until(l.t, "the guest sees the new disk", func() bool {
		_, status, err := l.vm.Exec("test -b /dev/vdd")
		return err == nil && status == 0
	})
	l.vm.Disks = append(l.vm.Disks[:3:3], vm.Disk{Name: "vdd", Path: path, Format: "qcow2"})
}

func (l *lab) unplug(path string) {
	l.t.Helper()
	if l.daemon != nil {
		l.mustVirsh("detach-disk", l.vm.UUID, "vdd", "--live")
	} else {
		l.mustMonitor("device_del", map[string]any{"id": "vdd"}, nil)
		program.Until(l.t, "the guest lets go of the disk", func() bool {
			return l.monitor("blockdev-del", map[string]any{"node-name": "d"}, nil) == nil
		})
	}
	program.Until(l.t, "QEMU has closed the disk", func() bool {
		for _, n := range l.nodes() {
			if n.File == path {
				return false
			}
		}
		return true
	})
	l.vm.Disks = l.vm.Disks[:3]
}

func (l *lab) mustVirsh(args ...string) string {
	l.t.Helper()
	out, err := l.virsh(args...)
	if err != nil {
		l.t.Fatal(err)
	}
	return out
}

// disksResized makes both data disks larger. The first point after that has their new size, the
// next one counts again.
func disksResized(l *lab) {
	const size = 320 << 20
	l.takes("--consistency=crash")
	for _, d := range []string{"vdb", "vdc"} {
		if l.daemon != nil {
			l.mustVirsh("blockresize", l.vm.UUID, d, fmt.Sprint(size, "B"))
			continue
		}
		l.mustMonitor("block_resize", map[string]any{"node-name": map[string]string{"vdb": "a", "vdc": "b"}[d],
			"size": size}, nil)
	}
	l.writesGoOn(10)
	p := l.takes("--consistency=crash")
	for _, name := range []string{"vdb", "vdc"} {
		if d := disk(l.t, p, name); d.Size != size {
			l.t.Errorf("disk %s has %d bytes in the point, want %d", name, d.Size, size)
		}
	}
	l.untracked(p, "vdb", "resized")
	l.tracked(p, "vda")
	l.writesGoOn(10)
	l.tracked(l.takes("--consistency=crash"), "vda", "vdb")
}

// verifyRows returns how many rows the database on the restored system disk of a point has.
func (l *lab) verifyRows(id point.ID) uint64 {
	l.t.Helper()
	return l.verifyBoot(id, floor{})
}

// has says whether a directory has a file of that name.
func (l *lab) has(dir, pattern string) bool {
	found, _ := filepath.Glob(filepath.Join(dir, pattern))
	return len(found) > 0
}

// noted says whether a capture has noted that it begins.
func (l *lab) noted() bool {
	return l.has(l.state, "capture-*.json") || l.has(l.state, "libvirt-*.json")
}

// grows returns what says whether there are more files than now.
func (l *lab) grows(pattern string) func() bool {
	before, _ := filepath.Glob(pattern)
	return func() bool {
		now, _ := filepath.Glob(pattern)
		return len(now) > len(before)
	}
}
