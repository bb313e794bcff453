package diskimage_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/holdfast-vm/holdfast/internal/diskimage"
	"github.com/holdfast-vm/holdfast/internal/extent"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const mib = int64(1) << 20

func shell(t testing.TB, script string, args ...string) string {
	t.Helper()
	out, err := exec.Command("sh", append([]string{"-ec", script, "sh"}, args...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return strings.TrimSpace(string(out))
}

// rawDisk makes a sparse raw disk of 12 MiB with data at 1 and 7 MiB, and in its last sector.
func rawDisk(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.raw")
	shell(t, `truncate -s 12M "$1"; qemu-io -f raw -c "write -P 3 1M 100k" -c "write -P 5 7M 2M" -c "write -P 9 12582400 512" "$1"`, path)
	return path
}

func open(t testing.TB, path string, o diskimage.Options) *diskimage.Image {
	t.Helper()
	m, err := diskimage.Open(t.Context(), path, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

// requireDisk checks that m reads as the raw file does, and that what Extents leaves out is zeros.
func requireDisk(t testing.TB, m *diskimage.Image, raw string) {
	t.Helper()
	want, err := os.ReadFile(raw)
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, m.Size())
	if n, err := m.ReadAt(got, 0); n != len(got) || err != nil && err != io.EOF || !bytes.Equal(got, want) {
		t.Fatalf("%s: read %d of %d bytes, %v, or they differ from %s", m.Path(), n, len(want), err, raw)
	}
	if n, err := m.ReadAt(got[:4096], m.Size()-100); n != 100 || err != io.EOF {
		t.Errorf("read at the end: %d, %v", n, err)
	}
	data, err := m.Extents(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range (extent.Set{{Off: 0, Len: m.Size()}}).Subtract(data) {
		if len(bytes.Trim(want[e.Off:e.End()], "\x00")) > 0 {
			t.Errorf("Extents leaves out data in %v", e)
		}
	}
	if m.Format() != "vhdx" && data.Bytes() > 6*mib { // QEMU's vhdx says nothing of holes
		t.Errorf("Extents has %d bytes of a disk with little in it", data.Bytes())
	}
}

func TestOpenReadsEveryFormat(t *testing.T) {
	raw := rawDisk(t)
	for _, tt := range []struct{ name, format, make string }{
		{"a.raw", "raw", `cp --sparse=always "$1" "$2"`},
		{"a.qcow2", "qcow2", `qemu-img convert -f raw -O qcow2 "$1" "$2"`},
		{"a.compressed", "qcow2", `qemu-img convert -c -f raw -O qcow2 "$1" "$2"`},
		{"a.vmdk", "vmdk", `qemu-img convert -f raw -O vmdk "$1" "$2"`},
		{"a.vhdx", "vhdx", `qemu-img convert -f raw -O vhdx -o block_size=1M "$1" "$2"`},
		{"a.vdi", "vdi", `qemu-img convert -f raw -O vdi "$1" "$2"`},
		{"a,b c.vdi", "vdi", `qemu-img convert -f raw -O vdi "$1" "$2"`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), tt.name)
			shell(t, tt.make, raw, path)
			m := open(t, path, diskimage.Options{})
			if m.Format() != tt.format {
				t.Errorf("Format = %s, want %s", m.Format(), tt.format)
			}
			requireDisk(t, m, raw)
			if _, err := m.Dirty(t.Context()); !errors.Is(err, diskimage.ErrNoBitmap) {
				t.Errorf("Dirty of no bitmap: %v", err)
			}
		})
	}
}

func TestBackingChain(t *testing.T) {
	raw := rawDisk(t)
	top := filepath.Join(t.TempDir(), "top.qcow2")
	shell(t, `qemu-img create -q -f qcow2 -b "$1" -F raw "$2"; qemu-io -f qcow2 -c "write -P 8 3M 64k" "$2"; qemu-img convert -f qcow2 -O raw "$2" "$2".raw`, raw, top)
	if _, err := diskimage.Open(t.Context(), top, diskimage.Options{}); !errors.Is(err, diskimage.ErrFormat) ||
		!strings.Contains(err.Error(), raw) {
		t.Errorf("a backing file that nobody vouched for: %v", err)
	}
	requireDisk(t, open(t, top, diskimage.Options{Format: "qcow2"}), top+".raw")
	vmdk := filepath.Join(t.TempDir(), "a.vmdk")
	shell(t, `qemu-img convert -f raw -O vmdk "$1" "$2".base; qemu-img create -q -f vmdk -b "$2".base -F vmdk "$2"`, raw, vmdk)
	if _, err := diskimage.Open(t.Context(), vmdk, diskimage.Options{}); !errors.Is(err, diskimage.ErrFormat) {
		t.Errorf("a vmdk parent that nobody vouched for: %v", err)
	}
	requireDisk(t, open(t, vmdk, diskimage.Options{Format: "vmdk"}), raw)
}

// A guest wrote an image header to its raw disk.
func TestRawThatLooksLikeAnImage(t *testing.T) {
	path := filepath.Join(t.TempDir(), "guest.img")
	shell(t, `qemu-img create -q -u -f qcow2 -b /etc/shadow -F raw "$1" 1M`, path)
	if _, err := diskimage.Open(t.Context(), path, diskimage.Options{}); !errors.Is(err, diskimage.ErrFormat) {
		t.Errorf("guessed: %v", err)
	}
	m := open(t, path, diskimage.Options{Format: "raw"})
	if m.Size() != m.FileSize() {
		t.Errorf("as raw it has %d bytes, the file %d", m.Size(), m.FileSize())
	}
	text := filepath.Join(t.TempDir(), "disk")
	shell(t, `printf '# Disk DescriptorFile\nversion=1\nRW 1 FLAT "/etc/shadow" 0\n' >"$1"`, text)
	if _, err := diskimage.Open(t.Context(), text, diskimage.Options{}); !errors.Is(err, diskimage.ErrFormat) {
		t.Errorf("a vmdk description: %v", err)
	}
}

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	shell(t, `cd "$1"; : >empty; qemu-img create -q -f qcow2 cut.qcow2 10M; qemu-io -f qcow2 -c "write 0 5M" cut.qcow2; truncate -s 3M cut.qcow2
		qemu-img convert -c -f qcow2 -O qcow2 -o cluster_size=4k cut.qcow2 packed.qcow2 2>&1 || true
		qemu-img create -q -f vdi bad.vdi 1M; printf 'xxxxxxxxxxxx' | dd of=bad.vdi bs=1 seek=68 conv=notrunc 2>/dev/null; truncate -s 1M some.raw; mkfifo pipe`, dir)
	for _, tt := range []struct {
		name   string
		format string
		want   error
		says   string
	}{
		{"missing", "", os.ErrNotExist, "missing"},
		{"empty", "", diskimage.ErrEmpty, "empty"},
		{".", "", nil, "directory"},
		{"pipe", "", nil, "neither"},
		{"cut.qcow2", "", diskimage.ErrDamaged, "beyond its end"},
		{"bad.vdi", "", diskimage.ErrDamaged, "qemu-nbd"},
		{"some.raw", "qcow2", diskimage.ErrFormat, "not a qcow2"},
		{"some.raw", "nbd", diskimage.ErrFormat, "vhdx"},
	} {
		m, err := diskimage.Open(t.Context(), filepath.Join(dir, tt.name), diskimage.Options{Format: tt.format})
		if err == nil {
			m.Close()
		}
		if err == nil || tt.want != nil && !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%s as %q: %v; want %v with %q", tt.name, tt.format, err, tt.want, tt.says)
		}
	}
}

