package host

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/drill"
	"github.com/holdfast-vm/holdfast/test/vm/libvirtd"
	"github.com/holdfast-vm/holdfast/test/vm/program"
)

// standing is firmware whose first instruction jumps to itself.
func standing() []byte {
	image := make([]byte, 64<<10)
	copy(image[0xfff0:], []byte{0xeb, 0xfe})
	return image
}

// Of a guest that stands still a drill says so, and where it stands; not that it has no agent.
func TestDrillOfAStandingGuest(t *testing.T) {
	program.Hypervisors(t, func(t *testing.T, libvirt bool) {
		t.Parallel()
		l := newLab(t)
		firmware := l.file("firmware", standing())
		env := l.env()
		if libvirt {
			l.ok(os.Chmod(l.dir, 0o755))
			l.point("web", domain("qemu", "<loader readonly='yes' type='rom'>"+firmware+"</loader>"))
			env = append(env, "HOLDFAST_CONNECT="+libvirtd.New(t).URI)
		} else {
			l.point("web", plain("-bios", firmware, "-serial", "file:/nowhere", "-device", "virtio-serial", "-chardev",
				"socket,id=g,path=/nowhere/g,server=on,wait=off", "-device",
				"virtserialport,chardev=g,name=org.qemu.guest_agent.0"))
		}
		out := program.Start(t, env, "point", "drill", "web@latest", "--timeout", "3s", "--json").Finish(t, 6)
		var res drill.Result
		decode(t, out, &res)
		for _, want := range []string{"the guest agent did not answer within 3s: the guest made no progress: for ",
			"its processor stood at 0xfff0 in 16-bit code, interrupts off in all of "} {
			if !strings.Contains(res.Reason, want) {
				t.Errorf("the verdict lacks %q: %s", want, res.Reason)
			}
		}
		if p := res.Progress; res.Accel != "tcg" || p == nil || !p.Still || p.ReadBytes != 0 || p.Wrote ||
			len(p.Processors) != 1 {
			t.Errorf("run by %q, progress %+v", res.Accel, p)
		}
	})
}

// Where there is no KVM, a machine that needs it is refused before anything is written, and
// emulated if that is asked for.
func TestNoKVM(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.point("web", plain("-enable-kvm", "-cpu", "host", "-S"))
	storage := filepath.Join(l.dir, "storage")
	restore := []string{"point", "restore", "web@latest", "--as", "new", "--storage", storage, "--start"}
	for _, args := range [][]string{restore, append(restore[:len(restore):len(restore)], "--instant"),
		{"point", "drill", "web@latest"}} {
		_, said, status := l.lacking(l.noDevices(), args...)
		if status != 1 || !strings.Contains(said, "this host has no KVM: open /dev/kvm: no such file or directory") ||
			!strings.Contains(said, "hint: --accel tcg") {
			t.Errorf("%q without KVM ends with %d:\n%s", args, status, said)
		}
		if left, _ := filepath.Glob(filepath.Join(l.dir, "s*")); len(left) > 0 {
			if entries, _ := filepath.Glob(filepath.Join(l.dir, "s*/*")); len(entries) > 0 {
				t.Errorf("%q has written %q", args, entries)
			}
		}
	}
	out, said, status := l.lacking(l.noDevices(), restore[:len(restore)-1]...)
	if status != 0 || !strings.Contains(said, "the machine does not start here") {
		t.Errorf("not to be started it ends with %d:\n%s%s", status, out, said)
	}
	if script, err := os.ReadFile(filepath.Join(storage, "new.sh")); err != nil ||
		!strings.Contains(string(script), "-enable-kvm") {
		t.Errorf("it is not as it was: %v\n%s", err, script)
	}
	_, said, status = l.lacking(l.noDevices(), "point", "drill", "web@latest", "--accel", "tcg", "--timeout", "1s")
	if status != 6 || !strings.Contains(said, "the guest agent did not answer within 1s") {
		t.Errorf("emulated the drill ends with %d:\n%s", status, said)
	}
}

// libvirt does not define what it cannot run, so nothing is written for it either.
func TestNoKVMForLibvirt(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.point("web", domain("kvm", ""))
	uri := libvirtd.New(t).URI
	storage := filepath.Join(l.dir, "storage")
	args := []string{"--connect", uri, "point", "restore", "web@latest", "--as", "new", "--storage", storage}
	_, said, status := l.lacking(l.noDevices(), args...)
	if status != 1 || !strings.Contains(said, "this host has no KVM") {
		t.Errorf("it ends with %d:\n%s", status, said)
	}
	if _, err := os.Stat(storage); !os.IsNotExist(err) {
		t.Errorf("the storage directory was made: %v", err)
	}
	if out, said, status := l.lacking(l.noDevices(), append(args, "--accel", "tcg")...); status != 0 ||
		!strings.Contains(said, "emulated, and slowly") {
		t.Errorf("emulated it ends with %d:\n%s%s", status, out, said)
	}
}
