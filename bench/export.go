package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/holdfast-vm/holdfast/internal/nbd"
	"github.com/holdfast-vm/holdfast/test/vm"
)

// export is goals 6 and 7: opening a point, and reading from it.
func (b *bench) export() error {
	return b.exportParts((*exportBench).open, (*exportBench).hot, (*exportBench).cold, (*exportBench).boot)
}

// bootOnly is what export says of booting.
func (b *bench) bootOnly() error { return b.exportParts((*exportBench).boot) }

func (b *bench) exportParts(parts ...func(*exportBench) error) error {
	dir := filepath.Join(b.dir, "export")
	if err := sh(`rm -rf "$1" && mkdir -p "$1"`, dir); err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	e := &exportBench{bench: b, dir: dir}
	for _, part := range parts {
		if err := part(e); err != nil {
			return err
		}
	}
	fmt.Println()
	return nil
}

type exportBench struct {
	*bench
	dir string
}

// server is a process that serves a disk over NBD.
type server struct {
	cmd *exec.Cmd
	uri string
}

// stop ends the server as its user would.
func (s *server) stop() error {
	if err := s.cmd.Process.Signal(os.Interrupt); err != nil {
		return err
	}
	err := s.cmd.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ProcessState.Sys() != nil && strings.Contains(exit.Error(), "signal") {
		return nil // qemu-nbd ends by the signal
	}
	return err
}

// startExport serves a point of a vault, and returns what passed until a client had read its first
// 4 KiB.
func (b *bench) startExport(repo, ref string, args ...string) (*server, time.Duration, error) {
	socket := repo + ".sock"
	argv := append([]string{"point", "export", ref, "--disk", "vda", "--socket", socket, "--json"}, args...)
	cmd := exec.Command(b.holdfast, argv...)
	cmd.Env = append(os.Environ(), b.holdfastTool("", nil).env(repo)...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, 0, err
	}
	start := time.Now()
	if err := cmd.Start(); err != nil {
		return nil, 0, err
	}
	var doc struct{ Disks []struct{ URI, Name string } }
	if err := json.NewDecoder(bufio.NewReader(out)).Decode(&doc); err != nil {
		return nil, 0, errors.Join(err, cmd.Process.Kill(), cmd.Wait())
	}
	s := &server{cmd: cmd, uri: doc.Disks[0].URI}
	c, err := nbd.Dial(context.Background(), nbd.Options{Network: "unix", Address: socket, Export: doc.Disks[0].Name})
	if err == nil {
		_, err = c.ReadAt(make([]byte, 4096), 0)
		c.Close()
	}
	took := time.Since(start)
	if err != nil {
		return nil, 0, errors.Join(err, s.stop())
	}
	return s, took, nil
}