func TestDirty(t *testing.T) {
	dir := t.TempDir()
	path, packed := filepath.Join(dir, "a.qcow2"), filepath.Join(dir, "b.qcow2")
	shell(t, `qemu-img create -q -f qcow2 "$1" 10M; qemu-img bitmap --add "$1" b; qemu-io -f qcow2 -c "write 3M 100k" "$1"
		qemu-img create -q -f qcow2 -b "$1" -F qcow2 "$2"; qemu-img bitmap --add "$2" b; qemu-io -f qcow2 -c "write 3M 100k" "$2"`, path, packed)
	want := extent.Set{{Off: 3 * mib, Len: 128 << 10}}
	for _, p := range []string{path, packed} { // the first is read here, the second by qemu-nbd
		m := open(t, p, diskimage.Options{Format: "qcow2", Bitmap: "b"})
		if got, err := m.Dirty(t.Context()); err != nil || !slices.Equal(got, want) {
			t.Errorf("Dirty = %v, %v; want %v", got, err, want)
		}
		if err := m.Close(); err != nil {
			t.Error(err)
		}
		o := diskimage.Options{Format: "qcow2", Bitmap: "other"}
		if _, err := diskimage.Open(t.Context(), p, o); !errors.Is(err, diskimage.ErrNoBitmap) {
			t.Errorf("a bitmap that is not there: %v", err)
		}
		shell(t, `qemu-io -f qcow2 -c "write 0 64k" -c flush -c abort "$1" 2>&1 || true`, p)
		o.Bitmap = "b"
		if _, err := diskimage.Open(t.Context(), p, o); !errors.Is(err, diskimage.ErrBitmapInconsistent) {
			t.Errorf("a bitmap in use when QEMU died: %v", err)
		}
	}
}

