// Package sparse runs every command that works with a disk on a disk of any size that holds little,
// so that what a command costs can be compared between sizes: by the statements that it ran in this
// package's test, by its processor time in the benchmarks.
//
// The disks are sparse files of a local directory, and nothing else is there: no hypervisor, no
// guest.
package sparse

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Commands are the commands of one run.
type Commands struct {
	Holdfast string                                   // program
	Dir      string                                   // absolute, empty: all that is made goes here
	Size     int64                                    // of the disks in bytes, from 64 MiB
	Env      []string                                 // added to the environment of each command
	Ran      func(command string, p *os.ProcessState) // told of each that has ended; nil discards
}

// Run runs all commands and returns the first error.
func (c *Commands) Run() error {
	for _, part := range []func() error{c.backups, c.looking, c.restores, c.otherImages, c.machine, c.snapshots,
		c.exports, c.mount, c.cleaning} {
		if err := part(); err != nil {
			return err
		}
	}
	return nil
}

func (c *Commands) path(name string) string { return filepath.Join(c.Dir, name) }

func (c *Commands) command(args ...string) *exec.Cmd {
	cmd := exec.Command(c.Holdfast, append([]string{"--quiet"}, args...)...)
	cmd.Dir = c.Dir
	cmd.Env = append(os.Environ(), "HOLDFAST_VAULT="+c.path("vault"), "HOLDFAST_KEY_FILE="+c.path("key"),
		"HOLDFAST_POOL="+c.path("pool"), "HOLDFAST_STATE="+c.path("state"), "HOLDFAST_MEMORY="+c.path("memory"))
	cmd.Env = append(cmd.Env, c.Env...)
	return cmd
}

// do runs a command of holdfast, called name.
func (c *Commands) do(name string, args ...string) error {
	cmd := c.command(args...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("disks of %d bytes: %s: holdfast %s: %w\n%s", c.Size, name, strings.Join(args, " "), err, out)
	}
	c.ran(name, cmd)
	return nil
}

func (c *Commands) ran(name string, cmd *exec.Cmd) {
	if c.Ran != nil && name != "" {
		c.Ran(name, cmd.ProcessState)
	}
}

// all does one command after the other: name, then arguments separated by blanks.
func (c *Commands) all(commands ...[2]string) error {
	for _, cmd := range commands {
		if err := c.do(cmd[0], strings.Fields(cmd[1])...); err != nil {
			return err
		}
	}
	return nil
}

// tool runs a program of the machine.
func (c *Commands) tool(args ...string) error {
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Dir = c.Dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return nil
}

// fill writes n bytes of seed at off of a file.
func (c *Commands) fill(name string, off, n int64, seed byte) error {
	f, err := os.OpenFile(c.path(name), os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(i>>12)*7 + seed
	}
	_, err = f.WriteAt(p, off)
	return errors.Join(err, f.Close())
}

func (c *Commands) backups() error {
	if err := os.Mkdir(c.path("pool"), 0o700); err != nil {
		return err
	}
	if err := c.do("", "vault", "init", "vault", "--key-file", "key"); err != nil {
		return err
	}
	f, err := os.Create(c.path("disk.raw"))
	if err != nil {
		return err
	}
	if err := errors.Join(f.Truncate(c.Size), f.Close(), c.fill("disk.raw", 8<<20, 1<<20, 1),
		c.fill("disk.raw", c.Size-(1<<20), 1<<16, 2)); err != nil {
		return err
	}
	if err := c.all([2]string{"image backup, first", "image backup disk.raw --name m"},
		[2]string{"image backup, no change", "image backup disk.raw --name m"}); err != nil {
		return err
	}
	if err := c.fill("disk.raw", c.Size/2, 1<<16, 3); err != nil {
		return err
	}
	return c.do("image backup, one change", "image", "backup", "disk.raw", "--name", "m")
}

