package libvirt_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-vm/holdfast/internal/capture"
	capturer "github.com/holdfast-vm/holdfast/internal/capture/libvirt"
	"github.com/holdfast-vm/holdfast/internal/extent"
	"github.com/holdfast-vm/holdfast/internal/hypervisor/libvirt"
	"github.com/holdfast-vm/holdfast/internal/hypervisor/libvirt/rpc"
	"github.com/holdfast-vm/holdfast/internal/luks"
	"github.com/holdfast-vm/holdfast/internal/qcow2"
	"github.com/holdfast-vm/holdfast/test/vm/libvirtd"
)

const (
	vault    = "0a1b2c3d"
	diskSize = 8 << 20
	granule  = 64 << 10
)

// disks of the machine: a qcow2 image on an iothread, an encrypted qcow2 image, a raw image.
var disks = []string{"vda", "vdb", "vdc"}

// lab is a machine without a guest, what its disks hold, and what was captured of them.
type lab struct {
	*testing.T
	daemon   *libvirtd.Daemon
	client   *rpc.Client
	host     *libvirt.Host
	capturer *capturer.Capturer
	ctx      context.Context
	dom      rpc.Domain
	state    string
	scratch  string

	model map[string][]byte // what the disks hold

	mu      sync.Mutex // guards what follows
	replica map[string][]byte
	reads   map[string]capture.Read // of the last capture

	epoch int64
	last  map[string]capture.DiskResult
}

// testTime is what one test may take on a machine that is busy with others.
const testTime = 5 * time.Minute

func newLab(t *testing.T) *lab {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), testTime)
	t.Cleanup(cancel)
	d := libvirtd.New(t)
	h, err := libvirt.New(d.URI)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	l := &lab{T: t, daemon: d, client: d.Client(), host: h, ctx: ctx, state: t.TempDir(),
		scratch: filepath.Join(d.Dir, "s"),
		model:   map[string][]byte{}, replica: map[string][]byte{}, last: map[string]capture.DiskResult{}}
	l.capturer = capturer.New(h, capturer.Options{StateDir: l.state})
	l.ok(os.Mkdir(l.scratch, 0o755))
	var xml strings.Builder
	for i, name := range disks {
		format, extra, encryption := "qcow2", "", ""
		path := filepath.Join(d.Dir, name)
		switch i {
		case 0:
			extra = " iothread='1'"
		case 1:
			encryption = "<encryption format='luks'><secret type='passphrase' uuid='" + diskKey + "'/></encryption>"
		case 2:
			format = "raw"
		}
		if encryption != "" {
			l.encrypted(path)
		} else if format == "qcow2" {
			l.ok(qcow2.Create(path, diskSize, qcow2.CreateOptions{}))
		} else {
			l.ok(os.WriteFile(path, nil, 0o600))
			l.ok(os.Truncate(path, diskSize))
		}
		fmt.Fprintf(&xml, "<disk type='file' device='disk'><driver name='qemu' type='%s'%s/><source "+
			"file='%s'>%s</source><target dev='%s' bus='virtio'/></disk>\n",
			format, extra, path, encryption, name)
		l.model[name] = make([]byte, diskSize)
		l.replica[name] = make([]byte, diskSize)
	}
	l.dom, err = l.client.DomainDefine(ctx, `<domain type='qemu'><name>one</name><memory unit='MiB'>32</memory><vcpu>1</vcpu><iothreads>1</iothreads>
<os><type arch='x86_64' machine='q35'>hvm</type></os>
<devices><emulator>/usr/bin/qemu-system-x86_64</emulator>`+xml.String()+`
<disk type='file' device='cdrom'><target dev='sda' bus='sata'/><readonly/></disk></devices></domain>`, 0)
	l.ok(err)
	l.start()
	return l
}

// diskKey is libvirt's name of the secret of the encrypted disk.
const diskKey = "0a81f5b2-8403-7b23-c8d6-21ccc2f80d6f"

// encrypted makes an encrypted image and has libvirt know its secret.
func (l *lab) encrypted(path string) {
	l.Helper()
	volume, err := luks.New([]byte("geheim"), luks.Fewest)
	l.ok(err)
	l.ok(qcow2.Create(path, diskSize, qcow2.CreateOptions{Encryption: volume}))
	secret, err := l.client.SecretDefine(l.ctx, "<secret><uuid>"+diskKey+"</uuid></secret>")
	l.ok(err)
	l.ok(l.client.SecretSetValue(l.ctx, secret, []byte("geheim")))
}

