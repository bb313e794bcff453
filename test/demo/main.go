// Command demo shows the main job of Holdfast on a real guest: a running machine becomes a recovery
// point, is lost, and boots again from it with everything that was committed before the point.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/term"

	"github.com/holdfast-vm/holdfast/internal/cli"
	"github.com/holdfast-vm/holdfast/test/vm"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	d := &demo{ctx: ctx, began: time.Now()}
	err := d.run()
	d.clean()
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

// demo is one run.
type demo struct {
	ctx      context.Context
	began    time.Time
	dir      string // of everything
	holdfast string
	vm       *vm.VM
}

func (d *demo) say(format string, args ...any) {
	bold, plain := "", ""
	if term.IsTerminal(int(os.Stdout.Fd())) {
		bold, plain = "\033[1m", "\033[0m"
	}
	fmt.Printf("\n%s[%5.1f s] %s%s\n", bold, time.Since(d.began).Seconds(), fmt.Sprintf(format, args...), plain)
}

// do runs holdfast as a user would type it, and shows what it prints.
func (d *demo) do(args ...string) error {
	quoted := make([]string, len(args))
	for i, a := range args {
		quoted[i] = a
		if strings.ContainsAny(a, " ,*") {
			quoted[i] = "'" + a + "'"
		}
	}
	fmt.Printf("$ holdfast %s\n", strings.ReplaceAll(strings.Join(quoted, " "), d.dir, "$D"))
	cmd := exec.CommandContext(d.ctx, d.holdfast, args...)
	cmd.Env = append(os.Environ(), "HOLDFAST_VAULT="+filepath.Join(d.dir, "vault"), "HOLDFAST_KEY_FILE="+
		filepath.Join(d.dir, "vault.key"),
		"HOLDFAST_MEMORY="+filepath.Join(d.dir, "memory"),
		"HOLDFAST_STATE="+filepath.Join(d.dir, "state"), "HOLDFAST_SCRATCH="+filepath.Join(d.dir, "scratch"))
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("holdfast %s: %w", args[0]+" "+args[1], err)
	}
	return nil
}

func (d *demo) run() error {
	var err error
	if d.holdfast, err = filepath.Abs("bin/holdfast"); err != nil {
		return err
	}
	if d.dir, err = os.MkdirTemp("", "hfdemo"); err != nil {
		return err
	}
	for _, step := range []func() error{d.boot, d.backUp, d.lose, d.fetch, d.restore, d.prove, d.instant} {
		if err := step(); err != nil {
			return err
		}
		if err := d.ctx.Err(); err != nil {
			return err
		}
	}
	d.say("That is the main job: backed up while it ran, lost, and back. All of it took %.0f s.",
		time.Since(d.began).Seconds())
	return nil
}

func (d *demo) boot() error {
	d.say("Booting a real Debian guest with three disks (the image is built from Debian packages the first time) …")
	image, err := vm.FindImage(d.ctx, os.Stderr)
	if err != nil {
		return err
	}
	host := filepath.Join(d.dir, "host")
	if err := os.Mkdir(host, 0o700); err != nil {
		return err
	}
	if d.vm, err = vm.LaunchQEMU(image, vm.Options{Name: "shop", Dir: host, Work: "disks,db"}); err != nil {
		return err
	}
	if err := d.vm.WaitUp(); err != nil {
		return err
	}
	d.say("It is up. It commits rows to a database, and writes records in a known order across two more disks.")
	if err := d.vm.WaitAcked("COMMITTED", 20, time.Minute); err != nil {
		return err
	}
	if err := d.do("vault", "init", filepath.Join(d.dir, "vault")); err != nil {
		return err
	}
	return d.do("vm", "list", "--connect", d.uri())
}

func (d *demo) uri() string { return "qmp:" + d.vm.QMPPath + ",qga=" + d.vm.QGAPath }

// committed is what the guest said is durable before the last backup.
var committed, acked uint64

func (d *demo) backUp() error {
	d.say("First backup, while it writes: everything that is allocated. The guest is quiesced for the instant only.")
	if err := d.do("vm", "backup", "shop", "--connect", d.uri()); err != nil {
		return err
	}
	rows := d.vm.Acked("COMMITTED")
	d.say("It has committed %d rows and goes on. Second backup: only what changed since.", rows)
	if err := d.vm.WaitAcked("COMMITTED", rows+10, time.Minute); err != nil {
		return err
	}
	if err := d.backUpWhole(); err != nil {
		return err
	}
	if err := d.vm.WaitAcked("COMMITTED", committed+5, time.Minute); err != nil {
		return err
	}
	return d.do("point", "list")
}

