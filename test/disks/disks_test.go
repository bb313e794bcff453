package disks

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-vm/holdfast/internal/blob/dir"
	"github.com/holdfast-vm/holdfast/internal/cli"
	"github.com/holdfast-vm/holdfast/internal/disks"
	"github.com/holdfast-vm/holdfast/internal/export"
	"github.com/holdfast-vm/holdfast/internal/extent"
	"github.com/holdfast-vm/holdfast/internal/hypervisor"
	"github.com/holdfast-vm/holdfast/internal/hypervisor/libvirt"
	"github.com/holdfast-vm/holdfast/internal/hypervisor/qemu"
	"github.com/holdfast-vm/holdfast/internal/point"
	"github.com/holdfast-vm/holdfast/internal/vault"
	"github.com/holdfast-vm/holdfast/test/vm"
	"github.com/holdfast-vm/holdfast/test/vm/libvirtd"
)

// patience is the longest that anything may take on a slow and busy machine.
const patience = 2 * time.Minute

// TestMain makes this test binary the helper processes that holdfast starts of itself.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && (os.Args[1] == "watch" || os.Args[1] == "guard") {
		os.Exit(cli.Main())
	}
	os.Exit(m.Run())
}

// lab is a guest that writes to its disks, a vault and a pool.
type lab struct {
	*testing.T
	dir, vault, key, pool string
	uri                   string
	vm                    *vm.VM
}

func newLab(t *testing.T, underLibvirt bool) *lab {
	t.Helper()
	dir, err := os.MkdirTemp("", "hf") // socket paths are short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	l := &lab{T: t, dir: dir, vault: filepath.Join(dir, "v"), key: filepath.Join(dir, "v.key"),
		pool: filepath.Join(dir, "p")}
	if err := errors.Join(os.Mkdir(l.pool, 0o755), os.Mkdir(filepath.Join(dir, "h"), 0o755)); err != nil {
		t.Fatal(err)
	}
	o := vm.Options{Name: "shop", Dir: filepath.Join(dir, "h"), Work: "disks", NoChannel: true}
	if underLibvirt {
		d := libvirtd.New(t)
		l.vm, l.uri = vm.DefineLibvirt(t, d.URI, o), d.URI
	} else {
		l.vm = vm.StartQEMU(t, o)
		l.uri = "qmp:" + l.vm.QMPPath
	}
	l.must("vault", "init", l.vault, "--key-file", l.key)
	return l
}

// run runs a holdfast command and returns what it printed.
func (l *lab) run(args ...string) (stdout, stderr string, status int) {
	env := map[string]string{"HOLDFAST_VAULT": l.vault, "HOLDFAST_KEY_FILE": l.key, "HOLDFAST_POOL": l.pool,
		"HOLDFAST_CONNECT": l.uri,
		"HOLDFAST_MEMORY":  filepath.Join(l.dir, "memory"),
		"HOLDFAST_STATE":   filepath.Join(l.dir, "state"), "HOLDFAST_SCRATCH": filepath.Join(l.dir, "scratch"),
		"HOME": l.dir}
	var out, errs bytes.Buffer
	ctx, cancel := context.WithTimeout(l.Context(), patience)
	defer cancel()
	status = cli.Run(ctx, cli.Env{Args: args, Stdin: strings.NewReader(""), Stdout: &out, Stderr: &errs,
		Getenv: func(k string) string { return env[k] }})
	return out.String(), errs.String(), status
}

func (l *lab) must(args ...string) string {
	l.Helper()
	out, errs, status := l.run(args...)
	if status != 0 {
		l.Fatalf("holdfast %v: status %d\n%s%s", args, status, out, errs)
	}
	return out
}

// point runs a command that makes a point, and returns the point.
func (l *lab) point(args ...string) *point.RecoveryPoint {
	l.Helper()
	var p point.RecoveryPoint
	if err := json.Unmarshal([]byte(l.must(append(args, "--json")...)), &p); err != nil {
		l.Fatal(err)
	}
	return &p
}

func (l *lab) fails(reason string, args ...string) {
	l.Helper()
	out, errs, status := l.run(args...)
	if status == 0 || !strings.Contains(errs, reason) {
		l.Errorf("holdfast %v: status %d, want a failure that says %q\n%s%s", args, status, reason, out, errs)
	}
}

// guest runs a command in the guest.
func (l *lab) guest(format string, args ...any) string {
	l.Helper()
	return l.vm.MustExec(l, fmt.Sprintf(format, args...))
}