// sealed fails if the scratch image of the encrypted disk shows what the disk holds, or libvirt
// does not know its key.
func (l *lab) sealed() error {
	paths, err := filepath.Glob(filepath.Join(l.scratch, "*-vdb.qcow2"))
	if err != nil || len(paths) != 1 {
		return fmt.Errorf("scratch images of vdb: %q, %v", paths, err)
	}
	content, err := os.ReadFile(paths[0])
	if err != nil || !bytes.Contains(content, []byte("LUKS\xba\xbe")) {
		return fmt.Errorf("%s is not encrypted: %v", paths[0], err)
	}
	for fill := 1; fill < 256; fill++ {
		if run := bytes.Repeat([]byte{byte(fill)}, 512); bytes.Contains(content, run) && bytes.Contains(l.model["vdb"],
			run) {
			return fmt.Errorf("%s shows a run of %#x", paths[0], fill)
		}
	}
	_, err = l.client.SecretByUsage(l.ctx, rpc.UsageVolume, paths[0])
	return err
}

// TestMachine runs all tests on one machine, each with a fresh replica and none of our checkpoints.
func TestMachine(t *testing.T) {
	l := newLab(t)
	for _, tt := range []struct {
		name string
		run  func(*lab)
	}{
		{"CaptureFollowsChanges", testCaptureFollowsChanges},
		{"FailedCaptureLosesNothing", testFailedCaptureLosesNothing},
		{"KilledCapture", testKilledCapture},
		{"CaptureAfterKill", testCaptureAfterKill},
		{"RecordOfAnotherVault", testRecordOfAnotherVault},
		{"WhosePause", testWhosePause},
		{"KilledWhileSuspended", testKilledWhileSuspended},
		{"Watch", testWatch},
		{"WatchOfPaused", testWatchOfPaused},
		{"PausedMeanwhile", testPausedMeanwhile},
		{"InstantAgain", testInstantAgain},
		{"CapturesExclude", testCapturesExclude},
		{"CancelledCapture", testCancelledCapture},
		{"Granules", testGranules},
		{"LeftOut", testLeftOut},
		{"DoubtReadsAll", testDoubtReadsAll},
		{"RestartKeepsTracking", testRestartKeepsTracking},
		{"Pull", testPull},
		{"PullFromIOThread", testPullFromIOThread},
		{"LibvirtdRestarts", testLibvirtdRestarts},
		{"ForgottenScratch", testForgottenScratch},
		{"ForgottenBitmap", testForgottenBitmap},
		{"QEMUDies", testQEMUDies},
		{"Refusals", testRefusals},
	} {
		t.Run(tt.name, func(t *testing.T) { tt.run(l.with(t)) })
	}
}

// with returns a lab on the same machine for another test.
func (l *lab) with(t *testing.T) *lab {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), testTime)
	t.Cleanup(cancel)
	n := &lab{T: t, daemon: l.daemon, client: l.daemon.Client(), host: l.host, capturer: l.capturer, ctx: ctx,
		dom: l.dom, state: l.state, scratch: l.scratch,
		model: l.model, replica: map[string][]byte{}, epoch: epochs.Add(100), last: map[string]capture.DiskResult{}}
	var err error
	n.dom, err = n.client.DomainByName(n.ctx, "one")
	n.ok(err)
	if n.dom.ID < 0 {
		n.start()
	}
	for _, name := range disks {
		n.replica[name] = make([]byte, diskSize)
	}
	_, err = n.capturer.Reconcile(n.ctx, "one", vault, nil)
	n.ok(err)
	return n
}

// epochs keeps the names of epochs apart.
var epochs atomic.Int64

// current returns the bitmap of the epoch that was planned last.
func (l *lab) current() string { return capture.BitmapName(vault, fmt.Sprintf("%08x", l.epoch)) }

func (l *lab) ok(err error) {
	l.Helper()
	if err != nil {
		l.Fatal(err)
	}
}

func (l *lab) start() {
	l.Helper()
	var err error
	l.dom, err = l.client.DomainCreate(l.ctx, l.dom, 0)
	l.ok(err)
}

func (l *lab) stop() {
	l.Helper()
	l.ok(l.client.DomainDestroy(l.ctx, l.dom))
	l.dom.ID = -1
}

func (l *lab) hmp(command string) string {
	l.Helper()
	text, err := l.client.MonitorCommand(l.ctx, l.dom, command, true)
	l.ok(err)
	return text
}

// write fills n bytes of a disk as a guest would.
func (l *lab) write(disk string, off, n int, fill byte) {
	l.Helper()
	l.hmp(fmt.Sprintf(`qemu-io -d /machine/peripheral/virtio-disk%d/virtio-backend "write -P %d %d %d"`, slices.Index(disks, disk), fill, off, n))
	copy(l.model[disk][off:], bytes.Repeat([]byte{fill}, n))
}

