package qemu

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/hypervisor"
	"github.com/holdfast-vm/holdfast/internal/point"
	"github.com/holdfast-vm/holdfast/internal/qcow2"
)

const (
	mib       = 1 << 20
	diskBytes = 16 * mib
)

// instant is a machine on overlays over an export.
type instant struct {
	*testing.T
	h       *Host
	dir     string
	m       hypervisor.Machine
	content map[string][]byte // of the exported disks
	exports []*exec.Cmd       // in the order of the disks
	targets []hypervisor.HydrationTarget
}

// originalArgs is a machine with a disk in each of the forms that a command line has for one.
var originalArgs = []string{"qemu-system-x86_64", "-name", "old", "-machine", "q35,accel=tcg", "-m", "32",
	"-nodefaults", "-display", "none",
	"-object", "iothread,id=io0",
	"-blockdev", "driver=file,filename=/gone/a.img,node-name=a-f", "-blockdev", "driver=qcow2,file=a-f,node-name=a",
	"-device", "virtio-blk-pci,drive=a,id=vda,iothread=io0",
	"-blockdev", `{"driver":"raw","node-name":"b","file":{"driver":"file","filename":"/gone/b.img"}}`, "-device", "virtio-scsi-pci,id=scsi0",
	"-device", "scsi-hd,drive=b,id=sdb", "-drive", "file=/gone/c.img,if=virtio,format=qcow2,cache=none"}

