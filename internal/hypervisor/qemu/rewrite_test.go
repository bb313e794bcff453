package qemu

import (
	"strings"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/hypervisor"
	"github.com/holdfast-vm/holdfast/internal/point"
)

// Each case is a command line and what becomes of it under the name new, with the disk vda now at
// /d/a in qcow2.
func TestRewrite(t *testing.T) {
	const tail = " -qmp unix:/s/q,server=on,wait=off"
	for _, tt := range []struct{ name, file, node, in, want string }{
		{"drive", "/o/a", "#block1", "-drive file=a,if=virtio,id=x,cache=none -device foo,drive=x",
			"-drive file=/d/a,if=virtio,id=x,cache=none,format=qcow2 -device foo,drive=x -name guest=new" + tail},
		{"bare image", "/o/a", "", "a", "-drive file=/d/a,format=qcow2,index=0,media=disk -name guest=new" + tail},
		{"hdb", "/o/a", "", "-hdb /o/a", "-drive file=/d/a,format=qcow2,index=1,media=disk -name guest=new" + tail},
		{"disk that is not in the point", "/o/a", "",
			"-drive file=/o/a,format=raw -drive file=/o/b,if=none,id=b -device bar,drive=b",
			"-drive file=/d/a,format=qcow2 -name guest=new" + tail},
		{"overlay of nodes", "/o/a", "a", `-blockdev driver=file,filename=base,node-name=f0 -blockdev driver=qcow2,file=f0,node-name=b0 ` +
			`-blockdev driver=nbd,server.type=unix,server.path=/x,node-name=f1 -blockdev driver=qcow2,file=f1,backing=b0,node-name=a -device baz,drive=a`,
			`-blockdev driver=file,node-name=f1,filename=/d/a -blockdev driver=qcow2,file=f1,node-name=a -device baz,drive=a -name guest=new` + tail},
		{"nested node below a filter", "/o/a", "t",
			`-blockdev {"driver":"throttle","node-name":"t","throttle-group":"g","file":{"driver":"raw","file":{"driver":"host_device","filename":"/dev/sdx","aio":"native"}}} -device baz,drive=t`,
			`-blockdev {"driver":"throttle","file":{"driver":"qcow2","file":{"aio":"native","driver":"file","filename":"/d/a"}},"node-name":"t","throttle-group":"g"} -device baz,drive=t -name guest=new` + tail},
		{"protocol as the root", "/o/a", "r",
			"-blockdev driver=file,filename=a,node-name=r,discard=unmap -device baz,drive=r",
			"-blockdev driver=qcow2,node-name=r,discard=unmap,file.driver=file,file.filename=/d/a -device " +
				"baz,drive=r -name guest=new" + tail},
		{"disk plugged in later", "/o/zz", "#block9", "-M q35",
			"-M q35 -name guest=new -drive file=/d/a,format=qcow2,if=virtio" + tail},
		{"monitors", "/o/a", "", "-hda /o/a -chardev socket,id=m,path=/o/m,server,nowait -mon chardev=m,mode=control " +
			"-qmp unix:/o/q2,server -monitor unix:/o/h,server",
			"-drive file=/d/a,format=qcow2,index=0,media=disk -chardev socket,id=m,path=/s/q,server=on,wait=off -mon " +
				"chardev=m,mode=control -qmp unix:/s/new.qmp3.sock,server=on,wait=off " +
				"-monitor unix:/s/new.monitor4.sock,server=on,wait=off -name guest=new"},
		{"agent, ports, display", "/o/a", "",
			"-hda /o/a -chardev socket,id=g,path=/o/g,server=on -device " +
				"virtserialport,chardev=g,name=org.qemu.guest_agent.0 -serial tcp::4,server -vnc :1 -pidfile p " +
				"-daemonize -incoming defer -S",
			"-drive file=/d/a,format=qcow2,index=0,media=disk -chardev " +
				"socket,id=g,path=/s/new.qga.sock,server=on,wait=off -device " +
				"virtserialport,chardev=g,name=org.qemu.guest_agent.0 " +
				"-serial unix:/s/new.serial3.sock,server=on,wait=off -vnc unix:/s/new.vnc -pidfile /s/new.pid -name " +
				"guest=new" + tail},
		{"bridge", "/o/a", "", "-hda /o/a -netdev bridge,id=n,br=br0 -nic tap,br=other -name old,process=p",
			"-drive file=/d/a,format=qcow2,index=0,media=disk -netdev bridge,id=n,br=br9 -nic tap,br=other -name " +
				"guest=new,process=p" + tail},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := &point.RecoveryPoint{Disks: []point.Disk{{Name: "vda",
				Source: point.Source{File: tt.file, Node: tt.node}}}}
			p.Definition = point.Definition{Args: append([]string{"qemu"}, strings.Fields(tt.in)...), Dir: "/o"}
			w := newRewriter(hypervisor.Rebuild{Point: p, Name: "new", StorageDir: "/s", SameIdentity: true,
				Disks:   map[string]string{"vda": "/d/a"},
				Formats: map[string]string{"vda": "qcow2"}, Networks: map[string]string{"br0": "br9"}}, "/s/q", "")
			w.rewrite()
			if got := strings.Join(w.cl.args()[1:], " "); got != tt.want {
				t.Errorf("rewritten to\n%s\nwant\n%s", got, tt.want)
			}
		})
	}
}