// plan counts from the last committed capture.
func (l *lab) plan() capture.Plan {
	l.epoch++
	p := capture.Plan{Machine: "one", Vault: vault, Epoch: fmt.Sprintf("%08x", l.epoch), Granule: granule,
		Scratch: capture.Scratch{Dir: l.scratch}, Log: l.Logf}
	for _, name := range disks {
		p.Disks = append(p.Disks, capture.DiskPlan{Name: name, LastBitmap: l.last[name].Bitmap,
			LastSize: l.last[name].Size})
	}
	return p
}

// sink keeps a replica of each disk.
func (l *lab) sink(ctx context.Context, r capture.Read) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.reads == nil {
		l.reads = map[string]capture.Read{}
	}
	l.reads[r.Disk] = r
	if err := l.sealed(); r.Disk == "vdb" && err != nil {
		return err
	}
	if aligned := r.Data.Align(granule, r.Size); !slices.Equal(aligned, r.Data) {
		return fmt.Errorf("data of %s is not aligned: %v", r.Disk, r.Data)
	}
	if overlap := r.Data.Intersect(r.Zero); len(overlap) > 0 {
		return fmt.Errorf("%s: %v is data and zero", r.Disk, overlap)
	}
	if all := r.Data.Union(r.Zero); r.Whole && !slices.Equal(all, extent.Set{{Len: r.Size}}) {
		return fmt.Errorf("%s is whole but lacks bytes: %v", r.Disk, all)
	}
	for _, e := range r.Zero {
		clear(l.replica[r.Disk][e.Off:e.End()])
	}
	for _, e := range r.Data {
		if _, err := r.Source.ReadAt(l.replica[r.Disk][e.Off:e.End()], e.Off); err != nil && err != io.EOF {
			return err
		}
	}
	return nil
}

func (l *lab) capture(p capture.Plan, hooks capture.Hooks) *capture.Result {
	l.Helper()
	l.reads = nil
	r, err := l.capturer.Capture(l.ctx, "one", p, hooks, l.sink)
	l.ok(err)
	return r
}

func (l *lab) commit(r *capture.Result) {
	l.Helper()
	l.ok(r.DropOlder(l.ctx))
	for _, d := range r.Disks {
		l.last[d.Name] = d
	}
}

// same compares the replica with what the disks held at some time.
func (l *lab) same(want map[string][]byte) {
	l.Helper()
	for _, name := range disks {
		if !bytes.Equal(l.replica[name], want[name]) {
			at := 0
			for l.replica[name][at] == want[name][at] {
				at++
			}
			l.Errorf("replica of %s differs from the disk: byte %d is %d, want %d; last read %+v", name, at,
				l.replica[name][at], want[name][at], l.reads[name])
		}
	}
}

func (l *lab) snapshot() map[string][]byte {
	out := map[string][]byte{}
	for name, b := range l.model {
		out[name] = bytes.Clone(b)
	}
	return out
}

// tracked checks which disks were read by their changes.
func (l *lab) tracked(r *capture.Result, want ...string) {
	l.Helper()
	for _, d := range r.Disks {
		if d.Tracked != slices.Contains(want, d.Name) {
			l.Errorf("disk %s: tracked %v, reason %q", d.Name, d.Tracked, d.Reason)
		}
		if d.Tracked != (d.Reason == "") {
			l.Errorf("disk %s: tracked %v with reason %q", d.Name, d.Tracked, d.Reason)
		}
	}
}

// clean checks that nothing is left of captures but the checkpoints named.
func (l *lab) clean(checkpoints ...string) {
	l.Helper()
	names, err := l.client.Checkpoints(l.ctx, l.dom)
	l.ok(err)
	slices.Sort(names)
	if !slices.Equal(names, checkpoints) {
		l.Errorf("checkpoints %v, want %v", names, checkpoints)
	}
	for _, dir := range []string{l.scratch, l.state} {
		entries, err := os.ReadDir(dir)
		l.ok(err)
		entries = slices.DeleteFunc(entries, func(e os.DirEntry) bool { return strings.HasPrefix(e.Name(), "pull-") })
		if len(entries) > 0 {
			l.Errorf("left in %s: %v", dir, entries)
		}
	}
	out, err := exec.Command("virsh", "--quiet", "--connect", l.daemon.URI, "secret-list").CombinedOutput()
	if n := strings.Count(string(out), "\n"); err != nil || strings.Contains(string(out), l.scratch) {
		l.Errorf("%d secrets are left, %v:\n%s", n, err, out)
	}
	st, err := l.client.DomainState(l.ctx, l.dom)
	l.ok(err)
	if st.State == rpc.StatePaused {
		l.Errorf("the machine is left paused: %+v", st)
	}
	if _, err := l.client.BackupXML(l.ctx, l.dom); err == nil {
		l.Error("a backup job is left")
	}
}
