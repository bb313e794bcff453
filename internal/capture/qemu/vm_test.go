package qemu

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-vm/holdfast/internal/capture"
	"github.com/holdfast-vm/holdfast/internal/extent"
	hostqemu "github.com/holdfast-vm/holdfast/internal/hypervisor/qemu"
	"github.com/holdfast-vm/holdfast/internal/luks"
	"github.com/holdfast-vm/holdfast/internal/qcow2"
	"github.com/holdfast-vm/holdfast/internal/qmp"
)

const (
	diskSize = 4<<20 + 512
	granule  = 64 << 10
	vaultID  = "0badcafe"
)

// devices are the guest's view of the three disks: qcow2 on an iothread, qcow2 as a plain drive,
// raw.
var devices = map[string]string{"vda": "/machine/peripheral/vda/virtio-backend",
	"vdb": "/machine/peripheral/vdb/virtio-backend",
	"vdc": "/machine/peripheral/vdc/virtio-backend"}

var diskNames = []string{"vda", "vdb", "vdc"}

// vm is a real QEMU whose guest is played by qemu-io inside of it, and what its disks must hold.
type vm struct {
	t     testing.TB
	dir   string
	cmd   *exec.Cmd
	host  *hostqemu.Host
	mu    sync.Mutex
	model map[string][]byte

	key string // secret of the first disk's image, if it is encrypted
}

func newVM(t testing.TB) *vm { return newVMWith(t, "") }

// newVMWith makes a machine whose first disk is encrypted with the key, unless that is empty.
func newVMWith(t testing.TB, key string) *vm {
	dir, err := os.MkdirTemp("", "hf")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	v := &vm{t: t, dir: dir, model: make(map[string][]byte), key: key}
	for _, name := range diskNames {
		v.model[name] = make([]byte, diskSize)
		format := "qcow2"
		if name == "vdc" {
			format = "raw"
		}
		v.tool("qemu-img", "create", "-q", "-f", format, filepath.Join(dir, name), fmt.Sprint(diskSize))
	}
	if key != "" {
		v.encrypt(filepath.Join(dir, "vda"))
	}
	v.start()
	t.Cleanup(v.kill)
	return v
}

// encrypt makes an empty encrypted image in the place of that at path.
func (v *vm) encrypt(path string) {
	v.t.Helper()
	volume, err := luks.New([]byte(v.key), luks.Fewest)
	if err == nil {
		err = os.Remove(path)
	}
	if err == nil {
		err = qcow2.Create(path, diskSize, qcow2.CreateOptions{Encryption: volume})
	}
	if err != nil {
		v.t.Fatal(err)
	}
}

func (v *vm) tool(name string, args ...string) {
	v.t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		v.t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
}

func (v *vm) start() {
	v.t.Helper()
	sock := filepath.Join(v.dir, "guest.sock")
	os.Remove(sock)
	unlock, secret := "", v.key
	if v.key == "" {
		secret = "unused"
	} else {
		unlock = ",encrypt.format=luks,encrypt.key-secret=key"
	}
	v.cmd = exec.Command("qemu-system-x86_64", "-object", "secret,id=key,data="+secret, "-S", "-nodefaults", "-display",
		"none", "-accel", "tcg", "-m", "32",
		"-name", "guest",
		"-qmp", "unix:"+sock+",server=on,wait=off", "-object", "iothread,id=io0",
		"-blockdev", "driver=file,filename="+v.dir+"/vda,node-name=a-file", "-blockdev",
		"driver=qcow2,file=a-file,node-name=a"+unlock,
		"-device", "virtio-blk-pci,drive=a,id=vda,iothread=io0",
		"-drive", "file="+v.dir+"/vdb,if=none,id=b", "-device", "virtio-blk-pci,drive=b,id=vdb",
		"-drive", "file="+v.dir+"/vdc,if=none,id=c,format=raw", "-device", "virtio-blk-pci,drive=c,id=vdc")
	v.cmd.Stderr = os.Stderr
	v.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := v.cmd.Start(); err != nil {
		v.t.Fatal(err)
	}
	host, err := hostqemu.New("qmp:" + sock)
	if err != nil {
		v.t.Fatal(err)
	}
	v.host = host
	v.await("QEMU's monitor", func() bool { _, err := host.Client(context.Background()); return err == nil })
}

// await polls until a process of the outside world has got somewhere.
func (v *vm) await(what string, ok func() bool) {
	v.t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(2 * time.Minute); !ok(); <-tick.C {
		if time.Now().After(end) {
			v.t.Fatalf("waited in vain for %s", what)
		}
	}
}

