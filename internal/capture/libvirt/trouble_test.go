package libvirt_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-vm/holdfast/internal/capture"
	capturer "github.com/holdfast-vm/holdfast/internal/capture/libvirt"
	"github.com/holdfast-vm/holdfast/internal/hypervisor"
	"github.com/holdfast-vm/holdfast/internal/hypervisor/libvirt"
	"github.com/holdfast-vm/holdfast/internal/hypervisor/libvirt/rpc"
)

// victim is what a process is told that captures and is killed.
type victim struct {
	URI, State, At string
	Plan           capture.Plan
	Watch          []string
}

const victimEnv = "HOLDFAST_TEST_VICTIM"

// TestMain plays the victim if it is told so.
func TestMain(m *testing.M) {
	if text := os.Getenv(victimEnv); text != "" {
		die(text)
	}
	os.Exit(m.Run())
}

func die(text string) {
	var v victim
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		panic(err)
	}
	h, err := libvirt.New(v.URI)
	if err != nil {
		panic(err)
	}
	at := func(stage string) {
		if v.At == stage {
			syscall.Kill(os.Getpid(), syscall.SIGKILL)
		}
	}
	ctx := context.Background()
	r, err := capturer.New(h, capturer.Options{StateDir: v.State, Watch: v.Watch}).Capture(ctx, "one", v.Plan,
		capture.Hooks{
			Quiesce: func(context.Context) error { at("quiesce"); return nil },
			Frozen:  func(context.Context) error { at("frozen"); return nil },
			Thaw:    func(context.Context) error { at("thaw"); return nil },
		}, func(context.Context, capture.Read) error { at("sink"); return nil })
	if err != nil {
		panic(err)
	}
	at("uncommitted")
	if err := r.DropOlder(ctx); err != nil {
		panic(err)
	}
	at("committed")
	panic("still alive")
}

// killedAt runs a capture in another process that is killed at a stage. It returns the epoch's
// bitmap.
func (l *lab) killedAt(stage string) string {
	l.Helper()
	p := l.plan()
	l.killed(p, stage)
	return capture.BitmapName(vault, p.Epoch)
}

func (l *lab) killed(p capture.Plan, stage string) { l.killedWith(p, stage) }

// killedWith is killed with another watch.
func (l *lab) killedWith(p capture.Plan, stage string, watch ...string) {
	l.Helper()
	text, err := json.Marshal(map[string]any{"URI": l.daemon.URI, "State": l.state, "At": stage, "Plan": map[string]any{
		"Machine": p.Machine, "Vault": p.Vault, "Epoch": p.Epoch, "Disks": p.Disks, "Granule": p.Granule,
		"Scratch":   p.Scratch,
		"AllowPull": p.AllowPull}, "Watch": watch})
	l.ok(err)
	exe, err := os.Executable()
	l.ok(err)
	cmd := exec.CommandContext(l.ctx, exe)
	cmd.Env = append(os.Environ(), victimEnv+"="+string(text))
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		l.Fatalf("victim at %s: %v\n%s", stage, err, out)
	}
}

// Wherever a capture is killed, Reconcile leaves nothing of it, and the next capture loses no
// change.
func testKilledCapture(l *lab) {
	l.commit(l.capture(l.plan(), capture.Hooks{}))
	first := l.current()
	for i, stage := range []string{"quiesce", "frozen", "thaw", "sink", "uncommitted"} {
		l.write("vda", i<<20, 4096, byte(i+1))
		l.killedAt(stage)
		known := ""
		if stage == "uncommitted" {
			known = vault // whether it was committed only the vault knows
		}
		done, err := l.capturer.Reconcile(l.ctx, "one", known, []string{first})
		if err != nil || len(done) == 0 {
			l.Errorf("reconcile after %s: %v, %v", stage, done, err)
		}
		l.clean(first)
	}
	r := l.capture(l.plan(), capture.Hooks{})
	l.tracked(r, "vda", "vdb")
	l.same(l.model)
	l.commit(r)
}