func (c *Commands) looking() error {
	var points []struct{ ID string }
	out, err := c.command("point", "list", "--json").Output()
	if err == nil {
		err = json.Unmarshal(out, &points)
	}
	if err != nil || len(points) != 3 {
		return fmt.Errorf("list the points: %w: %s", err, out)
	}
	return c.all(
		[2]string{"point show", "point show m@latest"},
		[2]string{"point diff", "point diff " + points[0].ID + " " + points[2].ID},
		[2]string{"point verify", "point verify m@latest"}, [2]string{"point ls", "point ls m@latest"},
		[2]string{"vault check", "vault check"}, [2]string{"vault check --read-data", "vault check --read-data"},
		[2]string{"vault gc --dry-run", "vault gc --dry-run"}, [2]string{"usage", "usage"},
	)
}

func (c *Commands) restores() error {
	err := c.all(
		[2]string{"point restore, raw", "point restore m@latest --to restored.raw"},
		[2]string{"point restore, qcow2", "point restore m@latest --to restored.qcow2"},
	)
	if err != nil {
		return err
	}
	return c.tool("qemu-img", "compare", "-f", "qcow2", "-F", "raw", "restored.qcow2", "restored.raw")
}

// otherImages backs up an image that is read here, with a bitmap, and one that qemu-nbd reads.
func (c *Commands) otherImages() error {
	overlay := []string{"qemu-img", "create", "-q", "-f", "qcow2", "-b", "restored.qcow2", "-F", "qcow2",
		"overlay.qcow2"}
	if err := c.tool(overlay...); err != nil {
		return err
	}
	return c.all(
		[2]string{"image backup, qcow2, first", "image backup restored.qcow2 --name q"},
		[2]string{"image backup, qcow2, no change", "image backup restored.qcow2 --name q"},
		[2]string{"image backup through qemu-nbd", "image backup overlay.qcow2 --format qcow2 --name o"},
	)
}

func (c *Commands) snapshots() error {
	err := c.all(
		[2]string{"disk create", fmt.Sprintf("disk create empty --size %d", c.Size)},
		[2]string{"disk create, from a file", "disk create data --from-file disk.raw --file-format raw --format raw"},
		[2]string{"snapshot create, first", "snapshot create data --name one"},
	)
	if err != nil {
		return err
	}
	if err := c.fill("pool/data.raw", c.Size/4, 1<<16, 5); err != nil {
		return err
	}
	return c.all(
		[2]string{"snapshot create", "snapshot create data --name two"},
		[2]string{"snapshot diff", "snapshot diff one two"},
		[2]string{"snapshot diff --to", "snapshot diff one two --to change.hfdiff --digests"},
		[2]string{"", "point restore " + c.snapshotID("one") + " --to applied.raw"},
		[2]string{"snapshot apply", "snapshot apply change.hfdiff --to applied.raw"},
		[2]string{"", "vault init other --key-file other.key"},
		[2]string{"snapshot copy, first", "snapshot copy one --to-vault other --to-key-file other.key"},
		[2]string{"snapshot copy, next", "snapshot copy two --to-vault other --to-key-file other.key"},
		[2]string{"disk create, from a snapshot", "disk create again --from-snapshot two --wait"},
		[2]string{"disk create, at once", "disk create later --from-snapshot two"},
		[2]string{"disk resize", fmt.Sprintf("disk resize empty %d", c.Size+1<<20)},
		[2]string{"disk list", "disk list"},
	)
}

// machine backs up the disk of a QEMU that has no guest.
func (c *Commands) machine() error {
	qemu := exec.Command("qemu-system-x86_64", "-S", "-nodefaults", "-display", "none", "-accel", "tcg", "-m", "32",
		"-name", "vm",
		"-qmp", "unix:"+c.path("qmp")+",server=on,wait=off", "-drive", "file="+c.path("vm.qcow2")+",if=none,id=d",
		"-device", "virtio-blk-pci,drive=d")
	if err := c.tool("cp", "--sparse=always", "restored.qcow2", "vm.qcow2"); err != nil {
		return err
	}
	var out bytes.Buffer
	qemu.Stdout, qemu.Stderr = &out, &out
	if err := qemu.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- qemu.Wait() }()
	defer func() {
		qemu.Process.Kill()
		<-ended
	}()
	if err := c.await("qmp", ended); err != nil {
		return fmt.Errorf("QEMU: %w\n%s", err, &out)
	}
	host := " --connect qmp:" + c.path("qmp") + " --scratch " + c.path("scratch")
	return c.all(
		[2]string{"vm backup, first", "vm backup vm" + host},
		[2]string{"vm backup, no change", "vm backup vm" + host},
		[2]string{"vm backup --full-read", "vm backup vm --full-read" + host},
	)
}