func TestFreshIdentity(t *testing.T) {
	args := []string{"qemu", "-uuid", "u", "-smbios", "type=1,uuid=u", "-device", "vmgenid,guid=g", "-device",
		"e1000,netdev=n", "-nic", "user", "-machine", "pc,accel=tcg"}
	p := &point.RecoveryPoint{Definition: point.Definition{Args: args, MachineType: "pc-i440fx-7.2"}}
	w := newRewriter(hypervisor.Rebuild{Point: p, Name: "n", StorageDir: "/s"}, "/s/q", "")
	w.rewrite()
	got := strings.Join(w.cl.args(), " ")
	for _, want := range []string{"-uuid " + w.uuid, "type=1,uuid=" + w.uuid, "vmgenid,guid=auto",
		"e1000,netdev=n,mac=52:54:00:", "user,mac=52:54:00:", "-machine pc-i440fx-7.2,accel=tcg"} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in %s", want, got)
		}
	}
}

func TestTPMArgs(t *testing.T) {
	for _, tt := range []struct {
		args, socket, dir string
		ok                bool
	}{
		{"swtpm socket --tpmstate dir=/t,mode=0600 --ctrl type=unixio,path=/c", "/c", "/t", true},
		{"swtpm socket --tpmstate=dir=/t --ctrl=type=unixio,path=/c", "/c", "/t", true},
		{"swtpm socket --tpmstate dir=/t --ctrl type=unixio,path=/other", "/c", "/t", false},
		{"swtpm --ctrl", "/c", "", false},
	} {
		if dir, ok := tpmArgs(strings.Fields(tt.args), tt.socket); ok != tt.ok || ok && dir != tt.dir {
			t.Errorf("tpmArgs(%q) = %q, %t", tt.args, dir, ok)
		}
	}
}

// Properties that were read are written as they were, and survive a change of another.
func FuzzProps(f *testing.F) {
	for _, s := range []string{"virtio-blk-pci,drive=a", "file=a,,b,if=virtio", `{"driver":"raw","file":{"driver":"file","x":1.50}}`, "a=b=c,d", ",", "=", `{"a":null,"b":[1]}`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p := parseProps(s, "driver")
		once := p.String()
		again := parseProps(once, "driver")
		if twice := again.String(); twice != once {
			t.Errorf("%q is written as %q, and that as %q", s, once, twice)
		}
		p.set("hf-key", "v,=")
		if got := parseProps(p.String(), "driver").get("hf-key"); got != "v,=" {
			t.Errorf("%q with a key set is %q and gives %q", s, p.String(), got)
		}
	})
}

// Any command line is split and joined again, except for one dash in the place of two.
func FuzzCommandLine(f *testing.F) {
	for _, s := range []string{"qemu -S -m 64 disk", "qemu --daemonize -name", "", "q - -- -"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		args := strings.Split(s, " ")
		cl := parseCommandLine(args)
		first := cl.args()
		cl = parseCommandLine(first)
		if second := cl.args(); strings.Join(first, " ") != strings.Join(second, " ") {
			t.Errorf("%q becomes %q, and that %q", s, first, second)
		}
	})
}