// machine starts a stopped virtual machine with the drive and returns when it holds it, or with
// QEMU's complaint.
func machine(t testing.TB, drive string) (complaint string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "hf")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	var stderr bytes.Buffer
	cmd := exec.Command("qemu-system-x86_64", "-S", "-display", "none", "-nodefaults", "-accel", "tcg", "-m", "16",
		"-qmp", "unix:"+dir+"/qmp,server=on,wait=off", "-drive", drive+",if=none,id=d", "-device",
		"virtio-blk-pci,drive=d")
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { cmd.Wait(); close(ended) }()
	t.Cleanup(func() { cmd.Process.Kill(); <-ended })
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	poll := time.NewTicker(20 * time.Millisecond)
	defer poll.Stop()
	for {
		select {
		case <-ended:
			return stderr.String()
		case <-ctx.Done():
			t.Fatalf("QEMU is not up: %s", &stderr)
		case <-poll.C:
		}
		if answers(dir + "/qmp") {
			return ""
		}
	}
}

// answers reports whether QEMU answers a command, which it does when the machine has been built.
func answers(qmp string) bool {
	c, err := net.Dial("unix", qmp)
	if err != nil {
		return false
	}
	defer c.Close()
	if _, err := io.WriteString(c, `{"execute":"qmp_capabilities"}{"execute":"query-status"}`); err != nil {
		return false
	}
	for in := bufio.NewScanner(c); in.Scan(); {
		if strings.Contains(in.Text(), `"running"`) {
			return true
		}
	}
	return false
}

func TestInUse(t *testing.T) {
	raw := rawDisk(t)
	dir := t.TempDir()
	for _, format := range []string{"raw", "qcow2", "vmdk"} {
		t.Run(format, func(t *testing.T) {
			path := filepath.Join(dir, "a."+format)
			shell(t, `qemu-img convert -f raw -O "$3" "$1" "$2"`, raw, path, format)
			m := open(t, path, diskimage.Options{})
			if got := machine(t, fmt.Sprintf("file=%s,format=%s", path, format)); !strings.Contains(got, "lock") {
				t.Errorf("a machine starts on an image that is being read: %q", got)
			}
			if err := m.Close(); err != nil {
				t.Fatal(err)
			}
			if got := machine(t, fmt.Sprintf("file=%s,format=%s", path, format)); got != "" {
				t.Fatalf("QEMU: %s", got)
			}
			if _, err := diskimage.Open(t.Context(), path, diskimage.Options{}); !errors.Is(err, diskimage.ErrInUse) {
				t.Errorf("Open: %v, want %v", err, diskimage.ErrInUse)
			}
			if format == "vmdk" {
				return
			}
			if _, err := diskimage.Create(path, mib, format, nil, true); !errors.Is(err, diskimage.ErrInUse) {
				t.Errorf("Create: %v, want %v", err, diskimage.ErrInUse)
			}
		})
	}
}

// A layer that a running machine writes is found below the image too.
func TestBackingFileInUse(t *testing.T) {
	dir := t.TempDir()
	shell(t, `cd "$1"; qemu-img create -q -f qcow2 base.qcow2 1M; qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 top.qcow2`, dir)
	if got := machine(t, "format=qcow2,file="+dir+"/base.qcow2"); got != "" {
		t.Fatal(got)
	}
	o := diskimage.Options{Format: "qcow2"}
	if _, err := diskimage.Open(t.Context(), dir+"/top.qcow2", o); !errors.Is(err, diskimage.ErrInUse) {
		t.Errorf("Open: %v, want %v", err, diskimage.ErrInUse)
	}
}