// await polls the guest until a command in it succeeds.
func (l *lab) await(what, command string) {
	l.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(patience); ; <-tick.C {
		if _, status, err := l.vm.Exec(command); err == nil && status == 0 {
			return
		}
		if time.Now().After(end) {
			l.Fatalf("waited in vain: %s", what)
		}
	}
}

// restore brings a disk of a point back as a raw file.
func (l *lab) restore(id point.ID, disk string) string {
	l.Helper()
	path := filepath.Join(l.dir, fmt.Sprintf("%s-%s.raw", id.Short(), disk))
	l.must("point", "restore", string(id), "--disk", disk, "--to", path, "--force")
	return path
}

// requireBytes fails unless n bytes of a file are all of one value.
func (l *lab) requireBytes(path string, off, n int64, value byte) {
	l.Helper()
	f, err := os.Open(path)
	if err != nil {
		l.Fatal(err)
	}
	defer f.Close()
	data := make([]byte, n)
	if _, err := f.ReadAt(data, off); err != nil {
		l.Fatal(err)
	}
	if !bytes.Equal(data, bytes.Repeat([]byte{value}, int(n))) {
		l.Errorf("%s at %d: begins with % x, want %d bytes of %#x", filepath.Base(path), off, data[:16], n, value)
	}
}

// write has the guest write n MiB of one letter at an offset of MiB.
func (l *lab) write(dev string, at, n int, letter string) {
	l.Helper()
	l.guest("head -c %dM /dev/zero | tr '\\000' %s | dd of=/dev/%s bs=1M seek=%d conv=fsync 2>/dev/null", n, letter,
		dev, at)
}

const mib = 1 << 20

func TestDisksOfRunningMachines(t *testing.T) {
	for name, underLibvirt := range map[string]bool{"qemu": false, "libvirt": true} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t, underLibvirt)
			l.attachAndResize()
			l.snapshotsBetweenBackups()
			l.oneInstant()
			l.detach()
			l.instant()
		})
	}
}

// A disk appears in the running guest, grows in it, and is refused to others meanwhile.
func (l *lab) attachAndResize() {
	l.must("disk", "create", "data", "--size", "32MiB")
	l.must("disk", "attach", "data", "shop", "--as", "vdd")
	l.await("the disk in the guest", "test -b /dev/vdd")
	l.write("vdd", 0, 2, "A")
	l.fails("a machine has the disk", "disk", "attach", "data", "shop")
	l.fails("a machine has the disk", "disk", "delete", "data")
	l.fails("made smaller", "disk", "resize", "data", "16MiB")
	l.must("disk", "resize", "data", "64MiB")
	l.await("the larger disk", "test $(cat /sys/block/vdd/size) = 131072")
	l.write("vdd", 40, 1, "B")
	if list := l.must("disk", "list"); !strings.Contains(list, "shop:vdd") || !strings.Contains(list, "64.0 MiB") {
		l.Errorf("disk list:\n%s", list)
	}
}

// Snapshots, tracked and not, take nothing from the backups: those are tracked and right, and so
// are the snapshots.
func (l *lab) snapshotsBetweenBackups() {
	backup := func() *point.RecoveryPoint { return l.point("vm", "backup", "shop", "--consistency", "crash") }
	backup()
	last := backup()
	for i, args := range [][]string{nil, {"--incremental"}, {"--incremental"}} {
		letter := string(rune('a' + i))
		l.write("vdd", 4+i, 1, letter)
		s := l.point(append([]string{"snapshot", "create", "data", "--name", "snap-" + letter}, args...)...)
		if s.VM != "shop" || s.Disks[0].Name != "vdd" || s.Disks[0].Managed != "data" || !s.Disks[0].Tracked {
			l.Errorf("snapshot: %+v", s.Disks)
		}
		l.write("vdd", 10+i, 1, letter)
		next := backup()
		if next.Parent != last.ID {
			l.Errorf("the backup after a snapshot counts from %s, want %s", next.Parent, last.ID)
		}
		for _, d := range next.Disks {
			// libvirt records no changes of raw disks
			raw := d.Source.Format == "raw" && strings.HasPrefix(l.uri, "qemu")
			if !d.Tracked && !raw {
				l.Errorf("the backup after a snapshot read %s whole: %s", d.Name, d.Reason)
			}
		}
		shown, after := l.restore(s.ID, "vdd"), l.restore(next.ID, "vdd")
		l.requireBytes(shown, int64(4+i)*mib, mib, letter[0])
		l.requireBytes(shown, int64(10+i)*mib, mib, 0)
		l.requireBytes(after, int64(10+i)*mib, mib, letter[0])
		l.requireBytes(after, 40*mib, mib, 'B')
		last = next
	}
	out := filepath.Join(l.dir, "ac.hfdiff")
	l.must("snapshot", "diff", "snap-a", "snap-c", "--to", out, "--digests")
	copy := l.restore(point.ID(l.idOf("snap-a")), "vdd")
	l.must("snapshot", "apply", out, "--to", copy)
	if err := exec.Command("cmp", copy, l.restore(point.ID(l.idOf("snap-c")), "vdd")).Run(); err != nil {
		l.Errorf("snap-a with the difference applied is not snap-c: %v", err)
	}
}

