package qemu

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/capture"
	"github.com/holdfast-vm/holdfast/internal/point"
)

// Holdfast dies at any command. The guest goes on, Reconcile leaves nothing but the epoch of the
// last point, and the next point is exact and counted from that epoch.
func TestDeathAtEveryCommand(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name  string
		limit int64
	}{{"push", 0}, {"slices", 4 << 20}} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			v, w, rng := newVM(t), newVault(t), rand.New(rand.NewPCG(6, 1))
			cycle(t, v, w, v.capturer(), rng, 0)
			step := 1
			for i := 1; ; i += step {
				if tt.limit > 0 {
					v.write(rng, 60)
					step = 23
				}
				v.write(rng, 3)
				if !die(t, v, w, i, tt.limit) {
					return
				}
				done, err := v.capturer().Reconcile(t.Context(), "guest", vaultID, w.keep())
				if err != nil {
					t.Fatalf("reconcile after death at command %d: %v, %v", i, done, err)
				}
				v.requireClean(w.keep()...)
				if i%6 != 0 && tt.limit == 0 {
					continue // the changes pile up; the next cycle must have them all
				}
				res := cycle(t, v, w, v.capturer(), rng, 0)
				for _, d := range res.Disks {
					if !d.Tracked {
						t.Fatalf("after death at command %d: disk %s is not tracked: %s", i, d.Name, d.Reason)
					}
				}
			}
		})
	}
}

