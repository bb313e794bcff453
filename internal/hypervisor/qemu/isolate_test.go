package qemu

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-vm/holdfast/internal/hypervisor"
	"github.com/holdfast-vm/holdfast/internal/point"
)

// isolated returns what becomes of a command line for a machine without ways out.
func isolated(dir, args string) *rewriter {
	p := &point.RecoveryPoint{Definition: point.Definition{Kind: point.ForQEMU,
		Args: append([]string{"qemu-system-x86_64"}, strings.Fields(args)...), Dir: "/o"}}
	w := newRewriter(hypervisor.Rebuild{Point: p, Name: "new", StorageDir: dir, Isolated: true, UUID: "u", Start: true},
		filepath.Join(dir, "q"), "")
	w.rewrite()
	return w
}

// Nothing that leads out of a machine stays in its command line; what it needs inside does.
func TestIsolate(t *testing.T) {
	const nodefaults = "-nodefaults "
	for _, tt := range []struct{ name, in, want, not string }{
		{"netdev", nodefaults + "-netdev tap,id=n,ifname=t0,script=no,vhost=on -device " +
			"virtio-net-pci,netdev=n,mq=on,mac=52:54:00:aa:bb:cc",
			"-netdev hubport,id=n,hubid=7001|virtio-net-pci,netdev=n,mac=52:54:00:aa:bb:cc", "tap mq"},
		{"netdev in JSON", nodefaults + `-netdev {"type":"user","id":"n","hostfwd":[{"str":"tcp::1-:2"}]}`, "-netdev hubport,id=n,hubid=7001", "user hostfwd"},
		{"nic", nodefaults + "-nic user,model=e1000,mac=52:54:00:aa:bb:cc,hostfwd=tcp::1-:2 -nic bridge,br=br0",
			"-nic hubport,hubid=7001,model=e1000,mac=52:54:00:aa:bb:cc|-nic hubport,hubid=7002 ", "user bridge"},
		{"net", nodefaults + "-net nic,model=e1000,macaddr=52:54:00:aa:bb:cc -net user -net tap",
			"-net nic,model=e1000,macaddr=52:54:00:aa:bb:cc|netdev=hfhub7001|-netdev hubport,id=hfhub7001,hubid=7001",
			"user tap"},
		{"QEMU's own network", "-m 64", "-netdev hubport,id=hfhub7001,hubid=7001|-net nic,netdev=hfhub7001 ", "user"},
		{"no network", "-nic none", "-nic none", "hubport"},
		{"no defaults", nodefaults, "-nodefaults", "hubport"},
		{"shares", nodefaults + "-virtfs local,path=/,mount_tag=x,security_model=none -fsdev local,id=f,path=/ " +
			"-device virtio-9p-pci,fsdev=f,mount_tag=y -device vhost-user-fs-pci,chardev=c -chardev " +
			"socket,id=c,path=/run/virtiofsd",
			"-nodefaults", "virtfs fsdev 9p virtiofsd chardev"},
		{"host devices", nodefaults + "-device vhost-vsock-pci,guest-cid=3 -device vfio-pci,host=1 -device " +
			"usb-host,vendorid=1 -device usb-redir,chardev=r -chardev spicevmc,id=r,name=usbredir -device " +
			"ivshmem-plain,memdev=m",
			"-chardev null,id=r", "vsock vfio usb-host usb-redir spicevmc ivshmem"},
		{"agent and monitor", nodefaults +
			"-chardev socket,id=g,path=/o/g,server=on -device virtserialport,chardev=g,name=org.qemu.guest_agent.0 " +
			"-chardev socket,id=m,host=0.0.0.0,port=4444,server=on -mon chardev=m,mode=control",
			"-chardev socket,id=g,path=DIR/new.qga.sock,server=on,wait=off|-chardev " +
				"socket,id=m,path=DIR/q,server=on,wait=off", "4444"},
		{"ports", nodefaults + "-serial tcp:1.2.3.4:5 -parallel /dev/parport0 -serial /dev/ttyS0 -monitor " +
			"telnet::1,server -gdb tcp::2 -s -qmp tcp::3,server",
			"-serial file:DIR/new.serial1.log|-serial file:DIR/new.serial2.log|-monitor none|-qmp unix:DIR/q",
			"tcp parport ttyS telnet -gdb"},
		{"character devices", nodefaults +
			"-chardev socket,id=a,host=h,port=1 -chardev udp,id=b,host=h,port=2 -chardev tty,id=c,path=/dev/ttyS1 " +
			"-chardev pty,id=d -device isa-serial,chardev=d",
			"-chardev null,id=a|-chardev null,id=b|-chardev null,id=c|-chardev file,id=d,path=DIR/new.d.log",
			"udp tty"},
		{"displays", nodefaults + "-vnc :1 -spice port=5 -display gtk -audiodev pa,id=s,server=tcp:h",
			"-display none|-audiodev none,id=s", "vnc spice gtk pa,"},
		{"objects", nodefaults + "-object rng-egd,id=r,chardev=e -chardev socket,id=e,host=h,port=1 -device " +
			"virtio-rng-pci,rng=r -object filter-mirror,id=f,netdev=n,outdev=e -object can-host-socketcan,id=c,if=can0",
			"-object rng-random,id=r,filename=/dev/urandom", "egd filter can-host"},
		{"media", nodefaults + "-drive file=http://h/x.iso,media=cdrom,if=none,id=cd -cdrom nbd://h/y -fda /o/floppy " +
			"-drive if=floppy,file=/o/f2 -blockdev driver=http,url=http://h/z,node-name=z,read-only=on -device " +
			"ide-cd,drive=z,id=k",
			"-drive media=cdrom,if=none,id=cd", "http nbd floppy"},
		{"variables", nodefaults + "-drive if=pflash,file=/o/vars,format=raw", "snapshot=on", ""},
		{"nographic", "-nographic -nic none", "-display none|-serial file:DIR/new.serial.log", "nographic"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := isolated("/s", tt.in)
			got := strings.ReplaceAll(strings.Join(w.cl.args(), " "), "/s/", "DIR/") + " "
			for _, want := range strings.Split(tt.want, "|") {
				if !strings.Contains(got, want) {
					t.Errorf("no %q in %s", want, got)
				}
			}
			for _, not := range strings.Fields(tt.not) {
				if strings.Contains(got, not) {
					t.Errorf("%q in %s", not, got)
				}
			}
		})
	}
}

