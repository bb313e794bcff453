package qemu

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"path/filepath"
	"sync"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/capture"
	"github.com/holdfast-vm/holdfast/internal/extent"
	"github.com/holdfast-vm/holdfast/internal/point"
)

// addDisk gives the machine a further disk, a qcow2 image that QEMU knows as node.
func (v *vm) addDisk(name, node string) {
	v.t.Helper()
	v.execute("blockdev-add", args{"driver": "qcow2", "node-name": node,
		"file": args{"driver": "file", "filename": filepath.Join(v.dir, name)}}, nil)
	v.execute("device_add", args{"driver": "virtio-blk-pci", "drive": node, "id": name}, nil)
}

// captured is what a capture handed over of one disk.
type captured struct {
	data extent.Set
	text map[int64]byte // the first byte of each range of data
}

// captureDisks captures disks that are named through at most limit bytes of scratch.
func (v *vm) captureDisks(limit int64, names ...string) (*capture.Result, map[string]captured) {
	v.t.Helper()
	p := capture.Plan{Machine: "guest", Vault: vaultID, Epoch: "0000000a", Granule: granule, Log: v.t.Logf,
		Scratch: capture.Scratch{Dir: v.scratch(), Limit: limit}}
	for _, name := range names {
		p.Disks = append(p.Disks, capture.DiskPlan{Name: name})
	}
	var mu sync.Mutex
	got := make(map[string]captured)
	sink := func(_ context.Context, r capture.Read) error {
		c := captured{data: r.Data, text: make(map[int64]byte)}
		for _, e := range r.Data {
			p := make([]byte, e.Len)
			if _, err := r.Source.ReadAt(p, e.Off); err != nil && err != io.EOF {
				return err
			}
			if !bytes.Equal(p, bytes.Repeat(p[:1], len(p))) {
				return fmt.Errorf("disk %s: %v has other bytes than the guest wrote", r.Disk, e)
			}
			c.text[e.Off] = p[0]
		}
		mu.Lock()
		defer mu.Unlock()
		got[r.Disk] = c
		return nil
	}
	res, err := v.capturer().Capture(v.t.Context(), "guest", p, capture.Hooks{}, sink)
	if err != nil {
		v.t.Fatal(err)
	}
	if err := res.DropNew(v.t.Context()); err != nil {
		v.t.Fatal(err)
	}
	return res, got
}

// What a disk never held costs nothing: neither scratch, nor time of QEMU. What it has from an
// image below it is captured all the same.
func TestCaptureOfMuchThatIsNotAllocated(t *testing.T) {
	t.Parallel()
	v := newVM(t)
	const huge = 8 << 40
	v.tool("qemu-img", "create", "-q", "-f", "qcow2", filepath.Join(v.dir, "vdx"), fmt.Sprint(int64(huge)))
	v.tool("qemu-img", "create", "-q", "-f", "qcow2", filepath.Join(v.dir, "below"), "4M")
	v.tool("qemu-io", "-f", "qcow2", "-c", "write -q -P 3 1M 64k", "-c", "write -q -P 4 2M 64k",
		filepath.Join(v.dir, "below"))
	v.tool("qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", filepath.Join(v.dir, "below"),
		filepath.Join(v.dir, "vdy"))
	for _, name := range []string{"vdx", "vdy"} {
		v.addDisk(name, "n"+name)
		devices := "/machine/peripheral/" + name + "/virtio-backend"
		v.execute("human-monitor-command", args{"command-line": fmt.Sprintf("qemu-io -d %s %q", devices,
			"write -q -P 7 2M 64k")}, nil)
	}
	v.execute("human-monitor-command", args{"command-line": fmt.Sprintf("qemu-io -d %s %q",
		"/machine/peripheral/vdx/virtio-backend", fmt.Sprintf("write -q -P 8 %d 64k", int64(huge-granule)))}, nil)

	res, got := v.captureDisks(64<<20, "vdx", "vdy")
	if res.Rung != point.Push {
		t.Errorf("with 64 MiB of scratch the rung was %s: %s", res.Rung, res.Reason)
	}
	for name, want := range map[string]map[int64]byte{
		"vdx": {2 << 20: 7, huge - granule: 8},
		"vdy": {1 << 20: 3, 2 << 20: 7},
	} {
		if fmt.Sprint(got[name].text) != fmt.Sprint(want) {
			t.Errorf("disk %s was captured as %v, it holds %v", name, got[name].text, want)
		}
	}
	v.requireClean()
}