// A capture cleans up after one that was killed, without being asked; and a point that was
// committed keeps its bitmap.
func testCaptureAfterKill(l *lab) {
	l.commit(l.capture(l.plan(), capture.Hooks{}))
	l.write("vdb", 0, 4096, 1)
	l.killedAt("frozen")
	r := l.capture(l.plan(), capture.Hooks{})
	l.tracked(r, "vda", "vdb")
	l.same(l.model)
	l.commit(r)
	l.clean(r.Disks[0].Bitmap)

	bitmap := l.killedAt("uncommitted") // the vault may have committed the point nevertheless
	if _, err := l.capturer.Reconcile(l.ctx, "one", vault, []string{bitmap}); err != nil {
		l.Error(err)
	}
	l.clean(bitmap)
	if _, err := l.capturer.Reconcile(l.ctx, "one", vault, nil); err != nil {
		l.Error(err)
	}
	l.clean()
}

// A second capture of a machine is refused while the first is not finished.
func testCapturesExclude(l *lab) {
	r := l.capture(l.plan(), capture.Hooks{})
	if _, err := l.capturer.Capture(l.ctx, "one", l.plan(), capture.Hooks{}, l.sink); !errors.Is(err, capture.ErrBusy) {
		l.Errorf("second capture: %v", err)
	}
	if _, err := l.capturer.Reconcile(l.ctx, "one", vault, nil); err != nil {
		l.Error(err)
	}
	l.commit(r)
	l.clean(r.Disks[0].Bitmap)
}

// Machines that are off or missing, disks that are missing and scratch that is too small each have
// their error, and nothing is changed.
func testRefusals(l *lab) {
	l.commit(l.capture(l.plan(), capture.Hooks{}))
	keep := l.current()
	try := func(machine string, change func(*capture.Plan)) error {
		p := l.plan()
		change(&p)
		_, err := l.capturer.Capture(l.ctx, machine, p, capture.Hooks{}, l.sink)
		l.clean(keep)
		return err
	}
	if err := try("none", func(*capture.Plan) {}); !errors.Is(err, hypervisor.ErrNoMachine) {
		l.Errorf("missing machine: %v", err)
	}
	if err := try("one", func(p *capture.Plan) {
		p.Disks[0].Name = "vdx"
	}); err == nil || !strings.Contains(err.Error(), "vdx") {
		l.Errorf("missing disk: %v", err)
	}
	var need *capture.NeedScratch
	if err := try("one", func(p *capture.Plan) {
		p.Scratch.Limit = 1 << 20
	}); !errors.As(err, &need) || need.Have != 1<<20 || need.Need <= need.Have {
		l.Errorf("small scratch: %v", err)
	}
	target := filepath.Join(l.daemon.Dir, "copy")
	xml := "<disk type='file'><source file='" + target + "'/><driver type='raw'/></disk>"
	l.ok(l.client.BlockCopy(l.ctx, l.dom, "vdb", xml, 1, rpc.BlockCopyTransientJob))
	if err := try("one", func(*capture.Plan) {}); !errors.Is(err, capture.ErrCopied) ||
		!strings.Contains(err.Error(), "vdb") {
		l.Errorf("disk that is being copied: %v", err)
	}
	l.ok(l.client.BlockJobAbort(l.ctx, l.dom, "vdb", 0))
	l.ok(os.Remove(target))
	l.stop()
	if _, err := l.capturer.Capture(l.ctx, "one", l.plan(), capture.Hooks{}, l.sink); !errors.Is(err, capture.ErrOff) {
		l.Errorf("machine that is off: %v", err)
	}
}

