package secrets

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/guest/guesttest"
	"github.com/holdfast-vm/holdfast/internal/qcow2"
	"github.com/holdfast-vm/holdfast/test/vm/libvirtd"
	"github.com/holdfast-vm/holdfast/test/vm/program"
)

// passphrase opens the vault, and is in the environment of every command.
const passphrase = "wide open sesame"

func TestMain(m *testing.M) { program.Main(m) }

// lab is a vault, and machines without a guest whose points are in it.
type lab struct {
	*testing.T
	dir string
	key *os.File // of the vault, too
}

func newLab(t *testing.T) *lab {
	t.Helper()
	dir, err := os.MkdirTemp("", "hf")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	l := &lab{T: t, dir: dir}
	l.ok(os.Mkdir(l.path("pool"), 0o755))
	l.holdfast("vault", "init", l.path("vault"))
	l.holdfast("vault", "key", "add", "--name", "file", "--new-key-file", l.path("key"))
	l.key, err = os.Open(l.path("key"))
	l.ok(err)
	t.Cleanup(func() { l.key.Close() })
	return l
}

func (l *lab) path(name string) string { return filepath.Join(l.dir, name) }

func (l *lab) ok(err error) {
	l.Helper()
	if err != nil {
		l.Fatal(err)
	}
}

func (l *lab) tool(name string, args ...string) {
	l.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		l.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
}

func (l *lab) env() []string {
	env := slices.DeleteFunc(os.Environ(), func(s string) bool { return strings.HasPrefix(s, "HOLDFAST_") })
	return append(env, "HOLDFAST_PASSPHRASE="+passphrase, "HOLDFAST_VAULT="+l.path("vault"),
		"HOLDFAST_MEMORY="+l.path("memory"),
		"HOLDFAST_STATE="+l.path("state"), "HOLDFAST_SCRATCH="+l.path("scratch"), "HOLDFAST_POOL="+l.path("pool"),
		"XDG_CONFIG_HOME="+l.dir, "SOME_OTHER_TOKEN="+passphrase)
}

// start starts holdfast, with the vault's key open as descriptor 3 once there is one.
func (l *lab) start(args ...string) *program.Trace {
	l.Helper()
	var files []*os.File
	if l.key != nil {
		files = []*os.File{l.key}
	}
	return program.StartTrace(l, l.env(), files, args...)
}

// holdfast runs a command to its end and looks at all that it has started.
func (l *lab) holdfast(args ...string) []string { return l.ends(0, args...) }

func (l *lab) ends(status int, args ...string) []string {
	l.Helper()
	tr := l.start(args...)
	tr.Finish(l, status)
	return l.look(tr)
}

// look fails the test if any process that was started knows more than it must, and returns which
// programs ran.
func (l *lab) look(tr *program.Trace) (names []string) {
	l.Helper()
	for _, p := range tr.Programs() {
		name := filepath.Base(p.Path)
		if p.Path == program.Path() {
			name = "holdfast " + p.Args[1]
		}
		names = append(names, name)
		for _, text := range append(slices.Clone(p.Env), p.Args...) {
			if strings.Contains(text, passphrase) || strings.Contains(text, "AGE-SECRET-KEY") {
				l.Errorf("%s gets a secret: %s", p, text)
			}
		}
		for _, entry := range p.Env {
			if name, _, _ := strings.Cut(entry, "="); strings.Contains(name, "TOKEN") || name == "HOLDFAST_PASSPHRASE" {
				l.Errorf("%s gets the variable %s", p, entry)
			}
		}
		l.lookAtFiles(name, p)
	}
	return names
}

// handed says which descriptors besides input, output and error a program is started with, and what
// they are.
var handed = map[string]string{
	"dash": "socket:", "bash": "socket:", "qemu-nbd": "socket:", // on which to listen
	"holdfast --key-fd=3": "pipe:", // which the key comes from
}

func (l *lab) lookAtFiles(name string, p program.Program) {
	l.Helper()
	for fd, to := range p.Files {
		if strings.HasPrefix(to, l.path("vault")) || strings.HasPrefix(to, l.path("key")) {
			l.Errorf("%s has open, as %d, %s", p, fd, to)
		}
		if kind := handed[name]; fd > 2 && (fd > 3 || kind == "" || !strings.HasPrefix(to, kind)) {
			l.Errorf("%s has descriptor %d: %s", p, fd, to)
		}
	}
}

func (l *lab) started(names []string, want ...string) {
	l.Helper()
	for _, w := range want {
		if !slices.ContainsFunc(names, func(name string) bool { return strings.HasPrefix(name, w) }) {
			l.Errorf("%s was not started, but %q: nothing is tested", w, names)
		}
	}
}

