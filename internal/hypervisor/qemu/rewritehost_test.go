package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/hypervisor"
	"github.com/holdfast-vm/holdfast/internal/hypervisor/isolation"
	"github.com/holdfast-vm/holdfast/internal/point"
)

// Each case is a part of a command line, and what becomes of it where the lost machine comes back
// and where it is a copy. DIR is a directory that is there.
func TestForeign(t *testing.T) {
	dir := shortDir(t)
	for _, name := range []string{"vars.fd", "other.fd", "ro.img"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	const gone = ""
	for _, tt := range []struct{ name, in, back, copy string }{
		{"NVDIMM", "-object memory-backend-file,id=m,mem-path=/o/nv,size=1M,share=on -device nvdimm,memdev=m", gone,
			gone},
		{"NVDIMM in JSON", `-object {"qom-type":"memory-backend-file","id":"m","mem-path":"/o/nv","size":1048576,"share":true} -device {"driver":"nvdimm","memdev":"m"}`, gone, gone},
		{"virtio-pmem", "-object memory-backend-file,id=m,mem-path=/o/nv,size=1M -device virtio-pmem-pci,memdev=m,id=p",
			gone, gone},
		{"CXL", "-object memory-backend-file,id=m,mem-path=/o/nv,size=1M -device cxl-type3,persistent-memdev=m " +
			"-object memory-backend-ram,id=v,size=1M -device cxl-type3,volatile-memdev=v",
			"-object memory-backend-ram,id=v,size=1M -device cxl-type3,volatile-memdev=v",
			"-object memory-backend-ram,id=v,size=1M -device cxl-type3,volatile-memdev=v"},
		{"error records", "-object memory-backend-file,id=m,mem-path=/o/nv,size=1M -device acpi-erst,memdev=m", gone,
			gone},
		{"NVMe with memory", "-object memory-backend-file,id=m,mem-path=/o/nv,size=1M -device nvme,pmrdev=m,serial=s",
			"-device nvme,serial=s", "-device nvme,serial=s"},
		{"memory of the guest", "-machine pc,memory-backend=m -object " +
			"memory-backend-file,id=m,mem-path=/o/ram,size=1M,share=on,prealloc=on",
			"-machine pc,memory-backend=m -object memory-backend-memfd,id=m,size=1M,share=on,prealloc=on",
			"-machine pc,memory-backend=m -object memory-backend-memfd,id=m,size=1M,share=on,prealloc=on"},
		{"private memory", "-numa node,memdev=m -object memory-backend-file,id=m,mem-path=/o/ram,size=1M",
			"-numa node,memdev=m -object memory-backend-ram,id=m,size=1M",
			"-numa node,memdev=m -object memory-backend-ram,id=m,size=1M"},
		{"huge pages", "-numa node,memdev=m -object memory-backend-file,id=m,mem-path=DIR,size=1M,share=on",
			"-numa node,memdev=m -object memory-backend-file,id=m,mem-path=DIR,size=1M,share=on",
			"-numa node,memdev=m -object memory-backend-file,id=m,mem-path=DIR,size=1M,share=on"},
		{"mem-path", "-mem-path /o/ram -mem-path DIR", "-mem-path DIR", "-mem-path DIR"},
		{"9p", "-virtfs local,path=DIR,mount_tag=t,security_model=none",
			"-virtfs local,path=DIR,mount_tag=t,security_model=none", gone},
		{"9p of a folder that is gone",
			"-fsdev local,id=f,path=/o/none,security_model=none -device virtio-9p-pci,fsdev=f,mount_tag=t", gone, gone},
		{"9p in two parts", "-fsdev local,id=f,path=DIR -device virtio-9p-pci,fsdev=f,mount_tag=t",
			"-fsdev local,id=f,path=DIR -device virtio-9p-pci,fsdev=f,mount_tag=t", gone},
		{"virtiofs", "-chardev socket,id=c,path=/o/fs -device vhost-user-fs-pci,chardev=c,tag=t", gone, gone},
		{"samba", "-netdev user,id=n,smb=/o/share", "-netdev user,id=n,smb=/o/share", "-netdev user,id=n"},
		{"vhost-user disk", "-chardev socket,id=c,path=/o/spdk -device vhost-user-blk-pci,chardev=c", gone, gone},
		{"vhost-user network", "-chardev socket,id=c,path=/o/ovs -netdev vhost-user,id=n,chardev=c -device " +
			"virtio-net-pci,netdev=n,mac=m",
			"-chardev socket,id=c,path=/o/ovs -netdev vhost-user,id=n,chardev=c -device virtio-net-pci,netdev=n,mac=m",
			"-netdev hubport,hubid=7501,id=n -device virtio-net-pci,netdev=n,mac=NEW"},
		{"network that listens", "-netdev stream,id=n,server=on,addr.type=unix,addr.path=/o/net",
			"-netdev stream,id=n,server=on,addr.type=unix,addr.path=/o/net", "-netdev hubport,hubid=7501,id=n"},
		{"vdpa", "-netdev vhost-vdpa,id=n,vhostdev=/dev/vhost-vdpa-0", "-netdev hubport,hubid=7501,id=n",
			"-netdev hubport,hubid=7501,id=n"},
		{"shared memory", "-object memory-backend-file,id=m,mem-path=/dev/shm/x,size=1M,share=on -device " +
			"ivshmem-plain,memdev=m", gone, gone},
		{"host devices", "-device vfio-pci,host=1 -device usb-host,vendorid=1 -object " +
			"input-linux,id=i,evdev=/dev/input/e -device virtio-input-host-pci,evdev=/dev/input/e", gone, gone},
		{"SCSI of the host", "-drive if=none,id=d,file=/dev/sg0,format=raw -device scsi-generic,drive=d -drive " +
			"if=none,id=e,file=/dev/sdb,format=raw -device scsi-block,drive=e", gone, gone},
		{"TPM of the host", "-tpmdev passthrough,id=t,path=/dev/tpm0 -device tpm-tis,tpmdev=t", gone, gone},
		{"console that connects", "-chardev socket,id=c,path=/o/con -device isa-serial,chardev=c -serial tcp:h:1",
			"-chardev socket,id=c,path=/o/con -device isa-serial,chardev=c -serial tcp:h:1",
			"-chardev null,id=c -device isa-serial,chardev=c -serial null"},
		{"ports of the host", "-chardev serial,id=c,path=/dev/ttyS0 -device isa-serial,chardev=c -parallel " +
			"/dev/parport0",
			"-chardev serial,id=c,path=/dev/ttyS0 -device isa-serial,chardev=c -parallel /dev/parport0",
			"-chardev null,id=c -device isa-serial,chardev=c -parallel null"},
		{"logs", "-chardev file,id=c,path=/o/log -device isa-serial,chardev=c -chardev pipe,id=p,path=/o/fifo " +
			"-device isa-debugcon,chardev=p -audiodev wav,id=a,path=/o/a.wav -trace e,file=/o/trace -D /o/q.log",
			"-chardev file,id=c,path=DIR/new.c.log -device isa-serial,chardev=c -chardev " +
				"file,id=p,path=DIR/new.p.log -device isa-debugcon,chardev=p -audiodev wav,id=a,path=DIR/new.a.wav " +
				"-trace e,file=DIR/new.trace -D DIR/new.qemu.log", "="},
		{"randomness", "-chardev socket,id=c,path=/o/egd -object rng-egd,id=r,chardev=c -device virtio-rng-pci,rng=r",
			"-chardev socket,id=c,path=/o/egd -object rng-egd,id=r,chardev=c -device virtio-rng-pci,rng=r",
			"-object rng-random,id=r,filename=/dev/urandom -device virtio-rng-pci,rng=r"},
		{"floppies and cards", "-fda /o/f -sd /o/s -mtdblock /o/m -drive if=floppy,file=/o/g -drive if=sd,file=/o/s2 " +
			"-drive if=none,id=s3,file=/o/s3 -device sd-card,drive=s3", gone, gone},
		{"read-only floppy", "-drive if=floppy,file=DIR/ro.img,readonly=on",
			"-drive if=floppy,file=DIR/ro.img,readonly=on", "="},
		{"firmware variables", "-drive if=pflash,file=/usr/share/OVMF/OVMF_CODE_4M.fd,readonly=on -drive " +
			"if=pflash,format=raw,file=DIR/vars.fd",
			"-drive if=pflash,file=/usr/share/OVMF/OVMF_CODE_4M.fd,readonly=on -drive " +
				"if=pflash,format=raw,file=DIR/new.flash-vars.fd", "="},
		{"firmware variables of the board",
			"-machine pc,pflash1=v -blockdev driver=raw,file=vf,node-name=v -blockdev " +
				"driver=file,filename=DIR/vars.fd,node-name=vf -device uefi-vars-x64,jsonfile=DIR/other.fd",
			"-machine pc,pflash1=v -blockdev driver=raw,file=vf,node-name=v -blockdev " +
				"driver=file,filename=DIR/new.flash-vars.fd,node-name=vf -device " +
				"uefi-vars-x64,jsonfile=DIR/new.flash-other.fd", "="},
		{"keys that nothing needs", "-object secret,id=s,file=/o/key -blockdev " +
			"driver=qcow2,node-name=q,encrypt.key-secret=s,file.driver=file,file.filename=/o/q -device " +
			"virtio-blk-pci,drive=q", gone, gone},
		{"crypto of another process", "-chardev socket,id=c,path=/o/cr -object cryptodev-vhost-user,id=k,chardev=c " +
			"-device virtio-crypto-pci,cryptodev=k", gone, gone},
		{"what QEMU records", "-icount shift=7,rr=record,rrfile=/o/rr -plugin /o/p.so", "-icount shift=7", "="},
	} {
		for same, want := range map[bool]string{true: tt.back, false: tt.copy} {
			if want == "=" {
				want = tt.back
			}
			in := strings.ReplaceAll(tt.in, "DIR", dir)
			p := &point.RecoveryPoint{Definition: point.Definition{Kind: point.ForQEMU,
				Args: append([]string{"qemu"}, strings.Fields(in)...), Dir: "/o"}}
			w := newRewriter(hypervisor.Rebuild{Point: p, Name: "new", StorageDir: dir, SameIdentity: same, UUID: "u"},
				dir+"/q", "")
			w.rewrite()
			got := strings.Join(w.cl.args()[1:], " ")
			got = strings.TrimSpace(strings.ReplaceAll(strings.ReplaceAll(got, "-name guest=new", ""),
				"-qmp unix:"+dir+"/q,server=on,wait=off", ""))
			got = strings.Join(strings.Fields(strings.ReplaceAll(got, "-uuid u", "")), " ")
			if i := strings.Index(got, "mac=52:54:00"); i >= 0 {
				got = got[:i] + "mac=NEW" + got[i+len("mac=52:54:00:00:00:00"):]
			}
			if got = strings.ReplaceAll(got, dir, "DIR"); got != want {
				t.Errorf("%s, in place %t:\n%s\nwant\n%s", tt.name, same, got, want)
			}
			if want != strings.TrimSpace(tt.in) && tt.name != "keys that nothing needs" && tt.name != "logs" &&
				len(w.warnings) == 0 {
				t.Errorf("%s, in place %t: changed without a word", tt.name, same)
			}
		}
	}
}

// A machine that a file of QEMU's defines is not built: that could name anything.
func TestConfigurationFileIsRefused(t *testing.T) {
	dir := shortDir(t)
	h, err := New(Scheme + dir + "/q")
	if err != nil {
		t.Fatal(err)
	}
	p := &point.RecoveryPoint{Definition: point.Definition{Kind: point.ForQEMU,
		Args: []string{"qemu-system-x86_64", "-readconfig", "/o/c"}}}
	_, err = h.Define(t.Context(), hypervisor.Rebuild{Point: p, Name: "n", StorageDir: dir})
	if !errors.Is(err, errConfigurationFile) || exists(filepath.Join(dir, "n.sh")) {
		t.Errorf("define: %v", err)
	}
}

// Beside an original with something of everything, a copy and a drill start, and neither holds any
// file of the original's that it could write, nor is connected to anything that it is.
func TestOriginalIsLeftAlone(t *testing.T) {
	dir, h := allOf(t)
	m := machine(t, h)
	about, err := h.Describe(t.Context(), m)
	if err != nil {
		t.Fatal(err)
	}
	for _, isolated := range []bool{false, true} {
		t.Run(fmt.Sprintf("isolated %t", isolated), func(t *testing.T) {
			storage := shortDir(t)
			p := &point.RecoveryPoint{ID: point.NewID(), VM: m.Name, Definition: about.Definition,
				NotHeld: about.NotHeld}
			r := hypervisor.Rebuild{Point: p, Name: "new", StorageDir: storage, Start: true, Isolated: isolated,
				Held:  true,
				Disks: map[string]string{}, Formats: map[string]string{}}
			for _, d := range m.Disks {
				p.Disks = append(p.Disks, point.Disk{Name: d.Name, Size: d.Size,
					Source: point.Source{File: d.File, Format: d.Format, Node: d.Node}})
				r.Disks[d.Name], r.Formats[d.Name] = filepath.Join(storage, d.Name), "raw"
				tool(t, "truncate", "-s", "64M", r.Disks[d.Name])
			}
			n, err := New(Scheme + storage + "/q")
			if err != nil {
				t.Fatal(err)
			}
			defer n.Close()
			built, err := n.Define(t.Context(), r)
			if err != nil {
				t.Fatal(err)
			}
			defer n.Remove(context.Background(), hypervisor.Machine{Name: built.Name, UUID: built.UUID})
			c, err := n.Client(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			checkAlone(t, c.PeerPID(), dir, storage)
			for _, kind := range []string{"persistent memory", "store of error records", "memory shared",
				"shared folder", "disk of another process"} {
				if !strings.Contains(strings.Join(built.Warnings, "\n"), kind) {
					t.Errorf("no word of %s in %q", kind, built.Warnings)
				}
			}
		})
	}
}

// checkAlone fails if a process could write to a file below dir, maps one, or has a connection to
// somebody else. own is the machine's own directory.
func checkAlone(t *testing.T, pid int, dir, own string) {
	t.Helper()
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(maps)) {
		if strings.Contains(line, dir+"/") {
			t.Errorf("it has mapped %s", line)
		}
	}
	report, err := isolation.Inspect(pid, []string{own})
	if err != nil {
		t.Fatal(err)
	}
	for _, found := range report.Found {
		if strings.Contains(found, dir) || strings.Contains(found, "connected to") {
			t.Errorf("found: %s", found)
		}
	}
}