func (l *lab) idOf(snapshot string) string {
	return string(l.point("snapshot", "show", snapshot).ID)
}

// Two disks that the guest writes to in turn are of one instant.
func (l *lab) oneInstant() {
	for range 3 {
		s := l.point("snapshot", "create", "shop:vdb,vdc", "--incremental")
		a := vm.Disk{Name: "vdb", Path: l.restore(s.ID, "vdb"), Format: "raw"}
		b := vm.Disk{Name: "vdc", Path: l.restore(s.ID, "vdc"), Format: "raw"}
		nA, nB, err := vm.CheckDisks(l.Context(), a, b)
		if err != nil || nB > nA || nA > nB+1 {
			l.Errorf("the disks of snapshot %s end with records %d and %d: %v", s.Name, nA, nB, err)
		}
	}
}

func (l *lab) detach() {
	l.must("disk", "detach", "data")
	l.await("the disk to be gone", "test ! -e /sys/block/vdd")
	s := l.point("snapshot", "create", "data", "--name", "detached")
	if s.VM != "" || s.Disks[0].Managed != "data" {
		l.Errorf("snapshot of a detached disk: %+v", s)
	}
	l.requireBytes(l.restore(s.ID, "data"), 40*mib, mib, 'B')
	l.must("disk", "attach", "data", "shop")
	l.must("disk", "detach", "data")
	l.must("disk", "delete", "data")
}

// host opens what a pool needs of the lab's hypervisor.
func (l *lab) host() disks.Host {
	if strings.HasPrefix(l.uri, "qmp:") {
		h, err := qemu.New(l.uri)
		if err != nil {
			l.Fatal(err)
		}
		return h
	}
	h, err := libvirt.New(l.uri)
	if err != nil {
		l.Fatal(err)
	}
	return h
}

// gate is a content that is not copied before it is opened.
type gate struct {
	disks.PartContent
	open chan struct{}
}

