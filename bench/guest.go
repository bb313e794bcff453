package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/holdfast-vm/holdfast/test/vm"
	"github.com/holdfast-vm/holdfast/test/vm/libvirtd"
)

// guestWrites is how many blocks of 64 KiB the guest overwrites before an incremental backup, half
// on each data disk, within guestSpan blocks of each.
const (
	guestWrites = 400
	guestSpan   = 512
)

// guest measures backups of a running machine under libvirt beside virtnbdbackup. That refuses a
// machine with checkpoints of others, so each tool has a machine of its own; all are alike and are
// written to alike.
func (b *bench) guest() error {
	dir := filepath.Join(b.dir, "guest")
	if err := sh(`rm -rf "$1" && mkdir -p "$1"`, dir); err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	image, err := vm.FindImage(context.Background(), os.Stderr)
	if err != nil {
		return err
	}
	d, err := libvirtd.Launch()
	if err != nil {
		return err
	}
	defer d.Close()
	guests := []*guest{
		b.holdfastGuest(d, dir),
		nbdGuest(d, dir, "virtnbdbackup"),
		nbdGuest(d, dir, "virtnbdbackup lz4", "--compress"),
	}
	var boot errgroup.Group
	for _, g := range guests {
		boot.Go(func() error { return g.boot(image) })
	}
	defer func() {
		for _, g := range guests {
			if g.vm != nil {
				_ = g.vm.Close()
			}
		}
	}()
	if err := boot.Wait(); err != nil {
		return err
	}
	if err := b.guestRounds(guests); err != nil {
		return err
	}
	printGuests(guests, strings.ToUpper(image.Accel.Name))
	for _, g := range guests {
		if err := g.prove(); err != nil {
			return fmt.Errorf("%s: %w", g.name, err)
		}
	}
	fmt.Printf("guest   every disk of every tool, restored from its last increment, is equal to the machine's own\n\n")
	return nil
}

func (b *bench) guestRounds(guests []*guest) error {
	for round := range b.rounds {
		for i := range guests {
			g := guests[(i+round)%len(guests)]
			if err := g.round(round); err != nil {
				return fmt.Errorf("%s: %w", g.name, err)
			}
		}
	}
	return nil
}

func printGuests(guests []*guest, accel string) {
	fmt.Printf("regime: guests running under libvirt (QEMU %s, %s), one for each tool, all with the same writes; "+
		"three qcow2 disks, none on an iothread:\n", qemuVersion(), accel)
	fmt.Printf("        on Debian 12's QEMU an NBD client that disconnects from such a disk kills the machine, and "+
		"virtnbdbackup is an NBD client. holdfast: %s\n", guests[0].how)
	fmt.Printf("%-18s %8s %10s %8s %10s %9s\n", "running guest", "full s", "stored MB", "next s", "grew MB", "peak MiB")
	for _, g := range guests {
		fmt.Printf("%-18s %8.2f %10.1f %8.2f %10.1f %9.0f\n", g.name, median(g.full), median(g.stored)/1e6,
			median(g.after), median(g.grew)/1e6, maxOf(g.rss)/(1<<20))
	}
	fmt.Println()
	h := guests[0]
	for _, g := range guests[1:] {
		fmt.Printf("guest   full: %-17s / holdfast           %s\n", g.name, ratio(g.full, h.full))
		fmt.Printf("guest   full bytes: holdfast / %-17s     %s\n", g.name, ratio(h.stored, g.stored))
		fmt.Printf("guest   next: %-17s / holdfast           %s\n", g.name, ratio(g.after, h.after))
		fmt.Printf("guest   growth: holdfast / %-17s         %s\n", g.name, ratio(h.grew, g.grew))
	}
}

func qemuVersion() string {
	out, _ := exec.Command("qemu-system-x86_64", "--version").Output()
	if f := strings.Fields(string(out)); len(f) > 3 {
		return f[3]
	}
	return "unknown"
}

// guest is a tool, the machine it backs up, and what it took.
type guest struct {
	tool
	series
	next     func(repo string) []string        // the backup after the first
	last     func(repo string) []string        // the same of a machine that is paused
	size     func(repo string) (int64, error)  // bytes stored
	open     func(repo, out string) [][]string // restores all disks to out
	describe func(repo string) (how string, err error)

	uri, dir, repo string
	how            string
	vm             *vm.VM
}