// Every doubt of a record of changes ends in a whole read with the reason told, and a correct
// replica.
func testDoubtReadsAll(l *lab) {
	for _, tt := range []struct {
		name, reason string
		harm         func(l *lab)
	}{
		{"resized", "resized", func(l *lab) {
			l.hmp("block_resize libvirt-3-format 8M") // which node is vda's is libvirt's affair
			p := l.last["vda"]
			p.Size -= 512
			l.last["vda"] = p
			q := l.last["vdb"]
			q.Size -= 512
			l.last["vdb"] = q
		}},
		{"checkpoint lost", capture.WholeLost, func(l *lab) {
			l.ok(l.client.CheckpointDelete(l.ctx, l.dom, l.last["vda"].Bitmap, rpc.CheckpointMetadataOnly))
		}},
		{"bitmap removed", "bitmap", func(l *lab) {
			for _, node := range l.bitmapNodes(l.last["vda"].Bitmap) {
				l.qmp("block-dirty-bitmap-remove", map[string]string{"node": node, "name": l.last["vda"].Bitmap})
			}
		}},
		{"QEMU killed", "bitmap", func(l *lab) {
			l.stop() // saves the bitmap
			l.start()
			l.ok(syscall.Kill(l.daemon.QEMU("one"), syscall.SIGKILL))
			l.await(func() bool {
				st, err := l.client.DomainState(l.ctx, l.dom)
				return err == nil && st.State == rpc.StateOff
			})
			l.start() // finds it inconsistent
		}},
	} {
		l.Run(tt.name, func(t *testing.T) {
			l := l.with(t)
			l.write("vda", 1<<20, 4096, 9)
			l.commit(l.capture(l.plan(), capture.Hooks{}))
			l.write("vda", 2<<20, 4096, 10)
			l.hmp(`qemu-io -d /machine/peripheral/virtio-disk0/virtio-backend "flush"`)
			tt.harm(l)
			for name := range l.replica {
				l.replica[name] = bytes.Repeat([]byte{0xee}, diskSize) // a whole read must cover it all
			}
			r := l.capture(l.plan(), capture.Hooks{})
			l.tracked(r)
			for _, d := range r.Disks[:2] {
				if !strings.Contains(d.Reason, tt.reason) {
					l.Errorf("%s: reason %q", d.Name, d.Reason)
				}
			}
			l.same(l.model)
			l.commit(r)
			l.clean(r.Disks[0].Bitmap)
			if left := l.bitmapNodes("hf-"); len(left) != 2 {
				l.Errorf("our bitmaps are on nodes %v", left)
			}
			l.write("vdb", 3<<20, 4096, 11)
			r = l.capture(l.plan(), capture.Hooks{})
			l.tracked(r, "vda", "vdb")
			l.same(l.model)
			l.commit(r)
		})
	}
}

// A machine that is stopped and started in the orderly way keeps its record.
func testRestartKeepsTracking(l *lab) {
	l.commit(l.capture(l.plan(), capture.Hooks{}))
	l.write("vda", 0, 4096, 1)
	l.stop()
	l.start()
	l.write("vdb", 0, 4096, 2)
	r := l.capture(l.plan(), capture.Hooks{})
	l.tracked(r, "vda", "vdb")
	l.same(l.model)
	l.commit(r)
}

// A QEMU that dies in mid-capture ends the capture with an error; afterwards all is as if it had
// not been.
func testQEMUDies(l *lab) {
	l.write("vdb", 0, 1<<20, 7)
	pid := l.daemon.QEMU("one")
	_, err := l.capturer.Capture(l.ctx, "one", l.plan(), capture.Hooks{Quiesce: func(context.Context) error {
		return syscall.Kill(pid, syscall.SIGKILL)
	}}, l.sink)
	if err == nil {
		l.Error("the capture of a dead machine succeeded")
	}
	l.clean()
	l.start()
	r := l.capture(l.plan(), capture.Hooks{})
	l.commit(r)
	if r.Disks[1].Size != diskSize {
		l.Errorf("size %d", r.Disks[1].Size)
	}
}

// A libvirtd that is killed in mid-capture ends the capture with an error and nothing is left;
// restarted between two captures it is not noticed, and neither is it before the commit.
func testLibvirtdRestarts(l *lab) {
	l.commit(l.capture(l.plan(), capture.Hooks{}))
	first := l.current()
	l.write("vda", 0, 4096, 50)
	restart := func() {
		l.daemon.Restart()
		l.client = l.daemon.Client()
	}
	_, err := l.capturer.Capture(l.ctx, "one", l.plan(), capture.Hooks{Frozen: func(context.Context) error {
		restart()
		return nil
	}}, l.sink)
	if !errors.Is(err, rpc.ErrClosed) {
		l.Errorf("libvirtd was killed: %v", err)
	}
	l.clean(first)
	r := l.capture(l.plan(), capture.Hooks{})
	l.tracked(r, "vda", "vdb")
	l.same(l.model)
	restart()
	l.commit(r)
	l.clean(l.current())
}

// A context that ends takes the job with it.
func testCancelledCapture(l *lab) {
	ctx, cancel := context.WithCancel(l.ctx)
	_, err := l.capturer.Capture(ctx, "one", l.plan(), capture.Hooks{Frozen: func(context.Context) error {
		cancel()
		return nil
	}}, l.sink)
	if !errors.Is(err, context.Canceled) {
		l.Errorf("cancelled: %v", err)
	}
	l.clean()
}