func newInstant(t *testing.T) *instant {
	t.Helper()
	dir := shortDir(t)
	i := &instant{T: t, dir: dir, content: map[string][]byte{},
		m: hypervisor.Machine{Name: "it's new", UUID: newUUID()}}
	p := &point.RecoveryPoint{ID: point.NewID(),
		Definition: point.Definition{Kind: point.ForQEMU, Args: originalArgs, MachineType: "pc-q35-7.2"}}
	r := hypervisor.Rebuild{Point: p, Name: i.m.Name, UUID: i.m.UUID, StorageDir: dir, Disks: map[string]string{},
		Formats: map[string]string{}, Backing: map[string]string{}}
	random := rand.NewChaCha8([32]byte{1})
	for n, d := range []struct {
		name, node, file, format string
	}{{"vda", "a", "/gone/a.img", "qcow2"}, {"sdb", "b", "/gone/b.img", "raw"}, {"vdb", "", "/gone/c.img", "raw"}} {
		data := make([]byte, diskBytes)
		random.Read(data[:len(data)/2])
		i.content[d.name] = data
		source, socket := filepath.Join(dir, d.name+".source"), filepath.Join(dir, fmt.Sprintf("s%d", n))
		if err := os.WriteFile(source, data, 0o600); err != nil {
			t.Fatal(err)
		}
		i.exports = append(i.exports, i.export(source, socket))
		target := hypervisor.HydrationTarget{Disk: d.name, File: filepath.Join(dir, "new, "+d.name), Format: d.format,
			Size: diskBytes}
		backing := fmt.Sprintf(`json:{"driver":"raw","file":{"driver":"nbd","server":{"type":"unix","path":%q},"reconnect-delay":1}}`, socket)
		if err := qcow2.Create(target.Overlay(), diskBytes,
			qcow2.CreateOptions{BackingFile: backing, BackingFormat: "raw"}); err != nil {
			t.Fatal(err)
		}
		i.targets = append(i.targets, target)
		p.Disks = append(p.Disks, point.Disk{Name: d.name, Size: diskBytes,
			Source: point.Source{Node: d.node, File: d.file}})
		r.Disks[d.name], r.Formats[d.name], r.Backing[d.name] = target.Overlay(), "qcow2", "nbd+unix:///?socket="+socket
	}
	var err error
	if i.h, err = New("qmp:" + dir + "/q.sock"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { i.h.Remove(context.Background(), i.m); i.h.Close() })
	out, err := i.h.Define(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	if out.UUID != i.m.UUID {
		t.Errorf("the machine has UUID %s, want %s", out.UUID, i.m.UUID)
	}
	i.ok(i.h.Start(t.Context(), i.m, dir))
	return i
}

// export serves a file, as another process.
func (i *instant) export(file, socket string) *exec.Cmd {
	i.Helper()
	os.Remove(socket)
	cmd := spawn(i.T, i.dir, "qemu-nbd", "-r", "-e", "4", "--persistent", "-t", "-f", "raw", "-k", socket, file)
	await(i.T, "the export", func() bool { return exists(socket) })
	return cmd
}

// endExports kills all exports.
func (i *instant) endExports() {
	for _, cmd := range i.exports {
		cmd.Process.Kill()
		cmd.Wait()
	}
}

// exportAgain serves all disks where they were before.
func (i *instant) exportAgain() {
	i.Helper()
	for n, t := range i.targets {
		i.exports[n] = i.export(filepath.Join(i.dir, t.Disk+".source"), filepath.Join(i.dir, fmt.Sprintf("s%d", n)))
	}
}

func (i *instant) ok(err error) {
	i.Helper()
	if err != nil {
		i.Fatal(err)
	}
}

// write has the machine write a MiB of a disk.
func (i *instant) write(disk string, at int, value byte) {
	i.Helper()
	i.io(disk, fmt.Sprintf("write -P %d %d 1M", value, at))
	copy(i.content[disk][at:], bytes.Repeat([]byte{value}, mib))
}

// failToWrite has the machine write a part of a disk whose rest would have to come from the export,
// which is gone.
func (i *instant) failToWrite(disk string, at int) {
	i.Helper()
	i.io(disk, fmt.Sprintf("write -P 9 %d 4k", at))
}

// io has the machine run a command of qemu-io on a disk. What that says goes to QEMU's own output:
// what it did is to be seen on the disk.
func (i *instant) io(disk, command string) {
	i.Helper()
	var device string
	for _, d := range machine(i.T, i.h).Disks {
		if d.Name == disk {
			device = d.Device
		}
	}
	if disk != "sdb" {
		device = strings.TrimSuffix(device, "/virtio-backend") + "/virtio-backend"
	}
	c, err := i.h.Client(i.Context())
	i.ok(err)
	i.ok(c.Execute(i.Context(), "human-monitor-command", map[string]any{
		"command-line": fmt.Sprintf("qemu-io -d %s \"%s\"", device, command)}, nil))
}

func (i *instant) makeTarget(t hypervisor.HydrationTarget) {
	i.Helper()
	os.Remove(t.File)
	if t.Format == "raw" {
		i.ok(os.WriteFile(t.File, nil, 0o600))
		i.ok(os.Truncate(t.File, t.Size))
		return
	}
	i.ok(qcow2.Create(t.File, t.Size, qcow2.CreateOptions{}))
}

func (i *instant) hydrateAll(rate int64) {
	i.Helper()
	for _, t := range i.targets {
		i.makeTarget(t)
		i.ok(i.h.Hydrate(i.Context(), i.m, t, rate))
	}
}

func (i *instant) awaitReady() {
	i.Helper()
	for _, t := range i.targets {
		await(i.T, "the copy of "+t.Disk, func() bool {
			now, err := i.h.Hydration(i.Context(), i.m, t)
			i.ok(err)
			i.ok(now.Err)
			return now.Ready || now.Local
		})
	}
}

// requireSettled fails unless machine and definition are on the targets alone, and those hold what
// was written.
func (i *instant) requireSettled() {
	i.Helper()
	settled, err := i.h.Settled(i.Context(), i.m, i.settlement())
	if err != nil || len(settled) != 3 || !settled["vda"] || !settled["sdb"] || !settled["vdb"] {
		i.Errorf("the definition is settled for %v, %v", settled, err)
	}
	text, err := os.ReadFile(filepath.Join(i.dir, i.m.Name+".sh"))
	i.ok(err)
	if strings.Contains(string(text), hypervisor.OverlaySuffix) || strings.Contains(string(text), "value=stop") {
		i.Errorf("the start script still speaks of the overlays:\n%s", text)
	}
	c, err := i.h.Client(i.Context())
	i.ok(err)
	nodes, err := queryNodes(i.Context(), c)
	i.ok(err)
	for _, n := range nodes {
		if n.Driver == "nbd" || strings.Contains(n.File, hypervisor.OverlaySuffix) {
			i.Errorf("QEMU still has node %+v", n)
		}
	}
	i.ok(i.h.Remove(i.Context(), i.m))
	for _, t := range i.targets {
		i.requireContent(t)
	}
}

func (i *instant) requireContent(t hypervisor.HydrationTarget) {
	i.Helper()
	raw := filepath.Join(i.dir, t.Disk+".check")
	tool(i.T, "qemu-img", "convert", "-f", t.Format, "-O", "raw", t.File, raw)
	got, err := os.ReadFile(raw)
	i.ok(err)
	if !bytes.Equal(got, i.content[t.Disk]) {
		i.Errorf("disk %s is not what was exported and written", t.Disk)
	}
}

func (i *instant) settlement() hypervisor.Settlement {
	return hypervisor.Settlement{Targets: i.targets, StorageDir: i.dir}
}

// Disks in all forms move to local images while the machine writes; afterwards it starts from them
// alone, and a point of it is one of a plain machine.
func TestHydration(t *testing.T) {
	i := newInstant(t)
	i.write("vda", 0, 1)
	i.write("sdb", 3*mib, 2)
	if err := i.h.FinishHydration(t.Context(), i.m, i.settlement()); err == nil {
		t.Error("it moved to copies that are not there")
	}
	i.hydrateAll(hypervisor.StillRate)
	now, err := i.h.Hydration(t.Context(), i.m, i.targets[0])
	if err != nil || !now.Running || now.Local {
		t.Fatalf("hydration is %+v, %v", now, err)
	}
	if m := machine(t, i.h); m.State != hypervisor.Running {
		t.Errorf("after that the machine is %s", m.State)
	}
	i.write("vdb", 5*mib, 3)
	for _, target := range i.targets {
		i.ok(i.h.HydrationRate(t.Context(), i.m, target, 0))
		i.ok(i.h.Hydrate(t.Context(), i.m, target, 0)) // runs already
	}
	i.awaitReady()
	i.write("vda", 9*mib, 4)
	i.ok(i.h.FinishHydration(t.Context(), i.m, i.settlement()))
	i.ok(i.h.FinishHydration(t.Context(), i.m, i.settlement())) // does nothing again
	m := machine(t, i.h)
	if m.State != hypervisor.Running {
		t.Errorf("the machine is %s", m.State)
	}
	i.write("vda", 10*mib, 5)
	i.write("vdb", 11*mib, 6)
	i.requireDescribed(m)
	i.requireSettled()
	i.ok(i.h.Start(t.Context(), i.m, i.dir))
	var files []string
	for _, d := range machine(t, i.h).Disks {
		files = append(files, filepath.Base(d.File)+" "+d.Format)
	}
	slices.Sort(files)
	if got := strings.Join(files, ", "); got != "new, sdb raw, new, vda qcow2, new, vdb raw" {
		t.Errorf("started again, its disks are %s", got)
	}
}

// requireDescribed fails unless a machine built from a description of m has the same devices.
func (i *instant) requireDescribed(m hypervisor.Machine) {
	i.Helper()
	about, err := i.h.Describe(i.Context(), m)
	def := about.Definition
	i.ok(err)
	if text := strings.Join(def.Args, " "); strings.Contains(text, hypervisor.OverlaySuffix) ||
		strings.Contains(text, "werror") {
		i.Errorf("it is described as being on overlays: %s", text)
	}
	r := hypervisor.Rebuild{Point: &point.RecoveryPoint{Definition: def}, Name: "again", StorageDir: i.dir,
		Disks: map[string]string{}}
	for _, d := range m.Disks {
		r.Point.Disks = append(r.Point.Disks,
			point.Disk{Name: d.Name, Source: point.Source{Node: d.Node, File: d.File, Format: d.Format}})
		r.Disks[d.Name] = "/again/" + d.Name
	}
	w := newRewriter(r, "/q", "")
	w.rewrite()
	if len(w.warnings) > 0 || !w.cl.names("/again/vda") || !w.cl.names("/again/sdb") {
		i.Errorf("built again from its description: warnings %q, %q", w.warnings, w.cl.args())
	}
}

// A machine that is killed while its disks are copied starts again from its overlays, which have
// all that was flushed; the copy begins anew.
func TestHydrationOfKilledMachine(t *testing.T) {
	i := newInstant(t)
	i.write("vda", mib, 7)
	c, err := i.h.Client(t.Context())
	i.ok(err)
	for _, d := range machine(t, i.h).Disks {
		if d.Name == "vda" {
			i.ok(c.Execute(t.Context(), "human-monitor-command",
				map[string]any{"command-line": "qemu-io -d " + strings.TrimSuffix(d.Device, "/virtio-backend") +
					"/virtio-backend flush"}, nil))
		}
	}
	i.hydrateAll(mib)
	killed := c.PeerPID()
	i.ok(i.h.Remove(t.Context(), i.m))
	if fds, _ := os.ReadDir(fmt.Sprintf("/proc/%d/fd", killed)); len(fds) > 0 {
		t.Errorf("removed, the machine holds %d files", len(fds))
	}
	if settled, err := i.h.Settled(t.Context(), i.m, i.settlement()); err != nil || settled["vda"] {
		t.Errorf("settled %v, %v", settled, err)
	}
	i.ok(i.h.Start(t.Context(), i.m, i.dir))
	c, err = i.h.Client(t.Context())
	i.ok(err)
	if c.PeerPID() == killed {
		t.Error("the machine that was killed was taken for the one that was started")
	}
	i.hydrateAll(0)
	i.awaitReady()
	i.ok(i.h.FinishHydration(t.Context(), i.m, i.settlement()))
	i.requireSettled()
}

// Of a machine that is off the definition alone is changed.
func TestSettleOffline(t *testing.T) {
	i := newInstant(t)
	i.ok(i.h.Remove(t.Context(), i.m))
	one := i.settlement()
	one.Targets = one.Targets[:1]
	one.Off = true
	i.ok(i.h.FinishHydration(t.Context(), i.m, one))
	settled, err := i.h.Settled(t.Context(), i.m, i.settlement())
	if err != nil || !settled["vda"] || settled["sdb"] || settled["vdb"] {
		t.Errorf("settled %v, %v", settled, err)
	}
	text, err := os.ReadFile(filepath.Join(i.dir, i.m.Name+".sh"))
	if err != nil || !strings.Contains(string(text), "value=stop") {
		t.Errorf("with two overlays left the script is\n%s (%v)", text, err)
	}
}

func FuzzParseScript(f *testing.F) {
	f.Add("#!/bin/sh\nexec qemu \\\n -name 'it'\\''s' \\\n -m 64\n")
	f.Add("\nexec 'a\nb' c")
	f.Add("\nexec $x")
	f.Fuzz(func(t *testing.T, text string) {
		sc, err := parseScript(text)
		if err != nil {
			return
		}
		again, err := parseScript("\n" + execLines(sc.cl))
		if err != nil {
			t.Fatalf("%q: %v", execLines(sc.cl), err)
		}
		if got, want := again.cl.args(), sc.cl.args(); !slices.Equal(got, want) {
			t.Fatalf("%q became %q", want, got)
		}
	})
}
