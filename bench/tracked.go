package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/holdfast-vm/holdfast/internal/qmp"
)

// tracked is goal 3 where changes are tracked: a disk of a QEMU, of which one percent is
// overwritten before each backup. The guest does not run, so that its own work is not measured: the
// writes go through QEMU's monitor, below the guest's device.
func (b *bench) tracked() error {
	base, _, err := b.sources()
	if err != nil {
		return err
	}
	dir := filepath.Join(b.dir, "tracked")
	defer os.RemoveAll(dir)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	image := filepath.Join(dir, "disk.raw")
	if err := sh(`cp --sparse=always "$1" "$2"`, filepath.Join(base, "disk.raw"), image); err != nil {
		return err
	}
	vm, err := startQEMU(dir, image)
	if err != nil {
		return err
	}
	defer vm.stop()
	t := &trackedRun{bench: b, dir: dir, image: image, vm: vm, holdfast: b.vmTool(vm), restic: b.tools()[1],
		rng: rand.New(rand.NewPCG(1, 1))}
	return t.run()
}

// vmTool backs up the disk of a running QEMU.
func (b *bench) vmTool(vm *qemu) tool {
	t := b.holdfastTool("holdfast", nil)
	t.backup = func(string) []string {
		return []string{b.holdfast, "vm", "backup", "bench", "--connect", "qmp:" + vm.socket, "--consistency", "crash",
			"--scratch", filepath.Dir(vm.socket), "--json"}
	}
	return t
}

type trackedRun struct {
	*bench
	dir, image       string
	vm               *qemu
	holdfast, restic tool
	rng              *rand.Rand
}

func (t *trackedRun) run() error {
	repoH, repoR := filepath.Join(t.dir, "vault"), filepath.Join(t.dir, "restic")
	for tool, repo := range map[*tool]string{&t.holdfast: repoH, &t.restic: repoR} {
		if _, err := tool.do(t.dir, repo, t.dir, tool.init(repo)); err != nil {
			return err
		}
		if _, err := tool.do(t.dir, repo, t.dir, tool.backup(repo)); err != nil {
			return err
		}
	}
	const blocks = 80 << 20 / (64 << 10)
	var h, r, rss, grew []float64
	for range t.rounds {
		if err := t.vm.scribble(t.rng, blocks, t.size); err != nil {
			return err
		}
		before, err := stored(repoH)
		if err != nil {
			return err
		}
		if err := warm(t.image); err != nil {
			return err
		}
		ch, err := t.holdfast.do(t.dir, repoH, repoH, t.holdfast.backup(repoH))
		if err != nil {
			return err
		}
		after, err := stored(repoH)
		if err != nil {
			return err
		}
		cr, err := t.restic.do(t.dir, repoR, repoR, t.restic.backup(repoR))
		if err != nil {
			return err
		}
		h, r, rss, grew = append(h, ch.seconds), append(r, cr.seconds), append(rss, float64(ch.rss)),
			append(grew, float64(after-before))
	}
	read, err := t.lastRead(repoH)
	if err != nil {
		return err
	}
	if err := t.verify(repoH); err != nil {
		return err
	}
	fmt.Printf("goal 3  1%% of 8 GiB changed, tracked: holdfast %.2f s, restic %.2f s: %s   wanted 50x\n", median(h),
		median(r), ratio(r, h))
	fmt.Printf("goal 3  bytes read / dirty bytes %.3f, wanted at most 1.02; vault grew %.1f MB for %.1f MB; peak "+
		"%.0f MiB\n\n", float64(read)/float64(blocks*65536), median(grew)/1e6, blocks*65536/1e6, maxOf(rss)/(1<<20))
	return nil
}

func (t *trackedRun) lastRead(repo string) (int64, error) {
	cmd := exec.Command(t.bench.holdfast, "point", "show", "bench@latest", "--json")
	cmd.Env = append(os.Environ(), t.holdfast.env(repo)...)
	out, err := cmd.Output()
	if err != nil {
		return 0, err
	}
	var p struct {
		Disks []struct {
			Read int64 `json:"read"`
		} `json:"disks"`
	}
	if err := json.Unmarshal(out, &p); err != nil || len(p.Disks) != 1 {
		return 0, fmt.Errorf("point show: %v", err)
	}
	return p.Disks[0].Read, nil
}

// verify restores the last point and compares it with the disk, which nobody wrote to since.
func (t *trackedRun) verify(repo string) error {
	out := filepath.Join(t.dir, "restored.raw")
	if _, err := t.holdfast.do(t.dir, repo, t.dir,
		[]string{t.bench.holdfast, "point", "restore", "bench@latest", "--to", out}); err != nil {
		return err
	}
	a, err := sum(out)
	if err != nil {
		return err
	}
	b, err := sum(t.image)
	if err != nil {
		return err
	}
	if a != b {
		return fmt.Errorf("the restored disk is wrong")
	}
	return nil
}

// qemu is a QEMU whose guest does not run.
type qemu struct {
	socket string
	cmd    *exec.Cmd
	mon    *qmp.Client
}

func startQEMU(dir, image string) (*qemu, error) {
	sock, err := os.MkdirTemp("", "hfbench")
	if err != nil {
		return nil, err
	}
	v := &qemu{socket: filepath.Join(sock, "qmp")}
	own := filepath.Join(sock, "own")
	v.cmd = exec.Command("qemu-system-x86_64", "-S", "-name", "bench", "-nodefaults", "-display", "none", "-machine",
		"q35,accel=tcg",
		"-qmp", "unix:"+v.socket+",server=on,wait=off", "-qmp", "unix:"+own+",server=on,wait=off", "-object",
		"iothread,id=io0",
		"-blockdev", "driver=file,filename="+image+",node-name=f0,cache.direct=off", "-blockdev",
		"driver=raw,file=f0,node-name=d0", "-device", "virtio-blk-pci,drive=d0,id=vda,iothread=io0")
	v.cmd.Stderr = os.Stderr
	if err := v.cmd.Start(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for {
		if v.mon, err = qmp.Dial(ctx, own); err == nil {
			return v, nil
		}
		select {
		case <-ctx.Done():
			v.stop()
			return nil, fmt.Errorf("QEMU does not answer: %w", err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// scribble overwrites count different aligned blocks of 64 KiB with bytes that do not compress.
func (v *qemu) scribble(rng *rand.Rand, count int, size int64) error {
	src := filepath.Join(filepath.Dir(v.socket), "block")
	var key [32]byte
	for i := range key {
		key[i] = byte(rng.Uint32())
	}
	noise := rand.NewChaCha8(key)
	seen := map[int64]bool{}
	for len(seen) < count {
		at := rng.Int64N(size / 65536)
		if seen[at] {
			continue
		}
		seen[at] = true
		f, err := os.Create(src)
		if err != nil {
			return err
		}
		if _, err := io.CopyN(f, noise, 65536); err != nil {
			return err
		}
		if err := f.Close(); err != nil {
			return err
		}
		var out string
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		err = v.mon.Execute(ctx, "human-monitor-command", map[string]string{"command-line": fmt.Sprintf(`qemu-io -d /machine/peripheral/vda/virtio-backend "write -q -s %s %d 65536"`, src, at*65536)}, &out)
		cancel()
		if err != nil || out != "" {
			return fmt.Errorf("write through QEMU: %v %s", err, out)
		}
	}
	return nil
}

func (v *qemu) stop() {
	if v.mon != nil {
		v.mon.Close()
	}
	_ = v.cmd.Process.Kill()
	_ = v.cmd.Wait()
	os.RemoveAll(filepath.Dir(v.socket))
}