func (g gate) RestorePart(ctx context.Context, part extent.Set, w io.WriterAt, progress func(int64)) error {
	select {
	case <-g.open:
		return g.PartContent.RestorePart(ctx, part, w, progress)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// A disk of a snapshot is used by the guest before a byte of it was copied, survives that whoever
// serves it is gone, and depends on nothing in the end.
func (l *lab) instant() {
	ctx, cancel := context.WithTimeout(l.Context(), patience)
	defer cancel()
	v := l.openVault(ctx)
	defer v.Close()
	p, err := v.Point(ctx, l.idOf("detached"))
	if err != nil {
		l.Fatal(err)
	}
	content, err := v.OpenDisk(p.Disks[0].Root, p.Disks[0].Size)
	if err != nil {
		l.Fatal(err)
	}
	h := l.host()
	defer h.(io.Closer).Close()
	pool, err := disks.OpenPool(l.pool, disks.Options{Open: func(string) (disks.Host, error) { return h, nil }})
	if err != nil {
		l.Fatal(err)
	}
	_, err = pool.CreateOverlay(ctx, disks.CreateRequest{Name: "fast", Format: "raw", Content: content,
		Source: disks.Source{Kind: "snapshot", Point: string(p.ID), Disk: "data"}})
	if err != nil {
		l.Fatal(err)
	}
	m := l.machine(ctx, h)
	if _, err := pool.Attach(ctx, "fast", disks.AttachRequest{Host: h, Machine: m}); !errors.Is(err,
		disks.ErrHydrating) {
		l.Errorf("attached while nobody serves it: %v", err)
	}
	g := gate{content, make(chan struct{})}
	first, kill := context.WithCancel(ctx)
	begin := func(ctx context.Context, content disks.PartContent) (wait func() error) {
		ready, ended := make(chan struct{}), make(chan error, 1)
		go func() {
			_, err := pool.Hydrate(ctx, "fast", disks.HydrateRequest{Content: content, Ready: func(*disks.Disk) {
				close(ready)
			},
				Serve: func(ctx context.Context, h *disks.Hydration) (func() error, error) {
					return serve(ctx, v, p, h)
				}})
			ended <- err
		}()
		select {
		case <-ready:
		case err := <-ended:
			l.Fatal(err)
		}
		return func() error { return <-ended }
	}
	wait := begin(first, g)
	if _, err := pool.Attach(ctx, "fast", disks.AttachRequest{Host: h, Machine: m, As: "vdd"}); err != nil {
		l.Fatal(err)
	}
	l.await("the disk in the guest", "test -b /dev/vdd")
	l.guest("test $(dd if=/dev/vdd bs=1M skip=40 count=1 2>/dev/null | tr -d B | wc -c) = 0")
	l.write("vdd", 20, 1, "N")
	kill()
	if err := wait(); !errors.Is(err, context.Canceled) {
		l.Errorf("broken off, it says %v", err)
	}
	if s := pool.Inspect(ctx, mustDisk(l, pool)); !strings.Contains(s.Fix, "disk hydrate fast") {
		l.Errorf("status: %+v", s)
	}
	close(g.open)
	if err := begin(ctx, g)(); err != nil {
		l.Fatal(err)
	}
	l.write("vdd", 21, 1, "O")
	d := mustDisk(l, pool)
	if d.Hydration != nil || d.File != "fast.raw" || d.Attached == nil {
		l.Errorf("filled: %+v", d)
	}
	if s := pool.Inspect(ctx, d); s.Problem != "" {
		l.Errorf("filled: %s", s.Problem)
	}
	if _, err := pool.Detach(ctx, "fast"); err != nil {
		l.Fatal(err)
	}
	for at, letter := range map[int64]byte{40: 'B', 20: 'N', 21: 'O', 50: 0} {
		l.requireBytes(pool.Path(d), at*mib, mib, letter)
	}
	if err := pool.Delete(ctx, "fast"); err != nil {
		l.Error(err)
	}
	if left, _ := filepath.Glob(filepath.Join(l.pool, "*.*")); len(left) > 1 { // the directory of the records
		l.Errorf("left in the pool: %v", left)
	}
}

func mustDisk(l *lab, pool *disks.Pool) *disks.Disk {
	l.Helper()
	d, err := pool.Disk("fast")
	if err != nil {
		l.Fatal(err)
	}
	return d
}

func (l *lab) machine(ctx context.Context, h disks.Host) hypervisor.Machine {
	l.Helper()
	all, err := h.Machines(ctx)
	if err != nil || len(all) != 1 {
		l.Fatalf("machines %v, %v", all, err)
	}
	return all[0]
}

func (l *lab) openVault(ctx context.Context) *vault.Vault {
	l.Helper()
	store, err := dir.Open(l.vault)
	if err != nil {
		l.Fatal(err)
	}
	l.Cleanup(func() { store.Close() })
	text, err := os.ReadFile(l.key)
	if err != nil {
		l.Fatal(err)
	}
	var identity string
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, "AGE-SECRET-KEY-") {
			identity = strings.TrimSpace(line)
		}
	}
	v, err := vault.Open(ctx, store, vault.Key{Identity: identity}, vault.Options{})
	if err != nil {
		l.Fatal(err)
	}
	return v
}

// serve serves the snapshot until stop is called.
func serve(ctx context.Context, v *vault.Vault, p *point.RecoveryPoint, h *disks.Hydration) (stop func() error,
	err error) {
	server, err := export.Open(ctx, v, export.Options{})
	if err != nil {
		return nil, err
	}
	if _, err := server.Add(ctx, export.Request{Point: p, Disk: p.Disks[0].Name, Name: h.Export}); err != nil {
		return nil, errors.Join(err, server.Close())
	}
	listener, err := export.ListenUnix(h.Socket, 0o600)
	if err != nil {
		return nil, errors.Join(err, server.Close())
	}
	serving, cancel := context.WithCancel(context.WithoutCancel(ctx))
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(serving, listener) }()
	return func() error {
		cancel()
		return errors.Join(<-ended, server.Close())
	}, nil
}