// A real QEMU of an isolated command line has no way out, and one that was not isolated has, and
// says which.
func TestIsolation(t *testing.T) {
	const machine = "-machine none -display none -m 16 "
	for _, tt := range []struct {
		name, args string
		open       bool
		found      []string
	}{
		{"isolated", "-machine pc -m 16 -nodefaults -netdev user,id=n -device e1000,netdev=n -nic user,model=rtl8139 " +
			"-chardev udp,id=u,host=127.0.0.1,port=9 -vnc 127.0.0.1:77 -serial udp:127.0.0.1:9", false, nil},
		{"default network", "-machine pc -m 16", false, nil},
		{"hardware", "-machine q35 -m 16 -nodefaults -drive " +
			"if=pflash,readonly=on,file=/usr/share/OVMF/OVMF_CODE_4M.fd,format=raw " +
			"-nic user,model=virtio-net-pci -nic user,model=rtl8139 -netdev tap,id=a -device e1000e,netdev=a -device " +
			"qemu-xhci -netdev user,id=b -device usb-net,netdev=b " +
			"-drive if=none,id=n,file=/o/nvme.img,format=raw -device nvme,drive=n,serial=1 -drive " +
			"if=none,id=u,file=/o/usb.img,format=raw -device usb-storage,drive=u", false, nil},
		{"user network", machine + "-nodefaults -netdev user,id=n -netdev " +
			"socket,id=s,udp=127.0.0.1:9,localaddr=127.0.0.1:0", true,
			[]string{"network n of type user", "network s of type", "UDP socket"}},
		{"hub that is shared", machine + "-nodefaults -netdev user,id=n -netdev hubport,id=a,hubid=1,netdev=n", true,
			[]string{"type user"}},
		{"listens", machine + "-nodefaults -chardev udp,id=c,host=127.0.0.1,port=9,localaddr=127.0.0.1,localport=0",
			true, []string{"UDP socket 127.0.0.1"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir, err := os.MkdirTemp("", "hf")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { os.RemoveAll(dir) })
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
			t.Cleanup(cancel)
			h, err := New(Scheme + dir + "/q")
			if err != nil {
				t.Fatal(err)
			}
			defer h.Close()
			p := &point.RecoveryPoint{Definition: point.Definition{Kind: point.ForQEMU,
				Args: append([]string{"qemu-system-x86_64"}, strings.Fields(tt.args)...)}}
			images := imagesOf(t, p, dir, "nvme", "usb")
			r := hypervisor.Rebuild{Disks: images, Point: p, Name: "new", StorageDir: dir, Isolated: !tt.open,
				Held: !tt.open, Start: true}
			if tt.open {
				r.SameIdentity = true
			}
			built, err := h.Define(ctx, r)
			if err != nil {
				t.Fatal(err)
			}
			m := hypervisor.Machine{Name: "new", UUID: built.UUID}
			t.Cleanup(func() {
				if err := h.Remove(context.WithoutCancel(ctx), m); err != nil {
					t.Error(err)
				}
			})
			report, err := h.Isolation(ctx, m)
			if err != nil {
				t.Fatal(err)
			}
			if r.Held {
				checkHeld(ctx, t, h, m)
			}
			if report.Isolated() == tt.open || report.Sockets == 0 {
				t.Errorf("found %q, %d sockets", report.Found, report.Sockets)
			}
			for _, want := range tt.found {
				if !strings.Contains(strings.Join(report.Found, "; "), want) {
					t.Errorf("found %q, want %q", report.Found, want)
				}
			}
			if tt.name == "default network" {
				picture, err := h.Screenshot(ctx, m)
				if err != nil || !strings.HasPrefix(string(picture), "\x89PNG") {
					t.Errorf("a screenshot: %.8q, %v", picture, err)
				}
			}
		})
	}
}

// checkHeld fails the test unless the machine waits for its release, and runs after it.
func checkHeld(ctx context.Context, t *testing.T, h *Host, m hypervisor.Machine) {
	t.Helper()
	c, err := h.Client(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"prelaunch", "running"} {
		var s struct{ Status string }
		if err := c.Execute(ctx, "query-status", nil, &s); err != nil || s.Status != want {
			t.Errorf("the machine is %s, want %s (%v)", s.Status, want, err)
		}
		if err := h.Release(ctx, m); err != nil {
			t.Error(err)
		}
	}
}

// imagesOf makes an image for each of the disks that the command line of a point names.
func imagesOf(t *testing.T, p *point.RecoveryPoint, dir string, names ...string) map[string]string {
	t.Helper()
	images := map[string]string{}
	for _, name := range names {
		file := "/o/" + name + ".img"
		if !strings.Contains(strings.Join(p.Definition.Args, " "), file) {
			continue
		}
		images[name] = filepath.Join(dir, name+".img")
		if err := os.WriteFile(images[name], make([]byte, 1<<20), 0o600); err != nil {
			t.Fatal(err)
		}
		p.Disks = append(p.Disks, point.Disk{Name: name, Size: 1 << 20, Source: point.Source{File: file}})
	}
	return images
}