// serveRaw serves an image by qemu-nbd.
func serveRaw(image, format, socket string) (*server, error) {
	cmd := exec.Command("qemu-nbd", "-r", "-t", "-e", "8", "-f", format, "-k", socket, image)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	for deadline := time.Now().Add(10 * time.Second); ; {
		c, err := nbd.Dial(context.Background(), nbd.Options{Network: "unix", Address: socket})
		if err == nil {
			c.Close()
			return &server{cmd, "nbd+unix:///?socket=" + socket}, nil
		}
		if time.Now().After(deadline) {
			return nil, errors.Join(err, cmd.Process.Kill(), cmd.Wait())
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// opened is a vault whose newest point is opened.
type opened struct {
	name   string
	repo   string
	size   int64 // of the disk
	stride int64 // a chunk of data in each
	points int
	id     string    // of the newest point
	took   []float64 // milliseconds
	latest []float64 // the same, when the point is named by its machine
}

// open measures how long it takes from the start of a process to the first bytes that a client has.
func (e *exportBench) open() error {
	vaults := []*opened{
		{name: "1 GiB, 1 point", size: 1 << 30, stride: 64 << 10, points: 1},
		{name: "1 TiB, 1 point", size: 1 << 40, stride: 4 << 20, points: 1},
		{name: "1 GiB, 1000 points", size: 1 << 30, stride: 64 << 10, points: 1000},
	}
	for i, o := range vaults {
		o.repo = filepath.Join(e.dir, fmt.Sprint("open", i))
		t := e.holdfastTool("", nil)
		if _, err := t.do(e.dir, o.repo, e.dir, t.init(o.repo)); err != nil {
			return err
		}
		if err := fillPoints(o); err != nil {
			return fmt.Errorf("fill the vault of %s: %w", o.name, err)
		}
	}
	for range 3 * e.rounds {
		for _, o := range vaults {
			for ref, got := range map[string]*[]float64{o.id: &o.took, "open@latest": &o.latest} {
				s, took, err := e.startExport(o.repo, ref)
				if err != nil {
					return fmt.Errorf("open %s: %w", o.name, err)
				}
				if err := s.stop(); err != nil {
					return err
				}
				*got = append(*got, 1000*took.Seconds())
			}
		}
	}
	base := vaults[0]
	for _, o := range vaults {
		fmt.Printf("goal 6  open an export, %-20s %6.0f ms, to that of 1 GiB and 1 point %s   wanted at most 100 ms, "+
			"1.3x (as NAME@latest %.0f ms, %s)\n",
			o.name+":", median(o.took), ratio(o.took, base.took), median(o.latest), ratio(o.latest, base.latest))
		if err := os.RemoveAll(o.repo); err != nil {
			return err
		}
	}
	return nil
}

// exportReads is how many random reads of 4 KiB one round makes.
const (
	hotReads  = 60_000
	coldReads = 1500
	hotSpan   = 192 << 20 // bytes of the image: within the default cache
)

// fio makes random reads and returns how many a second there were.
func fio(reads int, span int64, args ...string) (float64, error) {
	out, err := os.CreateTemp("", "hf-fio")
	if err != nil {
		return 0, err
	}
	out.Close()
	defer os.Remove(out.Name())
	argv := append([]string{"--name=read", "--rw=randread", "--bs=4k", "--norandommap", fmt.Sprint("--size=", span),
		fmt.Sprint("--io_size=", reads*4096),
		"--output-format=json", "--output=" + out.Name()}, args...)
	if text, err := exec.Command("fio", argv...).CombinedOutput(); err != nil {
		return 0, fmt.Errorf("fio %s: %w\n%s", strings.Join(argv, " "), err, text)
	}
	raw, err := os.ReadFile(out.Name())
	if err != nil {
		return 0, err
	}
	var doc struct {
		Jobs []struct{ Read struct{ IOPS float64 } }
	}
	if err := json.Unmarshal(raw, &doc); err != nil || len(doc.Jobs) != 1 {
		return 0, fmt.Errorf("read what fio says: %v, %d jobs", err, len(doc.Jobs))
	}
	return doc.Jobs[0].Read.IOPS, nil
}

// backedUp returns a vault that holds the image of real files.
func (e *exportBench) backedUp(image string) (repo string, err error) {
	repo = filepath.Join(e.dir, "vault")
	if _, err := os.Stat(repo); err == nil {
		return repo, warm(repo)
	}
	t := e.holdfastTool("", nil)
	for _, argv := range [][]string{t.init(repo), t.backup(repo)} {
		if _, err := t.do(filepath.Dir(image), repo, e.dir, argv); err != nil {
			return "", err
		}
	}
	return repo, warm(repo)
}

// hot is goal 7 where everything is in memory: of ours in the cache of decoded chunks, of
// qemu-nbd's in the page cache.
func (e *exportBench) hot() error {
	base, _, err := e.sources()
	if err != nil {
		return err
	}
	image := filepath.Join(base, "disk.raw")
	repo, err := e.backedUp(image)
	if err != nil {
		return err
	}
	raw, err := serveRaw(image, "raw", filepath.Join(e.dir, "raw.sock"))
	if err != nil {
		return err
	}
	defer raw.stop()
	ours, _, err := e.startExport(repo, "bench@latest")
	if err != nil {
		return err
	}
	defer ours.stop()
	if err := e.sameSpan(ours.uri, raw.uri); err != nil {
		return err
	}
	for _, depth := range []int{1, 16} {
		var h, q []float64
		for range e.rounds {
			for _, s := range []struct {
				uri string
				got *[]float64
			}{{raw.uri, &q}, {ours.uri, &h}} {
				iops, err := fio(hotReads, hotSpan, "--ioengine=nbd", "--uri="+s.uri, fmt.Sprint("--iodepth=", depth))
				if err != nil {
					return err
				}
				*s.got = append(*s.got, iops)
			}
		}
		fmt.Printf("goal 7  hot random 4 KiB reads, %2d at once: holdfast %.0f/s, qemu-nbd on the raw file %.0f/s: "+
			"%s   wanted 0.9x\n", depth, median(h), median(q), ratio(h, q))
	}
	return nil
}

// sameSpan compares what two servers serve where it will be read, which also warms them.
func (e *exportBench) sameSpan(a, b string) error {
	for i, uri := range []string{a, b} {
		// qemu-img reads through the very servers.
		out := filepath.Join(e.dir, fmt.Sprint("span", i))
		if err := sh(`qemu-img dd -f raw -O raw bs=1M count="$3" if="$1" of="$2"`, uri, out, fmt.Sprint(hotSpan>>20)); err != nil {
			return err
		}
		defer os.Remove(out)
	}
	return sh(`cmp "$1/span0" "$1/span1"`, e.dir)
}

// boot is goal 6: the lab guest boots from an overlay over our export, and from one over its raw
// image through qemu-nbd.
func (e *exportBench) boot() error {
	image, err := vm.FindImage(context.Background(), os.Stderr)
	if err != nil {
		return err
	}
	raw := filepath.Join(e.dir, "disk.raw")
	if err := sh(`qemu-img convert -O raw "$1" "$2"`, image.Disk, raw); err != nil {
		return err
	}
	repo := filepath.Join(e.dir, "boot")
	t := e.holdfastTool("", nil)
	for _, argv := range [][]string{t.init(repo), t.backup(repo)} {
		if _, err := t.do(e.dir, repo, e.dir, argv); err != nil {
			return err
		}
	}
	if err := warm(repo); err != nil {
		return err
	}
	var first, h, q []float64
	for round := range e.rounds + 1 {
		local, err := serveRaw(raw, "raw", filepath.Join(e.dir, "boot-raw.sock"))
		if err != nil {
			return err
		}
		took, err := e.bootFrom(image, local.uri)
		if err := errors.Join(err, local.stop()); err != nil {
			return fmt.Errorf("boot from qemu-nbd: %w", err)
		}
		ours, _, err := e.startExport(repo, "bench@latest", "--record-boot")
		if err != nil {
			return err
		}
		export, err := e.bootFrom(image, ours.uri)
		if err := errors.Join(err, ours.stop()); err != nil {
			return fmt.Errorf("boot from the export: %w", err)
		}
		if round == 0 { // nothing was recorded yet
			first = append(first, export/took)
			continue
		}
		h, q = append(h, export), append(q, took)
	}
	fmt.Printf("goal 6  guest boot from the export %.1f s, through qemu-nbd from the raw file %.1f s: %s (the first "+
		"one, with nothing recorded, %.2fx)   wanted at most 1.05x\n",
		median(h), median(q), ratio(h, q), first[0])
	return nil
}

// bootFrom boots the lab guest from an overlay and returns what passed until its agents answered,
// in seconds.
func (e *exportBench) bootFrom(image vm.Image, uri string) (float64, error) {
	dir, err := os.MkdirTemp(e.dir, "guest")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	overlay := filepath.Join(dir, "vda.qcow2")
	if err := sh(`qemu-img create -q -f qcow2 -o cluster_size=64k -F raw -b "$1" "$2"`, uri, overlay); err != nil {
		return 0, err
	}
	start := time.Now()
	guest, err := vm.LaunchQEMU(image,
		vm.Options{Name: "boot", Dir: dir, Work: "none", System: vm.Disk{Name: "vda", Path: overlay, Format: "qcow2"}})
	if err != nil {
		return 0, err
	}
	err = guest.WaitUp()
	took := time.Since(start).Seconds()
	return took, errors.Join(err, guest.Close())
}
