package qemu

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-vm/holdfast/internal/hypervisor"
	"github.com/holdfast-vm/holdfast/internal/point"
)

// shortDir is a temporary directory whose path leaves room for a socket's name.
func shortDir(t *testing.T) string {
	dir, err := os.MkdirTemp("", "hf")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func tool(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
}

// await polls until a process of the outside world has got somewhere.
func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(2 * time.Minute); !ok(); <-tick.C {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// spawn starts a process, which is killed when the test ends.
func spawn(t *testing.T, dir, name string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Dir, cmd.Stderr = dir, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	return cmd
}

func connect(t *testing.T, uri string) *Host {
	t.Helper()
	h, err := New(uri)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	await(t, "the monitor of "+uri, func() bool { _, err := h.Client(context.Background()); return err == nil })
	return h
}

func machine(t *testing.T, h *Host) hypervisor.Machine {
	t.Helper()
	list, err := h.Machines(t.Context())
	if err != nil || len(list) != 1 {
		t.Fatalf("machines are %+v, %v", list, err)
	}
	return list[0]
}

func TestNew(t *testing.T) {
	for _, tt := range []struct{ uri, socket, agent string }{
		{"qmp:/run/a.sock", "/run/a.sock", ""},
		{"qmp:/run/my vm/a,b.sock,qga=/run/g a.sock", "/run/my vm/a,b.sock", "/run/g a.sock"},
		{"qemu:///system", "", ""}, {"qmp:", "", ""}, {"qmp:/a,qga=", "", ""},
	} {
		h, err := New(tt.uri)
		if (err == nil) != (tt.socket != "") {
			t.Errorf("New(%q): %v", tt.uri, err)
		}
		if err == nil && (h.socket != tt.socket || h.agent != tt.agent || h.URI() != tt.uri) {
			t.Errorf("New(%q) = %+v", tt.uri, h)
		}
	}
}

func TestNameDisks(t *testing.T) {
	for _, tt := range []struct{ labels, want []string }{
		{[]string{"", "", ""}, []string{"vda", "vdb", "vdc"}},
		{[]string{"", "vda", ""}, []string{"vdb", "vda", "vdc"}},
		{[]string{"sda", "sda", "vdb"}, []string{"sda", "vda", "vdb"}},
	} {
		if got := nameDisks(tt.labels); !slices.Equal(got, tt.want) {
			t.Errorf("nameDisks(%q) = %q, want %q", tt.labels, got, tt.want)
		}
	}
	if got := letters(25) + letters(26) + letters(27); got != "zaaab" {
		t.Errorf("letters count %s", got)
	}
}

// startOriginal runs a machine with one of everything: disks in all forms, firmware variables, a
// TPM, an agent, sockets, a network.
func startOriginal(t *testing.T) (dir string, h *Host) {
	dir = filepath.Join(shortDir(t), "my vm")
	if err := os.MkdirAll(filepath.Join(dir, "tpm"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, format := range map[string]string{"a.qcow2": "qcow2", "b.img": "raw", "c.qcow2": "qcow2", "d.img": "raw",
		"base.img": "raw", "old.qcow2": "qcow2 -o compat=0.10"} {
		args := append([]string{"create", "-q", "-f"}, strings.Fields(format)...)
		tool(t, "qemu-img", append(args, filepath.Join(dir, name), "8M")...)
	}
	tool(t, "cp", "/usr/share/OVMF/OVMF_VARS_4M.fd", filepath.Join(dir, "vars.fd"))
	spawn(t, dir, "swtpm", "socket", "--tpm2", "--tpmstate", "dir="+dir+"/tpm", "--ctrl", "type=unixio,path="+dir+
		"/swtpm.sock", "--flags", "startup-clear")
	await(t, "the TPM", func() bool { return exists(dir + "/swtpm.sock") })
	spawn(t, dir, "qemu-system-x86_64", "-S", "-name", "my vm,debug-threads=on", "-uuid",
		"11111111-2222-3333-4444-555555555555",
		"-machine", "q35,accel=tcg", "-cpu", "max,-svm", "-m", "64", "-nodefaults", "-display", "none",
		"-drive", "if=pflash,format=raw,readonly=on,file=/usr/share/OVMF/OVMF_CODE_4M.fd", "-drive",
		"if=pflash,format=raw,file=vars.fd",
		"-qmp", "unix:q.sock,server=on,wait=off", "-monitor", "unix:hmp.sock,server=on,wait=off", "-serial",
		"file:console.log", "-pidfile", "pid",
		"-object", "iothread,id=io0",
		"-blockdev", `{"driver":"file","filename":"a.qcow2","node-name":"a-f","cache":{"no-flush":true}}`,
		"-blockdev", "driver=qcow2,file=a-f,node-name=a,discard=unmap", "-device",
		"virtio-blk-pci,drive=a,id=vdb,iothread=io0,serial=S-1",
		"-blockdev", `{"driver":"raw","node-name":"b","file":{"driver":"file","filename":"b.img"}}`,
		"-device", "virtio-scsi-pci,id=scsi0,iothread=io0", "-device", `{"driver":"scsi-hd","drive":"b","bus":"scsi0.0"}`,
		"-drive", "file=c.qcow2,if=virtio,cache=writeback", "-drive", "file=old.qcow2,if=virtio,format=qcow2",
		"-drive", "file=base.img,format=raw,if=virtio,readonly=on", "-hda", "d.img",
		"-drive", "if=none,id=cd,media=cdrom", "-device", "ide-cd,drive=cd",
		"-chardev", "socket,id=tpmchar,path=swtpm.sock", "-tpmdev", "emulator,id=tpm0,chardev=tpmchar", "-device",
		"tpm-tis,tpmdev=tpm0",
		"-device", "virtio-serial", "-chardev", "socket,path=qga.sock,server=on,wait=off,id=q0", "-device",
		"virtserialport,chardev=q0,name=org.qemu.guest_agent.0",
		"-netdev", "user,id=n0,hostfwd=tcp:127.0.0.1:0-:22", "-device",
		"virtio-net-pci,netdev=n0,mac=52:54:00:aa:bb:cc")
	return dir, connect(t, "qmp:"+dir+"/q.sock")
}

func TestMachinesAndDescribe(t *testing.T) {
	dir, h := startOriginal(t)
	m := machine(t, h)
	if m.Name != "my vm" || m.UUID != "11111111-2222-3333-4444-555555555555" || m.State != hypervisor.Paused ||
		!m.Agent {
		t.Errorf("machine is %+v", m)
	}
	type facts struct {
		format, file, bus, serial string
		iothread, persistent      bool
	}
	want := map[string]facts{
		"vdb": {"qcow2", "a.qcow2", "virtio", "S-1", true, true},
		"vda": {"raw", "d.img", "ide", "QM00001", false, false},
		"vdc": {"qcow2", "c.qcow2", "virtio", "", false, true},
		"vdd": {"qcow2", "old.qcow2", "virtio", "", false, false},
		"vde": {"raw", "b.img", "scsi", "", true, false},
	}
	for _, d := range m.Disks {
		got := facts{d.Format, strings.TrimPrefix(d.File, dir+"/"), d.Bus, d.Serial, d.IOThread, d.Persistent}
		var name string
		for n, w := range want {
			if w == got {
				name = n
			}
		}
		if name == "" || d.Size != 8<<20 || d.Node == "" || d.Allocated == 0 && d.Format == "qcow2" {
			t.Errorf("unexpected disk %+v", d)
		}
		if got.file == "a.qcow2" && d.Name != "vdb" {
			t.Errorf("disk with the ID vdb is called %s", d.Name)
		}
	}
	if len(m.Disks) != len(want) {
		t.Errorf("%d disks, want %d", len(m.Disks), len(want))
	}
	about, err := h.Describe(t.Context(), m)
	if err != nil || len(about.Warnings) > 0 {
		t.Fatalf("describe: %v, warnings %q", err, about.Warnings)
	}
	def, files := about.Definition, about.Files
	if want := "read-only disk virtio2 (" + dir + "/base.img)"; len(about.NotHeld) != 1 ||
		!strings.HasPrefix(about.NotHeld[0].String(), want) {
		t.Errorf("not held is %q, want only %s", about.NotHeld, want)
	}
	if def.Kind != point.ForQEMU || def.Dir != dir || def.MachineType != "pc-q35-7.2" ||
		!strings.HasPrefix(def.Hypervisor, "QEMU 7.2") ||
		!strings.Contains(def.CPU, `"svm": false`) || def.Args[0] != "qemu-system-x86_64" {
		t.Errorf("definition is %+v", def)
	}
	var names []string
	for _, f := range files {
		if f.Size == 0 || f.Mode == 0 || f.Root != "" {
			t.Errorf("file %+v", f)
		}
		names = append(names, f.Role+"/"+f.Name)
	}
	if got := strings.Join(names, " "); got != "nvram/vars.fd tpm/tpm2-00.permall" {
		t.Errorf("files are %s", got)
	}
	if _, err := h.OpenAgent(t.Context(), m); err == nil {
		t.Error("an agent answers where there is none")
	}
}

// rebuildOf returns the order to rebuild the point of a described machine from copies of its disks
// in storage.
func rebuildOf(t *testing.T, h *Host, storage string) hypervisor.Rebuild {
	t.Helper()
	m := machine(t, h)
	about, err := h.Describe(t.Context(), m)
	if err != nil {
		t.Fatal(err)
	}
	def, files := about.Definition, about.Files
	p := &point.RecoveryPoint{ID: point.NewID(), VM: m.Name, MachineUUID: m.UUID, Definition: def, Files: files}
	r := hypervisor.Rebuild{Point: p, Name: "it's new", StorageDir: storage, Disks: map[string]string{},
		Formats: map[string]string{}, Files: map[string]string{}}
	for _, d := range m.Disks {
		p.Disks = append(p.Disks, point.Disk{Name: d.Name, Size: d.Size,
			Source: point.Source{File: d.File, Format: d.Format, Node: d.Node}})
		format := map[string]string{"raw": "qcow2", "qcow2": "raw"}[d.Format]
		path := filepath.Join(storage, "new, "+d.Name)
		tool(t, "qemu-img", "create", "-q", "-f", format, path, "8M")
		r.Disks[d.Name], r.Formats[d.Name] = path, format
	}
	for _, f := range files {
		path := filepath.Join(storage, f.Role, f.Name)
		tool(t, "install", "-D", f.Path, path)
		r.Files[f.Role+"/"+f.Name] = path
	}
	return r
}

// A machine and its copy run side by side, and the copy has the disks that were restored.
func TestDefineAndStart(t *testing.T) {
	_, h := startOriginal(t)
	storage := shortDir(t)
	r := rebuildOf(t, h, storage)
	delete(r.Disks, "vdd")
	r.Start = true
	n, err := New("qmp:" + storage + "/n.sock,qga=" + storage + "/g.sock")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if c, err := n.Client(context.Background()); err == nil {
			c.Execute(context.Background(), "quit", nil, nil)
			<-c.Done()
		}
		n.Close()
	})
	out, err := n.Define(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	m := machine(t, n)
	if m.Name != r.Name || m.UUID != out.UUID || m.UUID == r.Point.MachineUUID || m.State != hypervisor.Running ||
		out.State != hypervisor.Running {
		t.Errorf("rebuilt machine is %+v, %+v", m, out)
	}
	var got []string
	for _, d := range m.Disks {
		got = append(got, strings.TrimPrefix(d.File, storage+"/new, ")+" "+d.Format)
	}
	slices.Sort(got)
	if want := "vda raw, vdb raw, vdc raw, vde qcow2"; strings.Join(got, ", ") != want {
		t.Errorf("disks are %s, want %s", strings.Join(got, ", "), want)
	}
	about, err := n.Describe(t.Context(), m)
	def, files := about.Definition, about.Files
	if err != nil || def.MachineType != r.Point.Definition.MachineType {
		t.Errorf("rebuilt definition: %+v, %v", def, err)
	}
	for _, f := range files {
		if !strings.HasPrefix(f.Path, storage) {
			t.Errorf("the copy uses the original's %s", f.Path)
		}
	}
	if len(files) < 2 || strings.Contains(strings.Join(def.Args, " "), "aa:bb:cc") ||
		!strings.Contains(strings.Join(out.Warnings, "\n"), "vdd") {
		t.Errorf("files %v, args %q, warnings %q", files, def.Args, out.Warnings)
	}
	if _, err := n.Define(t.Context(), r); !errors.Is(err, hypervisor.ErrExists) {
		t.Errorf("define over a live machine: %v", err)
	}
}

func TestDefineRefusals(t *testing.T) {
	storage := shortDir(t)
	h, err := New("qmp:" + storage + "/n.sock")
	if err != nil {
		t.Fatal(err)
	}
	p := &point.RecoveryPoint{Definition: point.Definition{Kind: point.ForQEMU,
		Args: []string{"qemu-system-x86_64", "-no-such-option"}}}
	good := hypervisor.Rebuild{Point: p, Name: "n", StorageDir: storage, SameIdentity: true, Start: true}
	if _, err := h.Define(t.Context(), good); err == nil || !strings.Contains(err.Error(), "no-such-option") {
		t.Errorf("a machine that does not start: %v", err)
	}
	good.Start = false
	out, err := h.Define(t.Context(), good)
	if err != nil || out.Start != filepath.Join(storage, "n.sh") || out.State != hypervisor.Off {
		t.Errorf("define: %+v, %v", out, err)
	}
	before, err := os.ReadFile(filepath.Join(storage, "n.sh"))
	if err != nil || !strings.HasPrefix(string(before), "#!/bin/sh\n# Starts the machine n,") {
		t.Errorf("script %q, %v", before, err)
	}
	if _, err := h.Define(t.Context(), good); !errors.Is(err, hypervisor.ErrExists) {
		t.Errorf("define over a script: %v", err)
	}
	for _, bad := range []func(r *hypervisor.Rebuild){
		func(r *hypervisor.Rebuild) { r.Name = "a/b" },
		func(r *hypervisor.Rebuild) { r.StorageDir = "" },
		func(r *hypervisor.Rebuild) {
			r.Point = &point.RecoveryPoint{Definition: point.Definition{Kind: point.ForLibvirt}}
		},
	} {
		r := good
		bad(&r)
		if _, err := h.Define(t.Context(), r); err == nil || errors.Is(err, hypervisor.ErrExists) {
			t.Errorf("define %+v: %v", r, err)
		}
	}
}
