package qemu

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/capture"
	"github.com/holdfast-vm/holdfast/internal/point"
)

// cycle takes one point of v into w and checks it against what the guest had at the instant; the
// guest writes on while the copy runs.
func cycle(t *testing.T, v *vm, w *vault, c *Capturer, rng *rand.Rand, limit int64) *capture.Result {
	t.Helper()
	var want map[string][]byte
	var steps []string
	hooks := capture.Hooks{
		Quiesce: func(context.Context) error { steps = append(steps, "quiesce"); return nil },
		Frozen: func(context.Context) error {
			steps = append(steps, "frozen")
			want = v.snapshot()
			v.writeDuring(rng, 12, 0)
			return nil
		},
		Thaw: func(context.Context) error { steps = append(steps, "thaw"); v.writeDuring(rng, 12, 1); return nil },
	}
	res, err := c.Capture(t.Context(), "guest", w.plan(v.scratch(), limit), hooks, w.take)
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(steps, " "); got != "quiesce frozen thaw" {
		t.Fatalf("hooks ran as %q", got)
	}
	v.settle()
	w.require(want)
	w.commit(res)
	v.requireClean(w.keep()...)
	return res
}

func TestFullAndIncrements(t *testing.T) {
	t.Parallel()
	v, w, rng := newVM(t), newVault(t), rand.New(rand.NewPCG(1, 1))
	c := v.capturer()
	v.write(rng, 60)
	res := cycle(t, v, w, c, rng, 0)
	for _, d := range res.Disks {
		if d.Tracked || d.Reason == "" || d.Bitmap == "" || d.Size != diskSize || d.Read == 0 || d.Read == diskSize {
			t.Errorf("first point: %+v", d)
		}
	}
	for range 6 {
		v.write(rng, 15)
		res := cycle(t, v, w, c, rng, 0)
		if res.Rung != point.Push || res.Reason != "" {
			t.Errorf("rung %s, %s", res.Rung, res.Reason)
		}
		for _, d := range res.Disks {
			if !d.Tracked || d.Reason != "" || d.Read > diskSize/2 {
				t.Errorf("increment: %+v", d)
			}
		}
	}
}

// A point that was not committed does not count: the next one is counted from the one before.
func TestAbortedPointLosesNothing(t *testing.T) {
	t.Parallel()
	v, w, rng := newVM(t), newVault(t), rand.New(rand.NewPCG(2, 1))
	c := v.capturer()
	cycle(t, v, w, c, rng, 0)
	v.write(rng, 20)
	before := w.disks
	w.disks = map[string][]byte{}
	res, err := c.Capture(t.Context(), "guest", w.plan(v.scratch(), 0), capture.Hooks{}, w.take)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Capture(t.Context(), "guest", w.plan(v.scratch(), 0), capture.Hooks{}, w.take); !errors.Is(err,
		capture.ErrBusy) {
		t.Errorf("second capture at the same time: %v", err)
	}
	if _, err := c.Reconcile(t.Context(), "guest", vaultID, nil); !errors.Is(err, capture.ErrBusy) {
		t.Errorf("reconcile while a capture runs: %v", err)
	}
	if err := res.DropNew(t.Context()); err != nil {
		t.Fatal(err)
	}
	v.requireClean(w.keep()...)
	w.disks = before
	v.write(rng, 20)
	if res := cycle(t, v, w, c, rng, 0); !res.Disks[0].Tracked {
		t.Errorf("after an aborted point: %+v", res.Disks[0])
	}
}

// Any disk goes through little scratch, and what the guest writes while slices are copied is in the
// point.
func TestSlices(t *testing.T) {
	t.Parallel()
	v, w, rng := newVM(t), newVault(t), rand.New(rand.NewPCG(3, 1))
	c := v.capturer()
	v.write(rng, 300)
	take := func(ctx context.Context, r capture.Read) error {
		v.write(rng, 3)
		return w.take(ctx, r)
	}
	for i, limit := range []int64{4 << 20, 3 << 20, 3 << 20} {
		v.write(rng, 40*i)
		var want map[string][]byte
		hooks := capture.Hooks{Frozen: func(context.Context) error { want = v.snapshot(); return nil }}
		res, err := c.Capture(t.Context(), "guest", w.plan(v.scratch(), limit), hooks, take)
		if err != nil {
			t.Fatal(err)
		}
		w.require(want)
		if res.Rung != point.SlicedPush || res.Reason == "" {
			t.Errorf("rung %s, %q", res.Rung, res.Reason)
		}
		w.commit(res)
		v.requireClean(w.keep()...)
	}
	cycle(t, v, w, c, rng, 0)
}