// backUpWhole takes the point that counts. On a busy machine an emulated guest may take longer to
// hold its writes than it is given; then the point is taken again, as a user would.
func (d *demo) backUpWhole() error {
	for tries := 1; ; tries++ {
		committed, acked = d.vm.Acked("COMMITTED"), d.vm.Acked("ACKED")
		err := d.do("vm", "backup", "shop", "--connect", d.uri(), "--consistency", "application", "--require", "--tag",
			"why=before the disaster")
		exit := (*exec.ExitError)(nil)
		if !errors.As(err, &exit) || exit.ExitCode() != cli.StatusConsistency || tries == 5 {
			return err
		}
		d.say("No point was made: a lower consistency was not wanted. Once more.")
	}
}

func (d *demo) lose() error {
	d.say("Disaster: the machine is killed, its disks are overwritten and deleted.")
	if err := d.vm.Kill(); err != nil {
		return err
	}
	host := filepath.Join(d.dir, "host")
	fmt.Printf("$ kill -9 %d; shred and rm $D/host/vd*\n", d.vm.PID)
	for _, disk := range d.vm.Disks {
		if err := os.WriteFile(disk.Path, []byte("all gone"), 0o600); err != nil {
			return err
		}
	}
	return errors.Join(d.vm.Close(), os.RemoveAll(host))
}

// fetch takes one directory out of the point.
func (d *demo) fetch() error {
	d.say("Often one file is enough. It is read out of the point as it is stored: nothing is restored, mounted or " +
		"booted for it.")
	if err := d.do("point", "ls", "shop@latest", "/var/lib/app"); err != nil {
		return err
	}
	files := filepath.Join(d.dir, "files")
	if err := d.do("point", "get", "shop@latest", "/var/lib/app", "--to", files); err != nil {
		return err
	}
	query := []string{filepath.Join(files, "app", "app.db"), "select count(*) from entry"}
	fmt.Printf("$ sqlite3 $D/files/app/app.db '%s'\n", query[1])
	out, err := exec.CommandContext(d.ctx, "sqlite3", query...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("look into the database that was fetched: %w: %s", err, out)
	}
	fmt.Printf("%s", out)
	rows, err := strconv.ParseUint(strings.TrimSpace(string(out)), 10, 64)
	if err != nil || rows < committed {
		return fmt.Errorf("the database that was fetched has %q rows, %d were committed before the point",
			strings.TrimSpace(string(out)), committed)
	}
	return nil
}

func (d *demo) restore() error {
	d.say("Restoring the whole machine from the vault, and starting it.")
	sock := filepath.Join(d.dir, "q")
	return d.do("point", "restore", "shop@latest", "--as", "shop", "--connect",
		"qmp:"+sock+",qga="+filepath.Join(d.dir, "a"), "--storage", filepath.Join(d.dir, "new"), "--start")
}

// attach finds the console and the lab's agent of the restored machine in its start script.
func (d *demo) attach(storage string) (*vm.VM, error) {
	script, err := os.ReadFile(filepath.Join(storage, "shop.sh"))
	if err != nil {
		return nil, err
	}
	lab := regexp.MustCompile(`socket,id=lab0,path=([^,' ]+)`).FindSubmatch(script)
	console := regexp.MustCompile(`-serial file:([^' \n]+)`).FindSubmatch(script)
	if lab == nil || console == nil {
		return nil, fmt.Errorf("the start script has no console or lab channel:\n%s", script)
	}
	v := &vm.VM{Name: "shop", LabPath: string(lab[1]), ConsolePath: string(console[1])}
	return v, nil
}