// Scratch images of larger and smaller granules than QEMU's own bitmaps hold whole granules.
func testGranules(l *lab) {
	for _, g := range []int64{16 << 10, 1 << 20} {
		for range 2 {
			l.write("vda", 3<<20+5000, 100, byte(g>>14))
			p := l.plan()
			p.Granule = g
			l.commit(l.capture(p, capture.Hooks{}))
			l.same(l.model)
			if a := l.reads["vda"].Data; !slices.Equal(a, a.Align(g, diskSize)) {
				l.Errorf("granule %d: data %v", g, a)
			}
		}
	}
}

// A scratch image that QEMU has open and a killed libvirtd has not noted is closed when the killed
// capture is cleaned up.
func testForgottenScratch(l *lab) {
	l.commit(l.capture(l.plan(), capture.Hooks{}))
	first := l.current()
	l.killedAt("frozen")
	files, err := filepath.Glob(filepath.Join(l.scratch, "*-vda.qcow2"))
	l.ok(err)
	if len(files) != 1 {
		l.Fatalf("scratch images %v", files)
	}
	l.qmp("blockdev-add", map[string]any{"driver": "qcow2", "node-name": "forgotten", "read-only": true,
		"file": map[string]any{"driver": "file", "node-name": "forgotten-file", "filename": files[0],
			"locking": "off"}})
	done, err := l.capturer.Reconcile(l.ctx, "one", "", nil)
	if err != nil || !slices.Contains(done, "closed scratch images that libvirt had forgotten") {
		l.Errorf("reconcile: %q, %v", done, err)
	}
	if nodes := l.qmp("query-named-block-nodes", map[string]bool{"flat": true}); bytes.Contains(nodes,
		[]byte("forgotten")) {
		l.Error("QEMU has the scratch image open still")
	}
	l.clean(first)
}

// Bitmaps that a killed libvirtd has made for a job and forgotten cost no tracked change.
func testForgottenBitmap(l *lab) {
	l.commit(l.capture(l.plan(), capture.Hooks{}))
	l.write("vda", 4<<20, 4096, 51)
	nodes := l.bitmapNodes(l.current())
	if len(nodes) != 2 {
		l.Fatalf("nodes with a bitmap: %q", nodes)
	}
	for _, node := range nodes {
		for _, disk := range []string{"vda", "vdb"} { // which of the two it is of is libvirt's business
			l.qmp("block-dirty-bitmap-add", map[string]any{"node": node, "name": "backup-" + disk})
		}
	}
	r := l.capture(l.plan(), capture.Hooks{})
	l.tracked(r, "vda", "vdb")
	l.same(l.model)
	l.commit(r)
	l.clean(l.current())
}

// Disks left out of the plan stay out.
func testLeftOut(l *lab) {
	p := l.plan()
	p.Disks = p.Disks[1:2]
	r := l.capture(p, capture.Hooks{})
	if len(r.Disks) != 1 || r.Disks[0].Name != "vdb" {
		l.Errorf("captured %+v", r.Disks)
	}
	if left := l.bitmapNodes("hf-"); len(left) != 1 {
		l.Errorf("bitmaps on %v", left)
	}
	l.ok(r.DropNew(l.ctx))
	l.clean()
}

func (l *lab) qmp(command string, args any) []byte {
	l.Helper()
	text, err := json.Marshal(map[string]any{"execute": command, "arguments": args})
	l.ok(err)
	reply, err := l.client.MonitorCommand(l.ctx, l.dom, string(text), false)
	l.ok(err)
	return []byte(reply)
}

// bitmapNodes returns the nodes that have a bitmap whose name begins so.
func (l *lab) bitmapNodes(prefix string) (out []string) {
	l.Helper()
	var reply struct {
		Return []struct {
			Node    string `json:"node-name"`
			Bitmaps []struct {
				Name string `json:"name"`
			} `json:"dirty-bitmaps"`
		} `json:"return"`
	}
	l.ok(json.Unmarshal(l.qmp("query-named-block-nodes", map[string]bool{"flat": true}), &reply))
	for _, n := range reply.Return {
		for _, b := range n.Bitmaps {
			if strings.HasPrefix(b.Name, prefix) {
				out = append(out, n.Node)
			}
		}
	}
	return out
}

// await polls until done, or fails the test at its deadline.
func (l *lab) await(done func() bool) {
	l.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !done() {
		select {
		case <-l.ctx.Done():
			l.Fatal("it did not come about")
		case <-tick.C:
		}
	}
}