func newGuest(d *libvirtd.Daemon, dir, name string) *guest {
	short := strings.ReplaceAll(name, " ", "-")
	g := &guest{uri: d.URI, dir: filepath.Join(dir, short)}
	g.name, g.repo = name, filepath.Join(g.dir, "repo")
	g.env = func(string) []string { return nil }
	g.describe = func(string) (string, error) { return "", nil }
	return g
}

// domain is the machine's name.
func (g *guest) domain() string { return "bench-" + filepath.Base(g.dir) }

func (b *bench) holdfastGuest(d *libvirtd.Daemon, dir string) *guest {
	g := newGuest(d, dir, "holdfast")
	t := b.holdfastTool("holdfast", nil)
	g.env, g.init, g.size = t.env, t.init, stored
	backup := func(consistency string) []string {
		return []string{b.holdfast, "vm", "backup", g.domain(), "--connect", g.uri, "--consistency", consistency,
			"--scratch", filepath.Join(g.dir, "scratch"), "--json"}
	}
	g.backup = func(string) []string { return backup("application") }
	g.next = g.backup
	g.last = func(string) []string { return backup("crash") }
	point := g.domain() + "@latest"
	g.open = func(_, out string) [][]string {
		cmds := [][]string{{b.holdfast, "point", "verify", point}}
		for _, disk := range []string{"vda", "vdb", "vdc"} {
			cmds = append(cmds, []string{b.holdfast, "point", "restore", point, "--disk", disk, "--to",
				filepath.Join(out, disk+".qcow2")})
		}
		return cmds
	}
	g.describe = func(repo string) (string, error) {
		cmd := exec.Command(b.holdfast, "point", "show", point, "--json")
		cmd.Env = append(os.Environ(), t.env(repo)...)
		out, err := cmd.Output()
		if err != nil {
			return "", fmt.Errorf("point show: %w", err)
		}
		var p struct{ Rung, Consistency string }
		err = json.Unmarshal(out, &p)
		return p.Rung + ", " + p.Consistency, err
	}
	return g
}

// nbdGuest is virtnbdbackup with further arguments.
func nbdGuest(d *libvirtd.Daemon, dir, name string, args ...string) *guest {
	g := newGuest(d, dir, name)
	// It takes a URI that names a transport for one that needs a password.
	uri := libvirtd.Driver + "?socket=" + d.Socket
	socket := filepath.Join(d.Dir, g.domain()) // short
	level := func(level string) func(string) []string {
		return func(repo string) []string {
			return append([]string{"virtnbdbackup", "-U", uri, "-d", g.domain(), "-l", level, "-o", repo, "-S",
				filepath.Join(g.dir, "scratch"), "-f", socket, "--noprogress"}, args...)
		}
	}
	g.init = func(repo string) []string { return []string{"mkdir", repo} }
	g.backup, g.next, g.last = level("full"), level("inc"), level("inc")
	g.size = dataFiles
	g.open = func(repo, out string) [][]string {
		return [][]string{{"virtnbdrestore", "-U", uri, "-i", repo, "-o", out, "-f", socket, "-L",
			filepath.Join(g.dir, "restore.log"), "--noprogress"}}
	}
	return g
}

// dataFiles sums what virtnbdbackup stored of disks: not its logs, nor the kernel that it copies
// each time and holdfast leaves out.
func dataFiles(repo string) (n int64, err error) {
	names, err := filepath.Glob(filepath.Join(repo, "*.data"))
	for _, name := range names {
		info, err := os.Stat(name)
		if err != nil {
			return 0, err
		}
		n += info.Size()
	}
	return n, err
}

// boot starts the machine and fills what will be overwritten.
func (g *guest) boot(image vm.Image) error {
	if err := os.MkdirAll(filepath.Join(g.dir, "scratch"), 0o755); err != nil {
		return err
	}
	vdc := filepath.Join(g.dir, "vdc.qcow2")
	if err := sh(`qemu-img create -q -f qcow2 "$1" 256M`, vdc); err != nil {
		return err
	}
	var err error
	g.vm, err = vm.LaunchLibvirt(g.uri, image,
		vm.Options{Name: g.domain(), Dir: g.dir, DataB: vm.Disk{Path: vdc}, Work: "db", NoIOThread: true})
	if err != nil {
		return err
	}
	return g.inside(fmt.Sprintf("for d in vdb vdc; do dd if=/dev/urandom of=/dev/$d bs=64k count=%d oflag=direct "+
		"status=none || exit; done", guestSpan))
}

