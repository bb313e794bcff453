package torture

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/point"
	"github.com/holdfast-vm/holdfast/test/vm"
	"github.com/holdfast-vm/holdfast/test/vm/libvirtd"
	"github.com/holdfast-vm/holdfast/test/vm/program"
)

// lab is a guest that writes, and a vault to keep it in.
type lab struct {
	t       testing.TB
	dir     string
	vault   string
	key     string
	state   string
	scratch string
	opts    vm.Options
	image   vm.Image
	vm      *vm.VM
	daemon  *libvirtd.Daemon // nil under plain QEMU

	acked, committed uint64 // what was ever seen to be durable
}

// newLab boots a guest and makes a vault. All of it ends with the test.
func newLab(t testing.TB, libvirt bool, o vm.Options) *lab {
	t.Helper()
	l := &lab{t: t, dir: shortDir(t), opts: o, image: vm.LabImage(t)}
	l.vault, l.state, l.scratch = filepath.Join(l.dir, "vault"), filepath.Join(l.dir, "state"),
		filepath.Join(l.dir, "scratch")
	l.key = filepath.Join(l.dir, "vault.key")
	l.opts.Dir = filepath.Join(l.dir, "host")
	if l.opts.Name == "" {
		l.opts.Name = "shop"
	}
	if err := os.Mkdir(l.opts.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if libvirt {
		l.daemon = libvirtd.New(t)
		l.vm = vm.DefineLibvirt(t, l.daemon.URI, l.opts)
	} else {
		l.launch()
	}
	l.opts.UUID = l.vm.UUID // it stays the same machine when it is booted again
	t.Cleanup(l.report)
	l.must("vault", "init", l.vault)
	return l
}

// onlyWhole skips a test that takes too long for make test.
func onlyWhole(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("make torture runs it")
	}
}

// shortDir returns a directory that ends with the test, in which there is room for socket paths.
func shortDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "hf")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// in returns the lab for a subtest.
func (l *lab) in(t testing.TB) *lab {
	sub := *l
	sub.t = t
	return &sub
}

func (l *lab) launch() {
	l.t.Helper()
	v, err := vm.LaunchQEMU(l.image, l.opts)
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() {
		if err := v.Close(); err != nil {
			l.t.Error(err)
		}
	})
	if l.vm = v; v.WaitUp() != nil {
		l.t.Fatalf("the guest does not boot:\n%s", v.Console())
	}
}

// report shows what the guest and its QEMU said if the test failed.
func (l *lab) report() {
	if !l.t.Failed() {
		return
	}
	files := []string{l.vm.ConsolePath}
	if l.daemon != nil {
		logs, _ := filepath.Glob(filepath.Join(l.daemon.Dir, "k/libvirt/qemu/log/*"))
		files = append(files, logs...)
	}
	for _, file := range files {
		text, _ := os.ReadFile(file)
		l.t.Logf("%s:\n%s", filepath.Base(file), text[max(0, len(text)-1000):])
	}
}

// reboot boots the guest again from its disks, after its QEMU was killed.
func (l *lab) reboot() {
	l.t.Helper()
	if l.daemon != nil {
		if err := l.vm.Start(); err != nil {
			l.t.Fatal(err)
		}
		return
	}
	l.opts.System, l.opts.DataA, l.opts.DataB = l.vm.Disks[0], l.vm.Disks[1], l.vm.Disks[2]
	if err := l.vm.Close(); err != nil {
		l.t.Fatal(err)
	}
	l.launch()
}

// uri is what to give to --connect.
func (l *lab) uri() string {
	switch {
	case l.daemon != nil:
		return l.daemon.URI
	case l.vm.QGAPath == "":
		return "qmp:" + l.vm.QMPPath
	}
	return "qmp:" + l.vm.QMPPath + ",qga=" + l.vm.QGAPath
}

