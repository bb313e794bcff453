package qcow2_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/extent"
	"github.com/holdfast-vm/holdfast/internal/qcow2"
)

// nbdDirty returns what qemu-nbd exports of the bitmap.
func nbdDirty(t *testing.T, path, bitmap string) extent.Set {
	t.Helper()
	out := run(t, "nbdinfo", "--json", "--map=qemu:dirty-bitmap:"+bitmap, "--",
		"[", "qemu-nbd", "-r", "-f", "qcow2", "-B", bitmap, path, "]")
	var list []struct{ Offset, Length, Type int64 }
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	var set extent.Set
	for _, e := range list {
		if e.Type&1 != 0 {
			set = set.Append(extent.Extent{Off: e.Offset, Len: e.Length})
		}
	}
	return set
}

func TestBitmapsAreWhatQEMUReads(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	for _, tt := range []struct {
		name        string
		size        int64
		cluster     int
		granularity int64
		set         extent.Set
	}{
		{"empty", 10 * mib, 0, 0, nil},
		{"all of a small disk", 10*mib + 512, 0, 0, extent.Set{{Off: 0, Len: 10*mib + 512}}},
		{"last granule", 10*mib + 512, 0, 64 * kib, extent.Set{{Off: 10 * mib, Len: 512}}},
		{"random", 10 * gib, 0, 64 * kib, randomSet(rng, 10*gib, 50, 10*mib)},
		{"fine", 64 * mib, 512, 512, randomSet(rng, 64*mib, 50, 10*kib)},
		{"coarse", 64 * gib, 0, 2 * gib, randomSet(rng, 64*gib, 3, 10*kib)},
		{"all of a large disk", 3*tib + 512, 0, 64 * kib, extent.Set{{Off: 0, Len: 3*tib + 512}}},
		{"slice of a huge disk", 8 * tib, 0, 64 * kib, extent.Set{{Off: 5 * tib, Len: gib}}},
		{"whole clusters of bits and more", 2 * tib, 0, 64 * kib, extent.Set{{Off: 100 * gib, Len: 300*gib + 1}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "a.qcow2")
			if err := qcow2.Create(path, tt.size, qcow2.CreateOptions{ClusterSize: tt.cluster, Bitmaps: []qcow2.Bitmap{
				{Name: "hf-slice", Granularity: tt.granularity, Set: tt.set},
				{Name: "other", Set: extent.Set{{Off: 0, Len: 1}}},
			}}); err != nil {
				t.Fatal(err)
			}
			run(t, "qemu-img", "check", "-q", "-f", "qcow2", path)
			granule := max(tt.granularity, 512)
			if tt.granularity == 0 {
				granule = 64 * kib
			}
			want := tt.set.Align(granule, tt.size)
			if got := nbdDirty(t, path, "hf-slice"); !slices.Equal(got, want) {
				t.Errorf("qemu-nbd exports\n%v, want\n%v", got, want)
			}
			img := open(t, path)
			if got, err := img.ReadBitmap("hf-slice"); err != nil || !slices.Equal(got, want) {
				t.Errorf("ReadBitmap = %v, %v; want %v", got, err, want)
			}
			list, err := img.Bitmaps()
			if err != nil || len(list) != 2 || list[0].Name != "hf-slice" || list[0].Auto || list[0].InUse ||
				list[0].Granularity != granule {
				t.Errorf("Bitmaps = %+v, %v", list, err)
			}
			if n := onDisk(t, path); n > 3*mib {
				t.Errorf("the file fills %d bytes of the disk", n)
			}
		})
	}
}

func onDisk(t *testing.T, path string) int64 {
	t.Helper()
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return st.Sys().(*syscall.Stat_t).Blocks * 512
}

// QEMU merges our bits into a bitmap of its own, and we read what it stored.
func TestBitmapsMergeInQEMU(t *testing.T) {
	dir := t.TempDir()
	ours, theirs := filepath.Join(dir, "ours.qcow2"), filepath.Join(dir, "theirs.qcow2")
	size := 5*gib + 3*512
	want := randomSet(rand.New(rand.NewPCG(7, 8)), size, 200, 5*mib).Align(64*kib, size)
	o := qcow2.CreateOptions{Bitmaps: []qcow2.Bitmap{{Name: "bits", Granularity: 64 * kib, Set: want}}}
	if err := qcow2.Create(ours, size, o); err != nil {
		t.Fatal(err)
	}
	run(t, "qemu-img", "create", "-q", "-f", "qcow2", theirs, fmt.Sprint(size))
	run(t, "qemu-img", "bitmap", "--add", "-g", "65536", theirs, "b")
	run(t, "qemu-img", "bitmap", "--merge", "bits", "-b", ours, "-F", "qcow2", theirs, "b")
	img := open(t, theirs)
	got, err := img.ReadBitmap("b")
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("merged bitmap reads\n%v, %v; want\n%v", got, err, want)
	}
	list, err := img.Bitmaps()
	if err != nil || len(list) != 1 || !list[0].Auto {
		t.Errorf("Bitmaps = %+v, %v; want one, enabled", list, err)
	}
	if _, err := img.ReadBitmap("c"); !errors.Is(err, qcow2.ErrNoBitmap) {
		t.Errorf("a bitmap that is not there: %v", err)
	}
}

// A bitmap that QEMU had open when it died may not be trusted.
func TestBitmapInUse(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.qcow2")
	run(t, "qemu-img", "create", "-q", "-f", "qcow2", path, "1M")
	run(t, "qemu-img", "bitmap", "--add", path, "b")
	run(t, "sh", "-c", `qemu-io -f qcow2 -c "write 0 64k" -c flush -c abort "$1" >&2 || true`, "sh", path)
	img := open(t, path)
	if _, err := img.ReadBitmap("b"); !errors.Is(err, qcow2.ErrBitmapInconsistent) {
		t.Errorf("ReadBitmap: %v, want %v", err, qcow2.ErrBitmapInconsistent)
	}
}
