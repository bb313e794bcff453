package qemu

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// allOf runs a machine that has something of everything that a point does not hold, as far as QEMU
// starts with it here, some of it plugged in later.
func allOf(t *testing.T) (dir string, h *Host) {
	t.Helper()
	dir = shortDir(t)
	for _, name := range []string{"ram", "nv", "erst", "later", "disk", "base", "card", "floppy", "cd", "blob"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(filepath.Join(dir, name), 64<<20); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Truncate(filepath.Join(dir, "floppy"), 1440<<10); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(filepath.Join(dir, "erst"), 64<<10); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "secret"), []byte("geheim"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "share"), 0o755); err != nil {
		t.Fatal(err)
	}
	serveSocket(t, filepath.Join(dir, "cards"))
	serveDisk(t, dir)
	spawn(t, dir, "qemu-system-x86_64", strings.Fields(`-S -display none -nodefaults -qmp unix:q.sock,server=on,wait=off
		-machine pc,accel=tcg,nvdimm=on,memory-backend=ram -m 64M,slots=4,maxmem=1G
		-object memory-backend-file,id=ram,mem-path=ram,size=64M,share=on
		-object memory-backend-file,id=nvm,mem-path=nv,size=64M,share=on -device nvdimm,memdev=nvm,id=nv0
		-object memory-backend-file,id=rec,mem-path=erst,size=64K,share=on -device acpi-erst,memdev=rec
		-object memory-backend-file,id=ps,mem-path=blob,size=1M,share=on -device ivshmem-plain,memdev=ps
		-virtfs local,path=share,mount_tag=x,security_model=none,id=fs0
		-drive if=virtio,file=disk,format=raw -drive if=virtio,file=base,format=raw,readonly=on
		-drive if=floppy,file=floppy,format=raw -cdrom cd
		-device sdhci-pci -drive if=none,id=sd0,file=card,format=raw -device sd-card,drive=sd0
		-object secret,id=sec0,file=secret -object secret,id=sec1,data=bGV0bWVpbg==
		-chardev socket,id=card,path=cards -device qemu-xhci -device usb-ccid -device ccid-card-passthru,id=ext,chardev=card
		-chardev socket,id=vu,path=vu.sock -device vhost-user-blk-pci,id=vub,chardev=vu
		-fw_cfg name=opt/x,file=blob`)...)
	h = connect(t, "qmp:"+dir+"/q.sock")
	c, err := h.Client(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		command string
		args    map[string]any
	}{
		{"object-add", map[string]any{"qom-type": "memory-backend-file", "id": "pm", "mem-path": dir + "/later",
			"size": 64 << 20, "share": true}},
		{"device_add", map[string]any{"driver": "virtio-pmem-pci", "memdev": "pm", "id": "hot"}},
	} {
		if err := c.Execute(t.Context(), step.command, step.args, nil); err != nil {
			t.Fatal(err)
		}
	}
	return dir, h
}

// serveSocket listens and takes whoever comes.
func serveSocket(t *testing.T, path string) {
	t.Helper()
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
}

// serveDisk runs a process that serves a disk to machines, at vu.sock.
func serveDisk(t *testing.T, dir string) {
	t.Helper()
	tool(t, "truncate", "-s", "8M", filepath.Join(dir, "vu"))
	spawn(t, dir, "qemu-storage-daemon", "--blockdev", "driver=file,filename=vu,node-name=f", "--export",
		"type=vhost-user-blk,id=e,addr.type=unix,addr.path=vu.sock,node-name=f,writable=on")
	await(t, "the process that serves a disk", func() bool { return exists(filepath.Join(dir, "vu.sock")) })
}

// Everything that a point does not hold is listed, with what of the host is behind it: given at the
// start or plugged in later.
func TestNotHeld(t *testing.T) {
	dir, h := allOf(t)
	m := machine(t, h)
	list, err := h.NotHeld(t.Context(), m)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"pmem nv0": "nv", "pmem hot": "later", "memory-file ram": "ram", "error-records acpi-erst": "erst",
		"shared-memory ivshmem-plain": "blob", "shared-folder virtio-9p-pci": "share", "read-only-disk virtio1": "base",
		"floppy": "floppy", "medium ide": "cd", "memory-card sd": "card", "key sec0": "secret",
		"smartcard ext": "cards", "served-disk vub": "vu.sock", "host-file -fw_cfg": "blob",
	}
	for _, o := range list {
		found := false
		for key, file := range want {
			if strings.HasPrefix(o.Kind+" "+o.Name, key) && strings.Contains(o.Source, dir+"/"+file) || found {
				delete(want, key)
				found = true
				break
			}
		}
		if !found {
			t.Errorf("not expected: %+v", o)
		}
	}
	for key, file := range want {
		t.Errorf("%s (%s) is not listed", key, file)
	}
	about, err := h.Describe(t.Context(), m)
	if err != nil || len(about.NotHeld) != len(list) {
		t.Errorf("described are %d, %v; listed %d", len(about.NotHeld), err, len(list))
	}
}