// inside runs a command in the guest.
func (g *guest) inside(command string) error {
	out, status, err := g.vm.Exec(command)
	if err == nil && status != 0 {
		err = fmt.Errorf("%q in the guest: exit status %d: %s", command, status, out)
	}
	return err
}

// round is a full backup into a new repository, writes, and the next backup.
func (g *guest) round(round int) error {
	if err := g.reset(); err != nil {
		return err
	}
	full, err := g.do(g.dir, g.repo, g.repo, g.backup(g.repo))
	if err != nil {
		return err
	}
	before, err := g.size(g.repo)
	if err != nil {
		return err
	}
	if err := g.write(round); err != nil {
		return err
	}
	next, err := g.do(g.dir, g.repo, g.repo, g.next(g.repo))
	if err != nil {
		return err
	}
	after, err := g.size(g.repo)
	if err != nil {
		return err
	}
	g.full, g.stored = append(g.full, full.seconds), append(g.stored, float64(before))
	g.after, g.grew = append(g.after, next.seconds), append(g.grew, float64(after-before))
	g.rss = append(g.rss, float64(max(full.rss, next.rss)))
	g.how, err = g.describe(g.repo)
	return err
}

// reset forgets the last round: repository and checkpoints.
func (g *guest) reset() error {
	if err := sh(`for c in $(virsh -q -c "$1" checkpoint-list --name "$2"); do virsh -q -c "$1" checkpoint-delete "$2" "$c" || exit; done; rm -rf "$3" "$3".*`,
		g.uri, g.domain(), g.repo); err != nil {
		return err
	}
	_, err := g.do(g.dir, g.repo, g.dir, g.init(g.repo))
	return err
}

// write overwrites different blocks, the same ones in every machine, with bytes that do not
// compress.
func (g *guest) write(round int) error {
	const atOnce = 100 // the guest is slow without KVM, and a command in it has a limit of time
	for first := 0; first < guestWrites/2; first += atOnce / 2 {
		// An odd factor visits each of guestSpan places once.
		script := fmt.Sprintf(`i=%d; while [ $i -lt %d ]; do for d in vdb vdc; do
dd if=/dev/urandom of=/dev/$d bs=64k count=1 seek=$(((i*181+%d)%%%d)) oflag=direct conv=notrunc status=none || exit; done; i=$((i+1)); done; sync`,
			first, first+atOnce/2, round*97, guestSpan)
		if err := g.inside(script); err != nil {
			return err
		}
	}
	return nil
}

// prove takes a last increment of the quiet, paused machine, ends it and compares all disks,
// restored, with its own.
func (g *guest) prove() error {
	if err := g.inside("lab stop db; sync"); err != nil {
		return err
	}
	if err := g.write(1 << 20); err != nil {
		return err
	}
	if err := sh(`virsh -q -c "$1" suspend "$2"`, g.uri, g.domain()); err != nil {
		return err
	}
	if _, err := g.do(g.dir, g.repo, g.repo, g.last(g.repo)); err != nil {
		return err
	}
	if err := g.vm.Stop(); err != nil {
		return err
	}
	out := filepath.Join(g.dir, "out")
	if err := os.Mkdir(out, 0o700); err != nil {
		return err
	}
	for _, argv := range g.open(g.repo, out) {
		if _, err := g.do(g.dir, g.repo, out, argv); err != nil {
			return err
		}
	}
	for _, disk := range g.vm.Disks {
		got, err := filepath.Glob(filepath.Join(out, disk.Name+"*"))
		if err == nil && len(got) != 1 {
			err = fmt.Errorf("%s was restored to %d files", disk.Name, len(got))
		}
		if err != nil {
			return err
		}
		if err := sh(`qemu-img compare -f qcow2 -F qcow2 "$1" "$2"`, disk.Path, got[0]); err != nil {
			return errors.Join(fmt.Errorf("the restored disk %s is wrong", disk.Name), err)
		}
	}
	return nil
}
