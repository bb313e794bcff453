package drill

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/drill"
	"github.com/holdfast-vm/holdfast/internal/qmp"
	"github.com/holdfast-vm/holdfast/test/vm"
	"github.com/holdfast-vm/holdfast/test/vm/libvirtd"
	"github.com/holdfast-vm/holdfast/test/vm/program"
)

const name = "shop"

func TestMain(m *testing.M) { program.Main(m) }

// lab is a guest that writes, and a vault for points of it.
type lab struct {
	t      testing.TB
	dir    string
	daemon *libvirtd.Daemon // nil for a plain QEMU
	uri    string
	vm     *vm.VM
	before map[string]bool // files under dir before the drills
}

// newLab boots a guest and makes a vault. All of it ends with the test.
func newLab(t testing.TB, libvirt bool) *lab {
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
	l := &lab{t: t, dir: dir}
	o := vm.Options{Name: name, Dir: filepath.Join(dir, "host"), DataSize: 64 << 20, Span: 16, Rate: 20,
		Work:  "disks,db",
		Extra: []string{"-netdev", "user,id=wan", "-device", "virtio-net-pci,netdev=wan"}}
	if err := os.Mkdir(o.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if libvirt {
		l.daemon = libvirtd.New(t)
		l.uri = l.daemon.URI
		l.vm = vm.DefineLibvirt(t, l.uri, o)
		l.attachXML("<interface type='user'><model type='virtio'/></interface>")
	} else {
		l.vm = vm.StartQEMU(t, o)
		l.uri = "qmp:" + l.vm.QMPPath + ",qga=" + l.vm.QGAPath
	}
	if err := l.vm.WaitAcked("COMMITTED", 3, program.Patience); err != nil {
		t.Fatal(err)
	}
	l.must("vault", "init", filepath.Join(dir, "vault"))
	return l
}

// in returns the lab for a test of its own, with a point of its own. What the test leaves running
// when it fails ends with it.
func (l *lab) in(t testing.TB) *lab {
	t.Helper()
	sub := *l
	sub.t = t
	t.Cleanup(sub.end)
	sub.backup()
	sub.before = sub.files()
	return &sub
}

// attachXML adds a device to the definition, which is what a point has; the running machine is left
// alone.
func (l *lab) attachXML(xml string) {
	l.t.Helper()
	path := filepath.Join(l.dir, "device.xml")
	if err := os.WriteFile(path, []byte(xml), 0o600); err != nil {
		l.t.Fatal(err)
	}
	if out, err := l.virsh("attach-device", name, path, "--config"); err != nil {
		l.t.Fatal(out)
	}
}

func (l *lab) backup() { l.must("--connect", l.uri, "vm", "backup", name, "--consistency=crash") }

func (l *lab) virsh(args ...string) (string, error) {
	cmd := exec.Command("virsh", append([]string{"--quiet", "--connect", l.daemon.URI}, args...)...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	out, err := cmd.CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

// end kills what a failed test has left.
func (l *lab) end() {
	for pid := range l.processes() {
		syscall.Kill(pid, syscall.SIGKILL)
	}
	if l.t.Failed() && l.daemon != nil {
		logs, _ := filepath.Glob(filepath.Join(l.daemon.Dir, "k/libvirt/qemu/log/hf-drill-*"))
		for _, path := range logs {
			text, _ := os.ReadFile(path)
			l.t.Logf("%s:\n%s", path, text[max(0, len(text)-2000):])
		}
	}
	program.Until(l.t, "everything has ended", func() bool { return len(l.processes()) == 0 })
}

// processes returns what runs for drills of this lab.
func (l *lab) processes() map[int]string {
	return program.Processes(func(args string) bool { return strings.Contains(args, l.dir+"/scratch") })
}

// files returns what lies in the lab's directory, except for what belongs to the vault and the
// running guest.
func (l *lab) files() map[string]bool {
	found := map[string]bool{}
	filepath.Walk(l.dir, func(path string, info os.FileInfo, err error) error {
		rest := strings.TrimPrefix(path, l.dir+"/")
		if err == nil && (strings.HasPrefix(rest, "scratch") || strings.HasPrefix(rest, "state")) && !info.IsDir() {
			found[rest] = true
		}
		return nil
	})
	return found
}

// nothingLeft fails the test if anything of a drill is there still.
func (l *lab) nothingLeft() {
	l.t.Helper()
	for path := range l.files() {
		if !l.before[path] {
			l.t.Errorf("left behind: %s", path)
		}
	}
	if dirs, _ := filepath.Glob(filepath.Join(l.dir, "scratch/hf-drill-*")); len(dirs) > 0 {
		l.t.Errorf("left behind: %q", dirs)
	}
	for pid, args := range l.processes() {
		l.t.Errorf("still runs: %d %s", pid, args)
	}
	if l.daemon == nil {
		return
	}
	out, err := l.virsh("list", "--all", "--name")
	if err != nil || strings.TrimSpace(out) != name {
		l.t.Errorf("libvirt has the machines %q: %v", out, err)
	}
	for _, pattern := range []string{"r/libvirt/qemu/run/*hf-drill*", "c/libvirt/qemu/*hf-drill*"} {
		if left, _ := filepath.Glob(filepath.Join(l.daemon.Dir, pattern)); len(left) > 0 {
			l.t.Errorf("left in libvirt's directory: %q", left)
		}
	}
}

// machines returns how many machines of drills there are.
func (l *lab) machines() int {
	if l.daemon == nil {
		return len(l.processes())
	}
	out, err := l.virsh("list", "--all", "--name")
	if err != nil {
		l.t.Fatal(out)
	}
	return strings.Count(out, "hf-drill-")
}

// running reports whether the machine of a drill runs under libvirt.
func (l *lab) running() bool {
	out, err := l.virsh("list", "--name", "--state-running")
	return err == nil && strings.Contains(out, "hf-drill-")
}

// openWay gives the machine of the drill that runs a network.
func (l *lab) openWay() {
	l.t.Helper()
	dirs, _ := filepath.Glob(filepath.Join(l.dir, "scratch/hf-drill-*"))
	if len(dirs) != 1 {
		l.t.Fatalf("of the drill there are %q", dirs)
	}
	if l.daemon != nil {
		if out, err := l.virsh("qemu-monitor-command", filepath.Base(dirs[0]), "--hmp",
			"netdev_add user,id=leak"); err != nil {
			l.t.Fatal(out)
		}
		return
	}
	monitors, _ := filepath.Glob(filepath.Join(dirs[0], "*.qmp*.sock")) // the lab's own
	if len(monitors) != 1 {
		l.t.Fatalf("further monitors: %q", monitors)
	}
	c, err := qmp.Dial(l.t.Context(), monitors[0])
	if err != nil {
		l.t.Fatal(err)
	}
	defer c.Close()
	if err := c.Execute(l.t.Context(), "netdev_add", map[string]string{"type": "user", "id": "leak"}, nil); err != nil {
		l.t.Fatal(err)
	}
}

// undisturbed fails the test unless the original goes on writing, to its own disks.
func (l *lab) undisturbed() {
	l.t.Helper()
	was := l.vm.Acked("COMMITTED")
	if err := l.vm.WaitAcked("COMMITTED", was+2, program.Patience); err != nil {
		l.t.Fatal(err)
	}
	if text := l.vm.Console(); strings.Contains(text, "WGEN-FAILED") || strings.Contains(text, "rror on dev vd") {
		l.t.Fatalf("the original met an error:\n%s", text)
	}
}

func (l *lab) env() []string {
	return []string{"HOLDFAST_VAULT=" + filepath.Join(l.dir, "vault"), "HOLDFAST_KEY_FILE=" +
		filepath.Join(l.dir, "key"),
		"HOLDFAST_MEMORY=" + filepath.Join(l.dir, "memory"),
		"HOLDFAST_STATE=" + filepath.Join(l.dir, "state"), "HOLDFAST_SCRATCH=" + filepath.Join(l.dir, "scratch"),
		"XDG_CONFIG_HOME=" + l.dir}
}

func (l *lab) start(args ...string) *program.Run {
	l.t.Helper()
	env := l.env()
	if l.daemon != nil {
		env = append(env, "HOLDFAST_CONNECT="+l.uri, "XDG_CACHE_HOME="+filepath.Join(l.daemon.Dir, "k"))
	}
	return program.Start(l.t, env, args...)
}

func (l *lab) must(args ...string) string {
	l.t.Helper()
	return l.start(args...).Finish(l.t, 0)
}

// drill rehearses the newest point, which must end with status.
func (l *lab) drill(status int, flags ...string) drill.Result {
	l.t.Helper()
	return l.result(l.start(append([]string{"point", "drill", name + "@latest", "--json"}, flags...)...), status)
}

// result waits for the end of a drill with --json.
func (l *lab) result(r *program.Run, status int) drill.Result {
	l.t.Helper()
	out := r.Finish(l.t, status)
	var res drill.Result
	if err := json.Unmarshal([]byte(out), &res); err != nil {
		l.t.Fatalf("%v in %s", err, out)
	}
	return res
}

// await waits until a running holdfast says words.
func (l *lab) await(r *program.Run, words string) {
	l.t.Helper()
	program.Until(l.t, "it says "+words, func() bool {
		if r.Ended() {
			l.t.Fatal(r)
		}
		return strings.Contains(r.Said(), words)
	})
}