func (l *lab) env() []string {
	env := []string{"HOLDFAST_VAULT=" + l.vault, "HOLDFAST_KEY_FILE=" + l.key, "HOLDFAST_STATE=" + l.state,
		"HOLDFAST_MEMORY=" + filepath.Join(l.dir, "memory"),
		"HOLDFAST_SCRATCH=" + l.scratch,
		"XDG_CONFIG_HOME=" + l.dir, "XDG_CACHE_HOME=" + l.dir}
	if l.vm != nil {
		env = append(env, "HOLDFAST_CONNECT="+l.uri())
	}
	return env
}

// floor returns what the guest knows to be durable by now: of its records and of its rows.
func (l *lab) floor() floor {
	l.acked = max(l.acked, l.vm.Acked("ACKED"))
	l.committed = max(l.committed, l.vm.Acked("COMMITTED"))
	return floor{l.acked, l.committed}
}

// floor is the least that a point must hold.
type floor struct{ acked, committed uint64 }

// writesGoOn fails the test unless both jobs of the guest make n steps more.
func (l *lab) writesGoOn(n uint64) {
	l.t.Helper()
	acked, committed := l.vm.Acked("ACKED"), l.vm.Acked("COMMITTED")
	if err := l.vm.WaitAcked("ACKED", acked+n, program.Patience); err != nil {
		l.t.Fatalf("the disks' writes do not go on: %v", err)
	}
	if err := l.vm.WaitAcked("COMMITTED", committed+1, program.Patience); err != nil {
		l.t.Fatalf("the file system's writes do not go on: %v", err)
	}
}

// restore brings one disk of a point back as a file.
func (l *lab) restore(id point.ID, disk, path string) vm.Disk {
	l.t.Helper()
	l.must("point", "restore", string(id), "--disk", disk, "--to", path)
	return vm.Disk{Name: disk, Path: path, Format: strings.TrimPrefix(filepath.Ext(path), ".")}
}

// verify restores the data disks of a point and returns the last records on them. They must be of
// one instant, and hold what was acknowledged before it.
func (l *lab) verify(id point.ID, least floor) (nA, nB uint64) {
	l.t.Helper()
	dir := shortDir(l.t)
	defer os.RemoveAll(dir)
	a, b := l.restore(id, "vdb", filepath.Join(dir, "vdb.qcow2")), l.restore(id, "vdc", filepath.Join(dir, "vdc.raw"))
	nA, nB, err := vm.CheckDisks(l.t.Context(), a, b)
	if err != nil {
		l.t.Fatalf("point %s: %v", id, err)
	}
	if nB > nA || nA > nB+1 {
		l.t.Fatalf("point %s: record %d is the last on vdb, %d on vdc", id, nA, nB)
	}
	if nB < least.acked {
		l.t.Fatalf("point %s ends with record %d, but %d was acknowledged before it", id, nB, least.acked)
	}
	return nA, nB
}

// verifyBoot boots the restored system disk of a point and returns how many rows its database has.
func (l *lab) verifyBoot(id point.ID, least floor) uint64 {
	l.t.Helper()
	dir := shortDir(l.t)
	defer os.RemoveAll(dir)
	o := vm.Options{Name: "again", Dir: dir, Work: "none"}
	o.System = l.restore(id, "vda", filepath.Join(dir, "vda.qcow2"))
	v, err := vm.LaunchQEMU(l.image, o)
	if err != nil {
		l.t.Fatal(err)
	}
	defer v.Close()
	if err := v.WaitUp(); err != nil {
		l.t.Fatalf("point %s does not boot: %v\n%s", id, err, v.Console())
	}
	if check := v.MustExec(l.t, "lab check"); check != "ok" {
		l.t.Fatalf("database of point %s: %s", id, check)
	}
	rows, last, err := v.Rows()
	if err != nil || rows != last || last < least.committed {
		l.t.Fatalf("point %s has %d rows up to %d, %v; row %d was committed before it", id, rows, last, err,
			least.committed)
	}
	return rows
}

// virsh runs virsh on the lab's libvirtd.
func (l *lab) virsh(args ...string) (string, error) {
	cmd := exec.Command("virsh", append([]string{"--quiet", "--connect", l.daemon.URI}, args...)...)
	out, err := cmd.Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		err = fmt.Errorf("virsh %s: %s", strings.Join(args, " "), exit.Stderr)
	}
	return strings.TrimSpace(string(out)), err
}
