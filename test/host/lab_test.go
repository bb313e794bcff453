package host

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/blob/dir"
	"github.com/holdfast-vm/holdfast/internal/point"
	"github.com/holdfast-vm/holdfast/internal/vault"
	"github.com/holdfast-vm/holdfast/test/vm/program"
)

func TestMain(m *testing.M) { program.Main(m) }

const (
	identity = "AGE-SECRET-KEY-1GFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPQ4EGAEX"
	uuid     = "0f4c6dd2-5e0d-4f3c-9b57-8d7f8a4f3a11"
)

// lab is a vault with points of machines that were never there.
type lab struct {
	t   testing.TB
	dir string
}

func newLab(t testing.TB) *lab {
	t.Helper()
	top, err := os.MkdirTemp("", "hf") // short: it has sockets
	if err != nil {
		t.Fatal(err)
	}
	l := &lab{t, top}
	t.Cleanup(func() {
		for _, args := range program.Processes(func(args string) bool { return strings.Contains(args, top) }) {
			t.Errorf("still runs: %s", args)
		}
		os.RemoveAll(top)
	})
	l.ok(os.Mkdir(filepath.Join(top, "vault"), 0o700))
	l.file("key", []byte(identity+"\n"))
	store, err := dir.Open(filepath.Join(top, "vault"))
	l.ok(err)
	_, err = vault.Init(t.Context(), store, vault.InitOptions{
		Keys: []vault.NamedKey{{Name: "k", Key: vault.Key{Identity: identity}}}})
	l.ok(err)
	return l
}

func (l *lab) ok(err error) {
	l.t.Helper()
	if err != nil {
		l.t.Fatal(err)
	}
}

func (l *lab) file(name string, data []byte) string {
	l.t.Helper()
	path := filepath.Join(l.dir, name)
	l.ok(os.WriteFile(path, data, 0o600))
	return path
}

// point makes a point of a machine of that definition, without disks.
func (l *lab) point(name string, d point.Definition) {
	l.t.Helper()
	ctx := l.t.Context()
	store, err := dir.Open(filepath.Join(l.dir, "vault"))
	l.ok(err)
	v, err := vault.Open(ctx, store, vault.Key{Identity: identity}, vault.Options{})
	l.ok(err)
	defer v.Close()
	s, err := v.Begin(ctx, "")
	l.ok(err)
	defer s.Abort()
	l.ok(s.Commit(ctx, &point.RecoveryPoint{ID: point.NewID(), VM: name, MachineUUID: uuid, Definition: d,
		ConsistencyReason: "made by a test"}))
}

func plain(args ...string) point.Definition {
	args = append([]string{"qemu-system-x86_64", "-machine", "q35", "-m", "16", "-nodefaults", "-display", "none"},
		args...)
	return point.Definition{Kind: point.ForQEMU, Args: args, Dir: "/"}
}

// domain is a machine of libvirt's with an agent's channel and a serial port.
func domain(virt, os string) point.Definition {
	return point.Definition{Kind: point.ForLibvirt, InactiveXML: fmt.Sprintf(`<domain type='%s'><name>old</name>
<uuid>%s</uuid><memory unit='MiB'>16</memory><vcpu>1</vcpu>
<os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type>%s</os><features><acpi/></features>
<devices><emulator>/usr/bin/qemu-system-x86_64</emulator><serial type='pty'><target port='0'/></serial>
<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel></devices></domain>`, virt, uuid, os)}
}

func (l *lab) env() []string {
	return []string{"HOLDFAST_VAULT=" + filepath.Join(l.dir, "vault"), "HOLDFAST_KEY_FILE=" +
		filepath.Join(l.dir, "key"),
		"HOLDFAST_MEMORY=" + filepath.Join(l.dir, "memory"),
		"HOLDFAST_STATE=" + filepath.Join(l.dir, "state"), "HOLDFAST_SCRATCH=" + filepath.Join(l.dir, "scratch"),
		"HOLDFAST_CONNECT=qmp:" + filepath.Join(l.dir, "q"), "XDG_CONFIG_HOME=" + l.dir}
}

// lacking runs holdfast in a namespace that a script has changed, and returns what it printed, and
// its status.
func (l *lab) lacking(script string, args ...string) (out, said string, status int) {
	l.t.Helper()
	cmd := exec.Command("unshare", append([]string{"--user", "--map-root-user", "--mount", "sh", "-ec",
		script + "\nexec \"$@\"", "sh", program.Path()}, args...)...)
	cmd.Env = append(os.Environ(), l.env()...)
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); cmd.ProcessState == nil {
		l.t.Fatal(err)
	}
	return stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()
}

// noDevices leaves a /dev that has neither KVM nor FUSE.
func (l *lab) noDevices() string {
	return fmt.Sprintf(`dev=%s/dev; mkdir -p $dev; mount -t tmpfs dev $dev
for n in null zero full random urandom; do touch $dev/$n; mount --bind /dev/$n $dev/$n; done
mount --rbind $dev /dev`, l.dir)
}

func decode(t testing.TB, text string, into any) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), into); err != nil {
		t.Fatalf("%v in %q", err, text)
	}
}
