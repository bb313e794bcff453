package qcow2_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/extent"
	"github.com/holdfast-vm/holdfast/internal/qcow2"
)

const (
	kib = int64(1) << 10
	mib = int64(1) << 20
	gib = int64(1) << 30
	tib = int64(1) << 40
)

func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	var stderr bytes.Buffer
	cmd := exec.Command(name, args...)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s%s", name, strings.Join(args, " "), err, out, &stderr)
	}
	return string(out)
}

func open(t testing.TB, path string) *qcow2.Image {
	t.Helper()
	img, err := qcow2.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { img.Close() })
	return img
}

// qemuMap returns what qemu-img map says is data and what it says is allocated.
func qemuMap(t testing.TB, path string) (data, allocated extent.Set) {
	t.Helper()
	var list []struct {
		Start, Length int64
		Depth         int
		Present       bool
		Data          bool
	}
	if err := json.Unmarshal([]byte(run(t, "qemu-img", "map", "--output=json", "-f", "qcow2", path)),
		&list); err != nil {
		t.Fatal(err)
	}
	for _, e := range list {
		x := extent.Extent{Off: e.Start, Len: e.Length}
		if e.Data {
			data = data.Append(x)
		}
		if e.Present {
			allocated = allocated.Append(x)
		}
	}
	return data, allocated
}

func randomSet(rng *rand.Rand, size int64, pieces int, longest int64) extent.Set {
	var list []extent.Extent
	for range pieces {
		off := rng.Int64N(size)
		list = append(list, extent.Extent{Off: off, Len: min(1+rng.Int64N(longest), size-off)})
	}
	return extent.Of(list...)
}

func TestWriterMakesImagesQEMUAgreesWith(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for _, tt := range []struct {
		name    string
		size    int64
		cluster int
		data    extent.Set
	}{
		{"empty", 10 * mib, 0, nil},
		{"one sector", 512, 0, extent.Set{{Off: 0, Len: 512}}},
		{"full", 5 * mib, 0, extent.Set{{Off: 0, Len: 5 * mib}}},
		{"odd end", 3*mib + 5*512, 0, extent.Set{{Off: 3 * mib, Len: 5 * 512}}},
		{"random", 64 * mib, 0, randomSet(rng, 64*mib, 40, 300*kib)},
		{"small clusters", 8*mib + 512, 512, randomSet(rng, 8*mib+512, 40, 20*kib)},
		{"4 KiB clusters", 40 * mib, 4096, randomSet(rng, 40*mib, 60, 50*kib)},
		{"large clusters", 100 * mib, 2 << 20, randomSet(rng, 100*mib, 5, mib)},
		{"terabytes", 3*tib + 512, 0, randomSet(rng, 3*tib, 30, 200*kib)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			path, raw := filepath.Join(dir, "a.qcow2"), filepath.Join(dir, "a.raw")
			w, err := qcow2.NewWriter(path, tt.size, tt.data, qcow2.CreateOptions{ClusterSize: tt.cluster})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := qcow2.Open(path); !errors.Is(err, qcow2.ErrNotQcow2) {
				t.Errorf("an unfinished image opens: %v", err)
			}
			fill(t, w, raw, tt.size, tt.data)
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			run(t, "qemu-img", "check", "-q", "-f", "qcow2", path)
			run(t, "qemu-img", "compare", "-q", "-f", "qcow2", "-F", "raw", path, raw)
			want := tt.data.Align(int64(max(tt.cluster, 512)), tt.size)
			if tt.cluster == 0 {
				want = tt.data.Align(64*kib, tt.size)
			}
			if got, _ := qemuMap(t, path); !slices.Equal(got, want) {
				t.Errorf("qemu-img map finds data\n%v, want\n%v", got, want)
			}
			img := open(t, path)
			if got, zero, err := img.Map(); err != nil || !slices.Equal(got, want) || zero != nil {
				t.Errorf("Map = %v, %v, %v; want data %v", got, zero, err, want)
			}
			requireSame(t, img, raw, want)
		})
	}
}