func (d *demo) prove() error {
	v, err := d.attach(filepath.Join(d.dir, "new"))
	if err != nil {
		return err
	}
	d.say("Waiting for the restored guest to boot …")
	if err := v.WaitUp(); err != nil {
		return err
	}
	check, status, err := v.Exec("sqlite3 /var/lib/app/app.db 'pragma integrity_check'")
	if err != nil || status != 0 {
		return fmt.Errorf("look into the database: %v %s", err, check)
	}
	rows, last, err := v.Rows()
	if err != nil {
		return err
	}
	d.say("It is up. Its database says: integrity %s, rows 1 to %d, none missing: %v.", strings.TrimSpace(check), last,
		rows == last)
	fmt.Printf("Committed before the point: %d rows. There now: %d rows.\n", committed, last)
	if last < committed || rows != last || strings.TrimSpace(check) != "ok" {
		return errors.New("rows that were committed before the point are lost")
	}
	return d.order()
}

// order checks the two other disks against each other: the point itself, not what the guest has
// written since.
func (d *demo) order() error {
	disks := map[string]vm.Disk{}
	for name, format := range map[string]string{"vdb": "qcow2", "vdc": "raw"} {
		disks[name] = vm.Disk{Name: name, Path: filepath.Join(d.dir, name+"."+format), Format: format}
		if err := d.do("point", "restore", "shop@latest", "--disk", name, "--to", disks[name].Path); err != nil {
			return err
		}
	}
	a, b, err := vm.CheckDisks(d.ctx, disks["vdb"], disks["vdc"])
	if err != nil {
		return fmt.Errorf("the two data disks are not of one instant: %w", err)
	}
	d.say("The two data disks are of one instant: record %d is the last on one, %d on the other; %d were "+
		"acknowledged before the backup.", a, b, acked)
	if b < acked {
		return errors.New("records that were acknowledged before the point are lost")
	}
	return nil
}

// instant brings the machine back once more, without waiting for its disks.
func (d *demo) instant() error {
	d.say("It is lost once more. This time nobody waits for the disks: it boots from the vault at once, and they are " +
		"copied behind it.")
	d.killRestored()
	began := time.Now()
	sock := filepath.Join(d.dir, "q2")
	storage := filepath.Join(d.dir, "now")
	if err := d.do("point", "restore", "shop@latest", "--as", "shop", "--connect",
		"qmp:"+sock+",qga="+filepath.Join(d.dir, "a2"), "--storage", storage, "--instant", "--start",
		"--detach"); err != nil {
		return err
	}
	fmt.Printf("The machine runs after %.1f s.\n", time.Since(began).Seconds())
	v, err := d.attach(storage)
	if err != nil {
		return err
	}
	if err := v.WaitUp(); err != nil {
		return err
	}
	rows, last, err := v.Rows()
	if err != nil {
		return err
	}
	d.say("It has booted, %.1f s after it was asked for. Its database has rows 1 to %d, none missing: %v.",
		time.Since(began).Seconds(), last, rows == last)
	if last < committed || rows != last {
		return errors.New("rows that were committed before the point are lost")
	}
	return d.hydrated(storage)
}

// hydrated waits until the machine does not depend on us.
func (d *demo) hydrated(storage string) error {
	ctx, cancel := context.WithTimeout(d.ctx, 2*time.Minute)
	defer cancel()
	for {
		out, err := exec.CommandContext(ctx, d.holdfast, "instant", "list", "--storage", storage, "--json").Output()
		if err != nil {
			return fmt.Errorf("ask how far the disks are: %w", err)
		}
		if strings.TrimSpace(string(out)) == "[]" {
			break
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the disks did not become local: %s", out)
		case <-time.After(200 * time.Millisecond):
		}
	}
	disks, err := filepath.Glob(filepath.Join(storage, "shop-vd*"))
	if err != nil {
		return err
	}
	d.say("Its %d disks are local now, and it depends on nothing of ours.", len(disks))
	return nil
}

// clean ends what the demo started.
func (d *demo) clean() {
	if d.vm != nil && !d.vm.Ended() {
		_ = d.vm.Close() // it is killed either way
	}
	if d.dir == "" {
		return
	}
	d.killRestored()
	_ = os.RemoveAll(d.dir)
}

// killRestored ends the restored machines, which are nobody's children.
func (d *demo) killRestored() {
	lines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, line := range lines {
		args, _ := os.ReadFile(line)
		if !strings.Contains(string(args), d.dir) ||
			!strings.HasPrefix(filepath.Base(strings.Split(string(args), "\x00")[0]), "qemu-system") {
			continue
		}
		var pid int
		if _, err := fmt.Sscanf(line, "/proc/%d/cmdline", &pid); err == nil {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
}