// snapshotID returns the ID of a snapshot, or "" where it is not to be had, which the command then
// says.
func (c *Commands) snapshotID(name string) string {
	var s struct{ ID string }
	out, err := c.command("snapshot", "show", name, "--json").Output()
	if err != nil || json.Unmarshal(out, &s) != nil {
		return ""
	}
	return s.ID
}

// exports serves the disk, has it asked for holes, read and written, and opens a layer that holds
// something.
func (c *Commands) exports() error {
	var p struct{ ID string }
	out, err := c.command("point", "show", "m@latest", "--json").Output()
	if err == nil {
		err = json.Unmarshal(out, &p)
	}
	if err != nil || len(p.ID) < 8 {
		return fmt.Errorf("show the point: %w: %s", err, out)
	}
	uri := "nbd+unix:///" + p.ID[:8] + "/vda?socket=" + c.path("sock")
	read := []string{"qemu-io", "-r", "-f", "raw", "-c", "read 8M 1M", "-c", "read 100M 1M", uri}
	write := []string{
		"qemu-io", "-f", "raw", "-c", "write -P 5 20M 1M", "-c", "flush", "-c", "write -z 300M 64k", "-c",
		"discard 9M 64k", "-c", "flush",
		"-c", "flush", uri,
	}
	holes := []string{"qemu-img", "map", "-f", "raw", uri}
	if err := c.served("point export", []string{"point", "export", "m@latest", "--socket", "sock"}, "sock", holes,
		read); err != nil {
		return err
	}
	writable := []string{"point", "export", "m@latest", "--socket", "sock", "--writable", "layer"}
	if err := c.served("point export --writable, new", writable, "sock", write, holes); err != nil {
		return err
	}
	return c.served("point export --writable, again", writable, "sock", write, holes, read)
}

// mount shows the point as a directory, where that can be had.
func (c *Commands) mount() error {
	if _, err := os.Stat("/dev/fuse"); err != nil || os.Getuid() != 0 {
		return nil
	}
	if err := os.Mkdir(c.path("mnt"), 0o700); err != nil {
		return err
	}
	disk := c.path("mnt/disks/vda")
	return c.served("point mount", []string{"point", "mount", "m@latest", "mnt"}, "mnt/disks/vda",
		[]string{"dd", "if=" + disk, "of=/dev/null", "bs=1M", "skip=8", "count=1", "status=none"},
		[]string{"stat", disk})
}

// served starts a command that serves until it is interrupted, runs clients once the file ready is
// there, and ends it.
func (c *Commands) served(name string, args []string, ready string, clients ...[]string) (err error) {
	cmd := c.command(args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	defer func() {
		if err != nil {
			cmd.Process.Kill()
			<-ended
		}
	}()
	if err := c.await(ready, ended); err != nil {
		return fmt.Errorf("%s: %w\n%s", name, err, &out)
	}
	for _, client := range clients {
		if err := c.tool(client...); err != nil {
			return fmt.Errorf("%s: %w\n%s", name, err, &out)
		}
	}
	if err := cmd.Process.Signal(unix.SIGINT); err != nil {
		return err
	}
	if err := <-ended; err != nil {
		ended <- err
		return fmt.Errorf("%s: %w\n%s", name, err, &out)
	}
	c.ran(name, cmd)
	return nil
}

// await waits until a file is there that a command makes.
func (c *Commands) await(name string, ended chan error) error {
	late := time.After(time.Minute)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		if _, err := os.Stat(c.path(name)); err == nil {
			return nil
		}
		select {
		case err := <-ended:
			ended <- err
			return fmt.Errorf("it has ended before %s was there: %w", name, err)
		case <-late:
			return fmt.Errorf("%s is not there after a minute", name)
		case <-tick.C:
		}
	}
}

func (c *Commands) cleaning() error {
	return c.all([2]string{"point delete", "point delete m@latest"}, [2]string{"vault gc", "vault gc"})
}