// fill writes random bytes to data of w, from several goroutines, and of a raw file.
func fill(t *testing.T, w io.WriterAt, raw string, size int64, data extent.Set) {
	t.Helper()
	f, err := os.Create(raw)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for i, e := range data {
		wg.Go(func() {
			rng := rand.NewChaCha8([32]byte{byte(i), byte(e.Len)})
			buf := make([]byte, e.Len)
			rng.Read(buf)
			for _, to := range []io.WriterAt{w, f} {
				if _, err := to.WriteAt(buf, e.Off); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

// requireSame compares r with the file raw in the ranges of set, by reads that begin and end
// anywhere.
func requireSame(t testing.TB, r io.ReaderAt, raw string, set extent.Set) {
	t.Helper()
	f, err := os.Open(raw)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, e := range set {
		for at := max(0, e.Off-777); at < e.End()+777; at += 100_003 {
			got, want := make([]byte, 100_003), make([]byte, 100_003)
			n, gotErr := r.ReadAt(got, at)
			m, wantErr := f.ReadAt(want, at)
			if n != m || gotErr != wantErr || !bytes.Equal(got[:n], want[:m]) {
				t.Fatalf("read at %d: %d bytes, %v; want %d, %v, or the bytes differ", at, n, gotErr, m, wantErr)
			}
		}
	}
}

func TestWriterRefuses(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a.qcow2")
	for name, o := range map[string]qcow2.CreateOptions{
		"cluster size":    {ClusterSize: 3000},
		"two of one name": {Bitmaps: []qcow2.Bitmap{{Name: "a"}, {Name: "a"}}},
		"no name":         {Bitmaps: []qcow2.Bitmap{{}}},
		"granularity":     {Bitmaps: []qcow2.Bitmap{{Name: "a", Granularity: 100}}},
	} {
		if err := qcow2.Create(path, mib, o); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if err := qcow2.Create(path, tib, qcow2.CreateOptions{ClusterSize: 512}); err == nil {
		t.Error("a disk too large for its clusters was accepted")
	}
	if _, err := qcow2.NewWriter(path, mib, extent.Set{{Off: mib - 1, Len: 2}}, qcow2.CreateOptions{}); err == nil {
		t.Error("data beyond the disk was accepted")
	}
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
	if err := qcow2.Create(path, mib, qcow2.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := qcow2.Create(path, mib, qcow2.CreateOptions{}); !errors.Is(err, os.ErrExist) {
		t.Errorf("an existing file: %v", err)
	}
	run(t, "qemu-img", "check", "-q", path)
}

func TestWriterAbortRemovesTheFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.qcow2")
	w, err := qcow2.NewWriter(path, mib, extent.Set{{Off: 0, Len: 1}}, qcow2.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if n, err := w.WriteAt(make([]byte, 70_000), 0); err == nil || n != 65536 {
		t.Errorf("write over the end of the allocated cluster: %d, %v", n, err)
	}
	if _, err := w.WriteAt(make([]byte, 1), 128<<10); err == nil {
		t.Error("write outside the data was accepted")
	}
	if err := w.Abort(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after Abort: %v", err)
	}
	if err := w.Close(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Close after Abort: %v", err)
	}
}

// What QEMU wrote by random writes, zero writes and discards, QEMU and we read alike.
func TestReadsWhatQEMUWrote(t *testing.T) {
	for _, options := range []string{
		"compat=1.1", "compat=0.10", "cluster_size=512", "cluster_size=4k", "cluster_size=2M", "refcount_bits=1",
		"lazy_refcounts=on",
		"preallocation=metadata", "preallocation=falloc",
	} {
		t.Run(options, func(t *testing.T) {
			rng := rand.New(rand.NewPCG(3, uint64(len(options))))
			dir, size := t.TempDir(), 20*mib+512*3
			path, raw := filepath.Join(dir, "a.qcow2"), filepath.Join(dir, "a.raw")
			run(t, "qemu-img", "create", "-q", "-f", "qcow2", "-o", options, path, fmt.Sprint(size))
			args := []string{"-f", "qcow2", "-t", "unsafe", "-d", "unmap"}
			for range 60 {
				off := rng.Int64N(size/512) * 512
				n := min(size-off, (1+rng.Int64N(400))*512)
				what := []string{fmt.Sprintf("write -P %d", 1+rng.IntN(255)), "write -z -u", "discard"}[rng.IntN(3)]
				args = append(args, "-c", fmt.Sprintf("%s %d %d", what, off, n))
			}
			run(t, "qemu-io", append(args, path)...)
			run(t, "qemu-img", "convert", "-t", "unsafe", "-f", "qcow2", "-O", "raw", path, raw)
			img := open(t, path)
			if img.Size() != size {
				t.Errorf("Size = %d, want %d", img.Size(), size)
			}
			requireSame(t, img, raw, extent.Set{{Off: 0, Len: size}})
			data, zero, err := img.Map()
			if err != nil {
				t.Fatal(err)
			}
			wantData, wantAllocated := qemuMap(t, path)
			if !strings.Contains(options, "preallocation") && !slices.Equal(data, wantData) {
				t.Errorf("Map finds data\n%v, qemu-img\n%v", data, wantData)
			}
			if got := data.Union(zero); !slices.Equal(got, wantAllocated) {
				t.Errorf("Map finds allocated\n%v, qemu-img\n%v", got, wantAllocated)
			}
		})
	}
}

func TestConcurrentReads(t *testing.T) {
	dir := t.TempDir()
	path, raw := filepath.Join(dir, "a.qcow2"), filepath.Join(dir, "a.raw")
	size := 64 * mib
	data := randomSet(rand.New(rand.NewPCG(9, 9)), size, 100, 64*kib)
	// 2,048 L2 tables of 32 KiB of disk
	w, err := qcow2.NewWriter(path, size, data, qcow2.CreateOptions{ClusterSize: 512})
	if err != nil {
		t.Fatal(err)
	}
	fill(t, w, raw, size, data)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	img := open(t, path)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() { requireSame(t, img, raw, data[i*len(data)/8:]) })
	}
	wg.Wait()
}

// An overlay is read by QEMU as what is below it, and named as such in its header.
func TestBackingFile(t *testing.T) {
	dir := t.TempDir()
	base, path := filepath.Join(dir, "base"), filepath.Join(dir, "overlay.qcow2")
	data := bytes.Repeat([]byte("below"), 1<<20/5+1)[:1<<20]
	if err := os.WriteFile(base, data, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ file, format string }{{base, "raw"}, {fmt.Sprintf(`json:{"driver":"raw","file":{"driver":"file","filename":%q}}`, base), ""}} {
		if err := qcow2.Create(path, int64(len(data)),
			qcow2.CreateOptions{BackingFile: tt.file, BackingFormat: tt.format}); err != nil {
			t.Fatal(err)
		}
		m, err := qcow2.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		if info := m.Info(); info.BackingFile != tt.file || info.BackingFormat != tt.format {
			t.Errorf("backing file %q of format %q, want %q, %q", info.BackingFile, info.BackingFormat, tt.file,
				tt.format)
		}
		m.Close()
		if out, err := exec.Command("qemu-img", "compare", "-f", "qcow2", "-F", "raw", path,
			base).CombinedOutput(); err != nil {
			t.Errorf("the overlay over %s differs: %v\n%s", tt.file, err, out)
		}
		if out, err := exec.Command("qemu-img", "check", "-q", path).CombinedOutput(); err != nil {
			t.Errorf("qemu-img check: %v\n%s", err, out)
		}
		os.Remove(path)
	}
	if err := qcow2.Create(path, 1<<20, qcow2.CreateOptions{BackingFile: strings.Repeat("x", 1024)}); err == nil {
		t.Error("a name of 1024 bytes was taken for a backing file")
	}
}