// die runs a capture that loses its monitor at the i-th command for good, as its process would, and
// reports whether it got that far.
func die(t *testing.T, v *vm, w *vault, i int, limit int64) bool {
	t.Helper()
	c := v.capturer()
	client, err := v.host.Client(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	f := &faulty{Client: client, left: i}
	c.open = func(context.Context) (monitor, error) {
		if f.log != "" {
			return nil, fmt.Errorf("dead since %s", f.log)
		}
		return f, nil
	}
	held := false
	hooks := capture.Hooks{Quiesce: func(context.Context) error { held = true; return nil },
		Thaw: func(context.Context) error { held = false; return nil }}
	replica := newVault(t)
	res, err := c.Capture(t.Context(), "guest", w.plan(v.scratch(), limit), hooks, replica.take)
	if held {
		t.Fatalf("death at command %d, %s, leaves the guest held", i, f.log)
	}
	if err == nil {
		err = res.DropNew(t.Context())
	}
	if (err == nil) != (f.log == "") {
		t.Fatalf("command %d, %q: error is %v", i, f.log, err)
	}
	return err != nil
}

// The connection breaks but QEMU is well: the capture itself leaves nothing.
func TestBrokenConnectionLeavesNothing(t *testing.T) {
	t.Parallel()
	v, w, rng := newVM(t), newVault(t), rand.New(rand.NewPCG(7, 1))
	cycle(t, v, w, v.capturer(), rng, 0)
	for i := 1; ; i += 7 {
		c := v.capturer()
		client, err := v.host.Client(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		f := &faulty{Client: client, left: i}
		honest := c.open
		c.open = func(ctx context.Context) (monitor, error) {
			if f.log != "" {
				return honest(ctx)
			}
			return f, nil
		}
		res, err := c.Capture(t.Context(), "guest", w.plan(v.scratch(), 0), capture.Hooks{}, newVault(t).take)
		if err == nil {
			if err := res.DropNew(t.Context()); err != nil && f.log == "" {
				t.Fatal(err)
			}
			break
		}
		v.requireClean(w.keep()...)
	}
}

// QEMU dies in mid-capture: a clear error. After its restart the disks are read whole, since no
// record can be trusted.
func TestQEMUDies(t *testing.T) {
	t.Parallel()
	v, w, rng := newVM(t), newVault(t), rand.New(rand.NewPCG(8, 1))
	c := v.capturer()
	cycle(t, v, w, c, rng, 0)
	v.quit()
	v.start()
	c = v.capturer()
	v.write(rng, 10)
	res := cycle(t, v, w, c, rng, 0)
	if d := res.Disks; !d[0].Tracked || !d[1].Tracked || d[2].Tracked || !strings.Contains(d[2].Reason, "lost") {
		t.Errorf("after a clean restart: %+v", d)
	}
	v.quit() // stores the bitmaps; then a start that is killed leaves them inconsistent
	v.start()
	kill := capture.Hooks{Frozen: func(context.Context) error { v.cmd.Process.Kill(); v.cmd.Wait(); return nil }}
	_, err := v.capturer().Capture(t.Context(), "guest", w.plan(v.scratch(), 0), kill, w.take)
	if err == nil || !strings.Contains(err.Error(), "QEMU closed its monitor") {
		t.Errorf("capture of a QEMU that dies: %v", err)
	}
	v.requireNoState()
	if _, err := v.capturer().Reconcile(t.Context(), "guest", "", nil); err == nil {
		t.Error("reconciled a QEMU that is dead")
	}
	v.requireNoState()
	v.start()
	res = cycle(t, v, w, v.capturer(), rng, 0)
	if d := res.Disks; d[0].Tracked || !strings.Contains(d[0].Reason, "inconsistent") || d[2].Tracked {
		t.Errorf("after a kill: %+v", d)
	}
	if res = cycle(t, v, w, v.capturer(), rng, 0); !res.Disks[0].Tracked || !res.Disks[2].Tracked {
		t.Errorf("the point after that: %+v", res.Disks)
	}
}

// A QEMU that is just dying may still take a connection, but says nothing. Nothing is left
// unfinished for that.
func TestQEMUDiesUnderSink(t *testing.T) {
	t.Parallel()
	for _, point := range []string{"taken", "refused"} {
		v, w, rng := newVM(t), newVault(t), rand.New(rand.NewPCG(13, 1))
		v.write(rng, 10)
		c := v.capturer()
		var once sync.Once
		res, err := c.Capture(t.Context(), "guest", w.plan(v.scratch(), 0), capture.Hooks{},
			func(ctx context.Context, r capture.Read) error {
				once.Do(func() { v.cmd.Process.Signal(syscall.SIGKILL) })
				if point == "refused" {
					return errors.New("no room")
				}
				return w.take(ctx, r)
			})
		if point == "taken" {
			if err != nil {
				t.Fatalf("all had been read when QEMU died: %v", err)
			}
			if err := res.DropNew(t.Context()); err != nil {
				t.Errorf("abort with no QEMU: %v", err)
			}
		} else if err == nil || strings.Contains(err.Error(), "clean up") {
			t.Errorf("refused by the sink: %v", err)
		}
		v.requireNoState()
	}
}

// A full read that comes to nothing leaves the record of changes to the next capture.
func TestFullReadGivenUp(t *testing.T) {
	t.Parallel()
	v, w, rng := newVM(t), newVault(t), rand.New(rand.NewPCG(14, 1))
	cycle(t, v, w, v.capturer(), rng, 0)
	plan := w.plan(v.scratch(), 0)
	for i := range plan.Disks {
		plan.Disks[i].LastBitmap = ""
	}
	full := errors.New("the vault is full")
	_, err := v.capturer().Capture(t.Context(), "guest", plan, capture.Hooks{},
		func(context.Context, capture.Read) error { return full })
	if !errors.Is(err, full) {
		t.Fatalf("the sink's error: %v", err)
	}
	v.requireClean(w.keep()...)
	for _, d := range cycle(t, v, w, v.capturer(), rng, 0).Disks {
		if !d.Tracked {
			t.Errorf("disk %s is not tracked: %s", d.Name, d.Reason)
		}
	}
	v.requireClean(w.keep()...)
}

func TestDoubtfulRecords(t *testing.T) {
	t.Parallel()
	v, w, rng := newVM(t), newVault(t), rand.New(rand.NewPCG(9, 1))
	c := v.capturer()
	cycle(t, v, w, c, rng, 0)
	grown := int64(diskSize + 3<<20)
	v.execute("block_resize", args{"node-name": "a", "size": grown}, nil)
	v.model["vda"] = append(v.model["vda"], make([]byte, 3<<20)...)
	v.execute("block-dirty-bitmap-disable", args{"node": v.node("vdb"), "name": w.last["vdb"].LastBitmap}, nil)
	v.execute("block-dirty-bitmap-remove", args{"node": v.node("vdc"), "name": w.last["vdc"].LastBitmap}, nil)
	v.execute("block-dirty-bitmap-add",
		args{"node": v.node("vdc"), "name": w.last["vdc"].LastBitmap, "granularity": 512}, nil)
	v.write(rng, 30)
	res := cycle(t, v, w, c, rng, 0)
	for i, want := range []string{"resized", "stopped", "blocks of 512 bytes"} {
		if d := res.Disks[i]; d.Tracked || !strings.Contains(d.Reason, want) {
			t.Errorf("disk %s: tracked %t, %q; want %q", d.Name, d.Tracked, d.Reason, want)
		}
	}
	if res.Disks[0].Size != grown || res.Rung != point.Push {
		t.Errorf("result %+v", res)
	}
	plan := w.plan(v.scratch(), 0)
	plan.Disks = append(plan.Disks, capture.DiskPlan{Name: "vdx"})
	if _, err := c.Capture(t.Context(), "guest", plan, capture.Hooks{}, w.take); err == nil ||
		!strings.Contains(err.Error(), "vdx") {
		t.Errorf("a disk that is gone: %v", err)
	}
}

func (v *vm) node(disk string) string {
	list, err := v.host.Machines(context.Background())
	if err != nil {
		v.t.Fatal(err)
	}
	for _, d := range list[0].Disks {
		if d.Name == disk {
			return d.Node
		}
	}
	v.t.Fatalf("no disk %s in %+v", disk, list)
	return ""
}

// A process that was killed between making a scratch file and unlinking it leaves the file; the
// state file tells which.
func TestReconcileScratchAndBitmaps(t *testing.T) {
	t.Parallel()
	v, w, rng := newVM(t), newVault(t), rand.New(rand.NewPCG(10, 1))
	c := v.capturer()
	cycle(t, v, w, c, rng, 0)
	m, err := c.machine(t.Context(), "guest")
	if err != nil {
		t.Fatal(err)
	}
	state, err := lockState(c.opts.StateDir, m)
	if err != nil {
		t.Fatal(err)
	}
	plan := w.plan(v.scratch(), 0)
	if err := state.begin(plan); err != nil {
		t.Fatal(err)
	}
	epoch := capture.BitmapName(plan.Vault, plan.Epoch)
	for _, name := range []string{epoch, "hf-0badcafe-deadbeef", "hf-11111111-deadbeef", "users-own"} {
		v.execute("block-dirty-bitmap-add", args{"node": "a", "name": name}, nil)
	}
	file := filepath.Join(v.scratch(), scratchPrefix(plan)+"vda.qcow2")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := state.release(); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		vault string
		want  []string
	}{
		{"", []string{"removed bitmap " + epoch + " of node a", "removed scratch file " + file}},
		{vaultID, []string{"removed bitmap hf-0badcafe-deadbeef of node a"}},
		{vaultID, nil},
	} {
		done, err := c.Reconcile(t.Context(), "guest", tt.vault, w.keep())
		if err != nil || strings.Join(done, "\n") != strings.Join(tt.want, "\n") {
			t.Errorf("reconcile vault %q did %q, %v; want %q", tt.vault, done, err, tt.want)
		}
	}
	v.requireClean(append(w.keep(), "hf-11111111-deadbeef")...)
}

func BenchmarkIncrement(b *testing.B) {
	v, w, rng := newVM(b), newVault(b), rand.New(rand.NewPCG(11, 1))
	c := v.capturer()
	for b.Loop() {
		b.StopTimer()
		v.write(rng, 15)
		b.StartTimer()
		res, err := c.Capture(b.Context(), "guest", w.plan(v.scratch(), 0), capture.Hooks{}, w.take)
		if err != nil {
			b.Fatal(err)
		}
		w.commit(res)
	}
}

// A machine that runs is given descriptors and keeps none of them.
func TestRunningMachine(t *testing.T) {
	t.Parallel()
	v, w, rng := newVM(t), newVault(t), rand.New(rand.NewPCG(12, 1))
	v.write(rng, 50)
	v.execute("cont", nil, nil)
	for range 2 {
		res, err := v.capturer().Capture(t.Context(), "guest", w.plan(v.scratch(), 0), capture.Hooks{}, w.take)
		if err != nil {
			t.Fatal(err)
		}
		w.require(v.snapshot())
		w.commit(res)
		v.requireClean(w.keep()...)
		var sets []any
		if v.execute("query-fdsets", nil, &sets); len(sets) != 0 {
			t.Errorf("descriptor sets are left: %v", sets)
		}
	}
}