func (v *vm) kill() {
	v.host.Close()
	v.cmd.Process.Kill()
	v.cmd.Wait()
}

func (v *vm) quit() {
	v.t.Helper()
	v.execute("quit", nil, nil)
	v.host.Close()
	v.cmd.Wait()
}

func (v *vm) execute(command string, a, result any) {
	v.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	c, err := v.host.Client(ctx)
	if err == nil {
		err = c.Execute(ctx, command, a, result)
	}
	if err != nil {
		v.t.Fatal(err)
	}
}

func (v *vm) guest(disk, command string) {
	v.t.Helper()
	var out string
	v.execute("human-monitor-command", args{"command-line": fmt.Sprintf("qemu-io -d %s %q", devices[disk], command)},
		&out)
	if out != "" {
		v.t.Fatalf("guest %s: %s: %s", disk, command, out)
	}
}

// write has the guest write n times at random places of all disks.
func (v *vm) write(rng *rand.Rand, n int) {
	v.t.Helper()
	v.mu.Lock()
	defer v.mu.Unlock()
	for range n {
		disk := diskNames[rng.IntN(len(diskNames))]
		image := v.model[disk]
		off := rng.Int64N(int64(len(image))/512) * 512
		length := min(512*(1+rng.Int64N(400)), int64(len(image))-off)
		fill := byte(1 + rng.IntN(255))
		command := fmt.Sprintf("write -q -P %d %d %d", fill, off, length)
		if rng.IntN(5) == 0 {
			fill, command = 0, fmt.Sprintf("write -q -z -u %d %d", off, length)
		}
		v.guest(disk, command)
		copy(image[off:off+length], bytes.Repeat([]byte{fill}, int(length)))
	}
}

const slot = 64 << 10

// writeDuring has the guest begin n writes while backup jobs run, in slots of the disks that are
// even or odd. None overlaps another in flight: qemu-io cannot wait for one without holding up the
// jobs, so that settle waits for them when the jobs have ended.
func (v *vm) writeDuring(rng *rand.Rand, n int, odd int) {
	v.t.Helper()
	v.mu.Lock()
	defer v.mu.Unlock()
	slots := rng.Perm(diskSize / slot / 2)
	for i := range n {
		disk := diskNames[i%len(diskNames)]
		off := int64(2*slots[i]+odd)*slot + rng.Int64N(slot/1024)*512
		length := 512 * (1 + rng.Int64N(slot/1024))
		fill := byte(1 + rng.IntN(255))
		v.guest(disk, fmt.Sprintf("aio_write -q -P %d %d %d", fill, off, length))
		copy(v.model[disk][off:off+length], bytes.Repeat([]byte{fill}, int(length)))
	}
}

// settle waits for the writes that writeDuring began.
func (v *vm) settle() {
	v.t.Helper()
	for _, disk := range diskNames {
		v.guest(disk, "aio_flush")
	}
}

func (v *vm) snapshot() map[string][]byte {
	v.mu.Lock()
	defer v.mu.Unlock()
	out := make(map[string][]byte)
	for name, image := range v.model {
		out[name] = slices.Clone(image)
	}
	return out
}

// vault plays the side that takes the points in: the last committed state of every disk.
type vault struct {
	t      testing.TB
	mu     sync.Mutex
	disks  map[string][]byte
	last   map[string]capture.DiskPlan
	epochs int
}

func newVault(t testing.TB) *vault {
	return &vault{t: t, disks: map[string][]byte{}, last: map[string]capture.DiskPlan{}}
}

// take applies a batch, and checks its form.
func (w *vault) take(_ context.Context, r capture.Read) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	all := r.Data.Union(r.Zero)
	if r.Whole && all.Bytes() != r.Size || len(r.Data.Intersect(r.Zero)) != 0 ||
		!slices.Equal(all, all.Align(granule, r.Size)) {
		return fmt.Errorf("disk %s: batch is malformed: data %v, zero %v", r.Disk, r.Data, r.Zero)
	}
	disk := w.disks[r.Disk]
	if int64(len(disk)) != r.Size {
		disk = append(disk, make([]byte, r.Size)...)[:r.Size]
	}
	for _, e := range r.Zero {
		clear(disk[e.Off:e.End()])
	}
	for _, e := range r.Data {
		if _, err := r.Source.ReadAt(disk[e.Off:e.End()], e.Off); err != nil && err != io.EOF {
			return err
		}
	}
	w.disks[r.Disk] = disk
	return nil
}

