package instant

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-vm/holdfast/internal/restore"
	"github.com/holdfast-vm/holdfast/test/vm"
	"github.com/holdfast-vm/holdfast/test/vm/libvirtd"
	"github.com/holdfast-vm/holdfast/test/vm/program"
)

// name is that of the machine, which comes back in place.
const name = "shop"

func TestMain(m *testing.M) { program.Main(m) }

// lab is a vault with a point of a guest that writes, and a place to restore it to.
type lab struct {
	t       testing.TB
	dir     string
	storage string
	uri     string // of the host to restore to
	daemon  *libvirtd.Daemon
	boot    time.Duration // of the guest from its own disks
	acked   uint64        // the last record that the guest ever said is durable
	console string        // of the restored guest, once it is known
}

// newLab boots a guest, backs it up while it writes, and kills it.
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
	l := &lab{t: t, dir: dir, storage: filepath.Join(dir, "new"), uri: "qmp:" + dir + "/q,qga=" + dir + "/a"}
	o := vm.Options{Name: name, Dir: filepath.Join(dir, "host"), DataSize: 64 << 20, Span: 16, Work: "disks,db"}
	if err := os.Mkdir(o.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if libvirt {
		l.daemon = libvirtd.New(t)
		l.uri = l.daemon.URI
	}
	began := time.Now()
	v, from := l.original(o)
	if err := v.WaitUp(); err != nil {
		t.Fatal(err)
	}
	l.boot = time.Since(began)
	if err := v.WaitAcked("ACKED", 20, program.Patience); err != nil {
		t.Fatal(err)
	}
	l.acked = v.Acked("ACKED")
	l.must("vault", "init", filepath.Join(dir, "vault"))
	l.must("--connect", from, "vm", "backup", name, "--consistency=crash")
	if err := v.Close(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.end)
	return l
}

// original starts the guest and returns where to back it up from.
func (l *lab) original(o vm.Options) (*vm.VM, string) {
	l.t.Helper()
	if l.daemon != nil {
		v := vm.DefineLibvirt(l.t, l.daemon.URI, o)
		return v, l.daemon.URI
	}
	v, err := vm.LaunchQEMU(vm.LabImage(l.t), o)
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { v.Close() }) // for a test that fails before; twice is harmless
	return v, "qmp:" + v.QMPPath + ",qga=" + v.QGAPath
}

// end kills what runs still: a plain QEMU that was restored is nobody's child.
func (l *lab) end() {
	if l.t.Failed() {
		for _, pattern := range []string{"new/*.log", "new/*.json", "k/libvirt/qemu/log/*"} {
			files, _ := filepath.Glob(filepath.Join(l.dir, pattern))
			for _, file := range files {
				text, _ := os.ReadFile(file)
				l.t.Logf("%s:\n%s", filepath.Base(file), text[max(0, len(text)-1500):])
			}
		}
	}
	for pid := range l.processes(func(string) bool { return true }) {
		syscall.Kill(pid, syscall.SIGKILL)
	}
	if l.daemon != nil {
		l.virsh("destroy", name)
	}
	program.Until(l.t, "everything has ended", func() bool {
		return len(l.processes(func(string) bool { return true })) == 0
	})
}

// processes returns the processes of this lab, by ID, whose command lines match.
func (l *lab) processes(match func(args string) bool) map[int]string {
	return program.Processes(func(args string) bool { return strings.Contains(args, l.dir) && match(args) })
}

func (l *lab) qemu() int {
	l.t.Helper()
	for pid := range l.processes(func(args string) bool {
		return strings.HasPrefix(filepath.Base(strings.Fields(args)[0]), "qemu-system")
	}) {
		return pid
	}
	l.t.Fatal("no QEMU runs")
	return 0
}

// killQEMU kills QEMU and returns when it is gone.
func (l *lab) killQEMU() {
	l.t.Helper()
	pid := l.qemu()
	l.note()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		l.t.Fatal(err)
	}
	program.Until(l.t, "QEMU has ended", func() bool { return program.Gone(pid) })
	if err := os.Truncate(l.guest().ConsolePath, 0); err != nil { // what is there next is of the next boot
		l.t.Fatal(err)
	}
}