func TestTooLittleScratch(t *testing.T) {
	t.Parallel()
	v, w, rng := newVM(t), newVault(t), rand.New(rand.NewPCG(4, 1))
	v.write(rng, 100)
	_, err := v.capturer().Capture(t.Context(), "guest", w.plan(v.scratch(), 512<<10), capture.Hooks{}, w.take)
	var need *capture.NeedScratch
	if !errors.As(err, &need) || need.Have != 512<<10 || need.Need <= need.Have {
		t.Errorf("capture returned %v", err)
	}
	v.requireClean()
}

// Whatever the quiesce, the sink or the machine's files do, an error leaves nothing and the guest
// is thawed.
func TestFailuresOfTheCaller(t *testing.T) {
	t.Parallel()
	v, w, rng := newVM(t), newVault(t), rand.New(rand.NewPCG(5, 1))
	c := v.capturer()
	cycle(t, v, w, c, rng, 0)
	boom := errors.New("boom")
	fail := func(context.Context) error { return boom }
	for _, tt := range []struct {
		name  string
		hooks capture.Hooks
		sink  capture.Sink
		thaws int
	}{
		{"quiesce", capture.Hooks{Quiesce: fail}, w.take, 0},
		{"frozen", capture.Hooks{Frozen: fail}, w.take, 1},
		{"sink", capture.Hooks{}, func(context.Context, capture.Read) error { return boom }, 1},
	} {
		v.write(rng, 10)
		thaws := 0
		tt.hooks.Thaw = func(context.Context) error { thaws++; return nil }
		_, err := c.Capture(t.Context(), "guest", w.plan(v.scratch(), 0), tt.hooks, tt.sink)
		if !errors.Is(err, boom) || thaws != tt.thaws {
			t.Errorf("%s fails: %v, thawed %d times", tt.name, err, thaws)
		}
		v.requireClean(w.keep()...)
	}
	ctx, cancel := context.WithCancel(t.Context())
	hooks := capture.Hooks{Frozen: func(context.Context) error { cancel(); return nil }}
	if _, err := c.Capture(ctx, "guest", w.plan(v.scratch(), 0), hooks, w.take); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled capture: %v", err)
	}
	v.requireClean(w.keep()...)
	cycle(t, v, w, c, rng, 0)
}

// Of a disk that is encrypted where it lies, scratch holds nothing plain: neither a full nor an
// increment, nor what is copied in slices.
func TestScratchOfEncryptedDisk(t *testing.T) {
	t.Parallel()
	v, w, rng := newVMWith(t, "geheim"), newVault(t), rand.New(rand.NewPCG(8, 1))
	c := v.capturer()
	looked := 0
	for _, limit := range []int64{0, 0, 8 << 20} {
		v.write(rng, 60)
		v.guest("vda", "write -q -P 238 64k 64k")
		copy(v.model["vda"][64<<10:128<<10], bytes.Repeat([]byte{238}, 64<<10))
		want := v.snapshot()
		plan := w.plan(v.scratch(), limit)
		if limit > 0 { // read all, in slices
			for i := range plan.Disks {
				plan.Disks[i].LastBitmap = ""
			}
		}
		res, err := c.Capture(t.Context(), "guest", plan, capture.Hooks{},
			func(ctx context.Context, r capture.Read) error {
				if r.Disk == "vda" {
					looked += requireSealed(t, v.scratch(), bytes.Repeat([]byte{238}, 4096))
				}
				return w.take(ctx, r)
			})
		if err != nil {
			t.Fatal(err)
		}
		w.require(want)
		w.commit(res)
		v.requireClean(w.keep()...)
	}
	if looked < 3 {
		t.Errorf("%d scratch images were looked at", looked)
	}
}

// requireSealed looks for plain bytes in the open files of this process below dir, and returns how
// many are encrypted images.
func requireSealed(t *testing.T, dir string, plain []byte) (sealed int) {
	t.Helper()
	fds, err := filepath.Glob("/proc/self/fd/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		if target, err := os.Readlink(fd); err != nil || !strings.HasPrefix(target, dir) ||
			!strings.Contains(target, "vda") {
			continue
		}
		content, err := os.ReadFile(fd)
		if err != nil {
			continue // closed meanwhile
		}
		if bytes.Contains(content, plain) {
			t.Errorf("%s shows what the disk holds", fd)
		}
		if bytes.Contains(content, []byte("LUKS\xba\xbe")) {
			sealed++
		}
	}
	return sealed
}