func (w *vault) plan(scratch string, limit int64) capture.Plan {
	w.epochs++
	p := capture.Plan{Machine: "guest", Vault: vaultID, Epoch: fmt.Sprintf("%08x", w.epochs), Granule: granule,
		Log:     w.t.Logf,
		Scratch: capture.Scratch{Dir: scratch, Limit: limit}}
	for _, name := range diskNames {
		d := w.last[name]
		d.Name = name
		p.Disks = append(p.Disks, d)
	}
	return p
}

func (w *vault) commit(res *capture.Result) {
	w.t.Helper()
	for _, d := range res.Disks {
		w.last[d.Name] = capture.DiskPlan{LastBitmap: d.Bitmap, LastSize: d.Size}
	}
	if err := res.DropOlder(context.Background()); err != nil {
		w.t.Fatal(err)
	}
}

func (w *vault) keep() []string {
	var names []string
	for _, d := range w.last {
		names = append(names, d.LastBitmap)
	}
	return names
}

func (w *vault) require(want map[string][]byte) {
	w.t.Helper()
	for name, image := range want {
		if bytes.Equal(w.disks[name], image) {
			continue
		}
		var wrong extent.Set
		for off := int64(0); off < int64(len(image)); off += 512 {
			if !bytes.Equal(w.disks[name][off:off+512], image[off:off+512]) {
				wrong = wrong.Append(extent.Extent{Off: off, Len: 512})
			}
		}
		w.t.Fatalf("disk %s differs from what the guest had at the instant in %v", name, wrong)
	}
}

// capturer is one whose state and scratch are the machine's own.
func (v *vm) capturer() *Capturer {
	return New(v.host, Options{StateDir: filepath.Join(v.dir, "state"), Floor: 1 << 20})
}

func (v *vm) scratch() string { return filepath.Join(v.dir, "scratch") }

// requireClean fails the test if anything that we made is left, except the named bitmaps.
func (v *vm) requireClean(bitmaps ...string) {
	v.t.Helper()
	for _, command := range []string{"query-jobs", "query-named-block-nodes", "query-block-exports"} {
		var list []json.RawMessage
		v.execute(command, nil, &list)
		for _, e := range list {
			s := string(e)
			for _, b := range bitmaps {
				s = strings.ReplaceAll(s, `"`+b+`"`, "")
			}
			if i := strings.Index(s, `"hf-`); i >= 0 {
				v.t.Fatalf("%s still shows %.60s", command, s[i:])
			}
		}
	}
	v.requireNoScratch()
	v.requireNoState()
}

// requireNoState demands that nothing is noted as unfinished.
func (v *vm) requireNoState() {
	v.t.Helper()
	for _, dir := range []string{v.scratch(), filepath.Join(v.dir, "state")} {
		if left, err := os.ReadDir(dir); err == nil && len(left) > 0 {
			v.t.Fatalf("%s still has %v", dir, left)
		}
	}
}

// requireNoScratch demands that QEMU holds no scratch space: while its machine is stopped it keeps
// the descriptors, of empty files.
func (v *vm) requireNoScratch() {
	v.t.Helper()
	fds := fmt.Sprintf("/proc/%d/fd", v.cmd.Process.Pid)
	entries, err := os.ReadDir(fds)
	if err != nil {
		v.t.Fatal(err)
	}
	for _, e := range entries {
		fd := filepath.Join(fds, e.Name())
		target, _ := os.Readlink(fd)
		if st, err := os.Stat(fd); strings.HasPrefix(target, v.scratch()) && err == nil &&
			st.Mode().Perm()&0o200 != 0 && st.Sys().(*syscall.Stat_t).Blocks > 256 {
			v.t.Fatalf("QEMU still holds %s with %d blocks", target, st.Sys().(*syscall.Stat_t).Blocks)
		}
	}
}

// faulty is a monitor whose connection is closed at the i-th command from now.
type faulty struct {
	*qmp.Client
	mu   sync.Mutex
	left int
	log  string // the command at which it happened
}

func (f *faulty) Execute(ctx context.Context, command string, a, result any) error {
	f.count(command)
	return f.Client.Execute(ctx, command, a, result)
}

func (f *faulty) AddFD(ctx context.Context, file *os.File, label string) (int, error) {
	f.count("add-fd")
	return f.Client.AddFD(ctx, file, label)
}

func (f *faulty) count(command string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.left--; f.left == 0 {
		f.log = command
		f.Client.Close()
	}
}