func (l *lab) virsh(args ...string) (string, error) {
	out, err := exec.Command("virsh",
		append([]string{"--quiet", "--connect", l.daemon.URI}, args...)...).CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

func (l *lab) start(args ...string) *program.Run {
	l.t.Helper()
	env := []string{"HOLDFAST_VAULT=" + filepath.Join(l.dir, "vault"), "HOLDFAST_KEY_FILE=" +
		filepath.Join(l.dir, "key"),
		"HOLDFAST_MEMORY=" + filepath.Join(l.dir, "memory"),
		"HOLDFAST_STATE=" + filepath.Join(l.dir, "state"), "HOLDFAST_SCRATCH=" + filepath.Join(l.dir, "scratch"),
		"XDG_CONFIG_HOME=" + l.dir, "HOLDFAST_CONNECT=" + l.uri}
	return program.Start(l.t, env, args...)
}

func (l *lab) must(args ...string) string {
	l.t.Helper()
	return l.start(args...).Finish(l.t, 0)
}

// restore begins the instant restore.
func (l *lab) restore(flags ...string) *program.Run {
	l.t.Helper()
	return l.start(append([]string{"point", "restore", name + "@latest", "--as", name, "--storage", l.storage,
		"--instant"}, flags...)...)
}

func (l *lab) resume(flags ...string) *program.Run {
	l.t.Helper()
	return l.start(append([]string{"instant", "resume", name, "--storage", l.storage}, flags...)...)
}

func (l *lab) instant(verb string, flags ...string) string {
	l.t.Helper()
	return l.must(append([]string{"instant", verb, name, "--storage", l.storage}, flags...)...)
}

// state returns how far the restore is, "" once it is done.
func (l *lab) state() restore.InstantState {
	st, err := restore.ReadInstant(l.storage, name)
	if err != nil {
		return restore.InstantState{}
	}
	return st
}

// guest returns the restored guest. Its console is found in its definition, once: it stays where it
// is.
func (l *lab) guest() *vm.VM {
	l.t.Helper()
	if l.console == "" {
		text := l.definition()
		console := regexp.MustCompile(`<serial type='file'>\s*<source path='([^']+)'|-serial file:([^' \n]+)`).
			FindStringSubmatch(text)
		if console == nil {
			l.t.Fatalf("the machine has no console:\n%s", text)
		}
		l.console = console[1] + console[2]
	}
	return &vm.VM{Name: name, ConsolePath: l.console}
}

// note remembers what the guest has said is durable.
func (l *lab) note() uint64 {
	l.t.Helper()
	v := l.guest()
	if text := v.Console(); strings.Contains(text, "WGEN-FAILED") || strings.Contains(text, "rror on dev vd") {
		l.t.Fatalf("the guest met an error:\n%s", text)
	}
	l.acked = max(l.acked, v.Acked("ACKED"))
	return l.acked
}

// writesOn fails the test unless the guest makes n more steps.
func (l *lab) writesOn(n uint64) {
	l.t.Helper()
	goal := l.note() + n
	program.Until(l.t, fmt.Sprintf("record %d is durable", goal), func() bool { return l.note() >= goal })
}

// awaitUp returns when the guest of r has booted; r may not end before.
func (l *lab) awaitUp(r *program.Run) {
	l.t.Helper()
	started := false
	program.Until(l.t, "the guest is up", func() bool {
		if r.Ended() && r.Status() != 0 {
			l.t.Fatal(r)
		}
		started = started || l.started()
		return started && strings.Contains(l.guest().Console(), "GUEST-UP")
	})
}

func (l *lab) started() bool {
	if l.daemon == nil {
		_, err := os.Stat(filepath.Join(l.storage, name+".sh"))
		return err == nil
	}
	out, err := l.virsh("domstate", name)
	return err == nil && out == "running"
}

// paused says whether the machine stands still.
func (l *lab) paused() bool {
	l.t.Helper()
	if l.daemon != nil {
		out, err := l.virsh("domstate", name)
		if err != nil {
			l.t.Fatal(out)
		}
		return out == "paused"
	}
	cmd := l.start("vm", "list", "--json")
	cmd.Wait(l.t)
	if cmd.Status() != 0 { // while it waits for its export QEMU may not answer
		return false
	}
	out := cmd.Out.String()
	var list []struct{ State string }
	if err := json.Unmarshal([]byte(out), &list); err != nil || len(list) != 1 {
		l.t.Fatalf("%v in %q", err, out)
	}
	return list[0].State == "paused"
}

// ownDisks fails the test if the machine still depends on us, and its disks hold all
// that was ever durable. It ends the machine.
func (l *lab) ownDisks() {
	l.t.Helper()
	var left []string
	entries, err := os.ReadDir(l.storage)
	if err != nil {
		l.t.Fatal(err)
	}
	for _, e := range entries {
		if strings.Contains(e.Name(), "instant") || strings.Contains(e.Name(), ".overlay") ||
			strings.HasPrefix(e.Name(), ".") {
			left = append(left, e.Name())
		}
	}
	if len(left) > 0 {
		l.t.Errorf("left in the storage directory: %q", left)
	}
	if text := l.definition(); regexp.MustCompile(`overlay|nbd|value=stop|holdfast:|_policy`).MatchString(text) {
		l.t.Errorf("the definition still depends on the restore:\n%s", text)
	}
	l.killQEMU()
	l.check()
}

func (l *lab) definition() string {
	l.t.Helper()
	if l.daemon != nil {
		xml, err := l.virsh("dumpxml", "--inactive", name)
		if err != nil {
			l.t.Fatal(xml)
		}
		return xml
	}
	script, err := os.ReadFile(filepath.Join(l.storage, name+".sh"))
	if err != nil {
		l.t.Fatal(err)
	}
	return string(script)
}

// check fails the test unless the local disks hold every record that was acknowledged.
func (l *lab) check() {
	l.t.Helper()
	a := vm.Disk{Path: filepath.Join(l.storage, name+"-vdb.qcow2"), Format: "qcow2"}
	b := vm.Disk{Path: filepath.Join(l.storage, name+"-vdc.raw"), Format: "raw"}
	nA, nB, err := vm.CheckDisks(l.t.Context(), a, b)
	if err != nil || nB < l.acked {
		l.t.Fatalf("records up to %d and %d, %d were durable: %v", nA, nB, l.acked, err)
	}
	l.t.Logf("records A=%d B=%d, %d were known to be durable", nA, nB, l.acked)
}