// machine starts a plain QEMU that runs, without a guest, but with a guest agent, and returns its
// URI.
func (l *lab) machine() string {
	l.Helper()
	l.ok(qcow2.Create(l.path("vda.qcow2"), 8<<20, qcow2.CreateOptions{}))
	l.tool("qemu-io", "-f", "qcow2", "-c", "write -P 7 1M 1M", l.path("vda.qcow2"))
	cmd := exec.Command("qemu-system-x86_64", "-nodefaults", "-display", "none", "-accel", "tcg", "-m", "32", "-name",
		"shop",
		"-uuid", "7f0c1c56-6d5b-4a6c-8f5e-2b8f5b1f0a11", "-qmp", "unix:"+l.path("qmp")+",server=on,wait=off",
		"-drive", "file="+l.path("vda.qcow2")+",format=qcow2,if=none,id=a", "-device", "virtio-blk-pci,drive=a")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	l.ok(cmd.Start())
	l.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	program.Until(l, "QEMU listens", func() bool { _, err := os.Stat(l.path("qmp")); return err == nil })
	new(guesttest.Guest).Listen(l, l.path("qga"))
	return "qmp:" + l.path("qmp") + ",qga=" + l.path("qga")
}

// Whatever command runs, with a passphrase in its environment and the file of a key open: no
// process that it starts, and none that those start, gets a secret by its environment, its
// arguments or its open files.
func TestNoSecretReachesAChild(t *testing.T) {
	l := newLab(t)
	uri := l.machine()
	l.started(l.holdfast("--connect", uri, "vm", "backup", "shop"), "holdfast guard")

	l.tool("qemu-img", "convert", "-U", "-O", "vmdk", l.path("vda.qcow2"), l.path("image.vmdk"))
	l.started(l.holdfast("image", "backup", l.path("image.vmdk"), "--name", "image"), "qemu-nbd", "qemu-img")
	l.tool("qemu-img", "create", "-q", "-f", "qcow2", "-o", "extended_l2=on", l.path("image.qcow2"), "8M")
	l.started(l.holdfast("image", "backup", l.path("image.qcow2"), "--name", "other"), "qemu-nbd")

	l.holdfast("disk", "create", "data", "--size", "8MiB")
	l.started(l.holdfast("disk", "resize", "data", "16MiB"), "qemu-img")
	l.started(l.ends(6, "point", "drill", "shop@latest", "--timeout", "1s"), "qemu-system-x86_64")
	l.serves("point", "export", "shop@latest", "--socket", l.path("nbd"))
	l.serves("point", "mount", "shop@latest", l.path("mnt"))

	l.started(l.holdfast("--connect", "qmp:"+l.path("two"), "point", "restore", "shop@latest", "--as", "two",
		"--storage", l.path("storage"), "--instant", "--start"), "qemu-system-x86_64", "holdfast instant-guard")
	for name, flags := range map[string][]string{"three": nil, "four": {"--key-file", "/dev/fd/3"}} {
		args := append(flags, "--connect", "qmp:"+l.path(name), "point", "restore", "shop@latest", "--as", name,
			"--storage",
			l.path("storage"), "--instant", "--start", "--detach")
		tr := l.start(args...)
		tr.Finish(l, 0)
		program.Until(t, "the process in the background has ended", func() bool {
			_, err := os.Stat(l.path("storage/" + name + ".instant.json"))
			return os.IsNotExist(err)
		})
		l.started(l.look(tr), "holdfast --key-fd", "qemu-system-x86_64", "holdfast instant-guard")
	}
}

// serves runs a command until it is interrupted.
func (l *lab) serves(args ...string) {
	l.Helper()
	tr := l.start(args...)
	program.Until(l, "it serves", func() bool { return strings.Contains(tr.Said(), "\n") })
	tr.Signal(syscall.SIGINT)
	tr.Finish(l, 0)
	l.look(tr)
}

// The same under libvirt, where a machine is suspended for an instant by a process of its own.
func TestNoSecretReachesAChildUnderLibvirt(t *testing.T) {
	l := newLab(t)
	d := libvirtd.New(t)
	image := filepath.Join(d.Dir, "vda")
	l.ok(qcow2.Create(image, 8<<20, qcow2.CreateOptions{}))
	c := d.Client()
	dom, err := c.DomainDefine(t.Context(), fmt.Sprintf(`<domain type='qemu'><name>shop</name><memory unit='MiB'>32</memory>
<vcpu>1</vcpu><iothreads>1</iothreads><os><type arch='x86_64' machine='q35'>hvm</type></os><devices>
<disk type='file' device='disk'><driver name='qemu' type='qcow2' iothread='1'/><source file='%s'/><target dev='vda' bus='virtio'/></disk>
<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel></devices></domain>`, image), 0)
	l.ok(err)
	_, err = c.DomainCreate(t.Context(), dom, 0)
	l.ok(err)
	l.started(l.holdfast("--connect", d.URI, "vm", "backup", "shop"), "holdfast guard")
	l.started(l.holdfast("--connect", d.URI, "vm", "backup", "shop"), "holdfast guard", "holdfast watch")
}
