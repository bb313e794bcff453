package lvm_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/filesystem"
	"github.com/holdfast-vm/holdfast/internal/filesystem/filesystemtest"
	"github.com/holdfast-vm/holdfast/internal/filesystem/lvm"
)

// image returns a physical volume that testdata/make-images made.
func image(t testing.TB, name string) []byte {
	t.Helper()
	return filesystemtest.Unpacked(t, "testdata/"+name+".img.gz")
}

func readPV(t *testing.T, data []byte) *lvm.PV {
	t.Helper()
	pv, err := new(lvm.Reader).PV(bytes.NewReader(data), int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	return pv
}

// assemble returns the volumes of the only group of some images, by name.
func assemble(t *testing.T, images ...[]byte) (*lvm.Group, map[string]*lvm.Volume) {
	t.Helper()
	var pvs []*lvm.PV
	for _, data := range images {
		pvs = append(pvs, readPV(t, data))
	}
	groups := lvm.Assemble(pvs)
	if len(groups) != 1 {
		t.Fatalf("%d groups", len(groups))
	}
	volumes := map[string]*lvm.Volume{}
	for _, v := range groups[0].Volumes {
		volumes[v.Name] = v
	}
	return groups[0], volumes
}

// check reads a volume in odd pieces: each block of it begins with its name and number.
func check(t *testing.T, v *lvm.Volume, name string) {
	t.Helper()
	if v == nil || v.Err != nil {
		t.Errorf("%s: %+v", name, v)
		return
	}
	data := make([]byte, v.Size)
	for off := int64(0); off < v.Size; {
		n, err := v.ReadAt(data[off:min(v.Size, off+50_000)], off)
		if err != nil {
			t.Fatalf("%s at %d: %v", name, off, err)
		}
		off += int64(n)
	}
	for i := 0; i < len(data)/4096; i++ {
		want := make([]byte, 4096)
		copy(want, fmt.Sprintf("%s %d\n", name, i))
		if !bytes.Equal(data[i*4096:(i+1)*4096], want) {
			t.Fatalf("block %d of %s begins with %.30q", i, name, data[i*4096:])
		}
	}
	if n, err := v.ReadAt(make([]byte, 10), v.Size-4); n != 4 || !errors.Is(err, io.EOF) {
		t.Errorf("the end of %s: %d, %v", name, n, err)
	}
}

// sizes returns what the tools said of the volumes with data.
func sizes(t *testing.T) map[string]int64 {
	t.Helper()
	raw, err := os.ReadFile("testdata/lvs.txt")
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]int64{}
	for line := range strings.Lines(string(raw)) {
		f := strings.Split(strings.TrimSpace(line), "|")
		n, err := strconv.ParseInt(f[2], 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		out[f[0]] += n
	}
	return out
}

// What LVM's own tools say where data is, is where it is read: linear and striped, in several
// segments, on two disks in any order.
func TestReadsWhatLVMMade(t *testing.T) {
	a, b := image(t, "a"), image(t, "b")
	for _, order := range [][][]byte{{a, b}, {b, a}} {
		g, volumes := assemble(t, order...)
		if g.Name != "vg-x" || len(g.UUID) != 38 || g.Sequence < 40 || len(g.Notes) != 0 {
			t.Errorf("group %q %q, %d, %q", g.Name, g.UUID, g.Sequence, g.Notes)
		}
		for name, size := range sizes(t) {
			check(t, volumes[name], name)
			if v := volumes[name]; v != nil && v.Size != size {
				t.Errorf("%s has %d bytes, lvs said %d", name, v.Size, size)
			}
		}
		for name, pvs := range map[string]int{"root": 2, "stripes": 2, "only-a": 1, "only-b": 1} {
			if got := len(volumes[name].PVs); got != pvs {
				t.Errorf("%s is on %d physical volumes, want %d", name, got, pvs)
			}
		}
	}
}

// What is not read says what it is; what others are made of is not listed.
func TestUnsupported(t *testing.T) {
	_, volumes := assemble(t, image(t, "a"), image(t, "b"))
	for name, text := range map[string]string{"pool": "thin pool", "thin": "thin pool", "snap": "snapshot of only-a"} {
		v := volumes[name]
		if v == nil || !errors.Is(v.Err, filesystem.ErrUnsupported) || !strings.Contains(v.Err.Error(), text) {
			t.Errorf("%s: %+v", name, v)
			continue
		}
		if _, err := v.ReadAt(make([]byte, 1), 0); !errors.Is(err, filesystem.ErrUnsupported) {
			t.Errorf("reading %s: %v", name, err)
		}
	}
	var names []string
	for name := range volumes {
		names = append(names, name)
	}
	slices.Sort(names)
	if want := []string{"mir", "only-a", "only-b", "pool", "r1", "root", "snap", "stripes",
		"thin"}; !slices.Equal(names, want) {
		t.Errorf("listed are %q, want %q", names, want)
	}
}

// Without one disk, the volumes that need it say so, and the others are read.
func TestMissingDisk(t *testing.T) {
	a, b := image(t, "a"), image(t, "b")
	g, volumes := assemble(t, a)
	check(t, volumes["only-a"], "only-a")
	for _, name := range []string{"root", "stripes", "only-b"} {
		if v := volumes[name]; !errors.Is(v.Err, lvm.ErrMissing) {
			t.Errorf("%s: %v", name, v.Err)
		}
	}
	if len(g.Notes) != 1 || !strings.Contains(g.Notes[0], readPV(t, b).UUID) {
		t.Errorf("notes: %q", g.Notes)
	}
	_, volumes = assemble(t, b)
	check(t, volumes["only-b"], "only-b")

	// Two disks that say that they are the same one: which is right cannot be known.
	_, volumes = assemble(t, a, b, bytes.Clone(b))
	check(t, volumes["only-a"], "only-a")
	if v := volumes["only-b"]; !errors.Is(v.Err, filesystem.ErrCorrupt) {
		t.Errorf("a volume of which there are two: %v", v.Err)
	}
}

// A copy of the metadata that is damaged is passed over for the other, with a note; with both
// damaged the group is gone, and no panic.
func TestDamagedMetadata(t *testing.T) {
	a, b := image(t, "a"), image(t, "b")
	text, size, area := binary.LittleEndian.Uint64(a[4096+40:]), binary.LittleEndian.Uint64(a[4096+48:]),
		binary.LittleEndian.Uint64(a[4096+32:])
	if text+size <= area {
		t.Error("the text does not go round in its area: make the images again")
	}
	// header, place of the text, its end, its beginning
	for _, off := range []int{4096, 4096 + 50, 4096 + 512 + 10, 4096 + int(text) + 100} {
		bad := bytes.Clone(a)
		bad[off] ^= 0x11
		g, volumes := assemble(t, bad, b)
		check(t, volumes["root"], "root")
		check(t, volumes["only-a"], "only-a")
		if len(readPV(t, bad).Notes) != 1 || len(g.Notes) > 1 {
			t.Errorf("byte %d: notes %q", off, g.Notes)
		}
	}
	label := bytes.Clone(a)
	label[512+40] ^= 1
	if _, err := new(lvm.Reader).PV(bytes.NewReader(label), int64(len(label))); !errors.Is(err, filesystem.ErrNotThis) {
		t.Errorf("a label with a wrong checksum: %v", err)
	}
}

const extent, first = 128 << 10, 128 << 10

func fill(image []byte, at int, name string) {
	for i := range 2 * extent / 4096 {
		copy(image[first+at*extent+i*4096:], fmt.Sprintf("%s %d\n", name, i))
	}
}

func super(image []byte, at int, position uint32, events, failed, rebuilt uint64) {
	raw := image[first+at*extent:]
	copy(raw, "DmRd")
	binary.LittleEndian.PutUint32(raw[12:], position)
	binary.LittleEndian.PutUint64(raw[16:], events)
	binary.LittleEndian.PutUint64(raw[24:], failed)
	binary.LittleEndian.PutUint64(raw[32:], rebuilt)
}

// Of a mirror and of RAID 1 a leg is read that has everything.
func TestMirrors(t *testing.T) {
	a, b := image(t, "a"), image(t, "b")
	fill(a, 18, "mir")
	fill(b, 33, "stale")
	_, volumes := assemble(t, a, b)
	check(t, volumes["mir"], "mir")
	if v := volumes["r1"]; !errors.Is(v.Err, filesystem.ErrUnsupported) {
		t.Errorf("RAID 1 that was never in use: %v", v.Err)
	}
	const whole = math.MaxUint64
	for _, tt := range []struct {
		name   string
		damage func(a, b []byte)
		want   string // leg that is right
	}{
		{"both whole", func(a, b []byte) { super(a, 20, 0, 7, 0, whole); super(b, 35, 1, 7, 0, whole) }, "a"},
		{"one event behind", func(a, b []byte) { super(a, 20, 0, 6, 0, whole); super(b, 35, 1, 7, 0, whole) }, "a"},
		{"first is old", func(a, b []byte) { super(a, 20, 0, 4, 0, whole); super(b, 35, 1, 7, 0, whole) }, "b"},
		{"first failed", func(a, b []byte) { super(a, 20, 0, 7, 1, whole); super(b, 35, 1, 7, 1, whole) }, "b"},
		{"first is being rebuilt", func(a, b []byte) { super(a, 20, 0, 7, 0, 100); super(b, 35, 1, 7, 0, whole) }, "b"},
		{"first has no superblock", func(a, b []byte) { super(b, 35, 1, 7, 0, whole) }, "b"},
		{"second is being rebuilt, first failed", func(a, b []byte) {
			super(a, 20, 0, 7, 1, whole)
			super(b, 35, 1, 7, 1, 9)
		}, ""},
		{"legs changed places", func(a, b []byte) { super(a, 20, 1, 7, 0, whole); super(b, 35, 0, 7, 0, whole) }, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a, b := bytes.Clone(a), bytes.Clone(b)
			tt.damage(a, b)
			fill(map[string][]byte{"a": a, "b": b, "": a}[tt.want], map[string]int{"a": 21, "b": 36}[tt.want], "r1")
			_, volumes := assemble(t, a, b)
			if tt.want != "" {
				check(t, volumes["r1"], "r1")
			} else if v := volumes["r1"]; v.Err == nil {
				t.Errorf("it is read")
			}
		})
	}
}

// crcTable is of the polynomial of Ethernet, reflected.
var crcTable = func() (t [256]uint32) {
	for i := range t {
		sum := uint32(i)
		for range 8 {
			if sum&1 != 0 {
				sum = sum>>1 ^ 0xedb88320
			} else {
				sum >>= 1
			}
		}
		t[i] = sum
	}
	return t
}()

// crc is LVM's checksum, written a second time from its definition.
func crc(p []byte) uint32 {
	sum := uint32(0xf597a6cf)
	for _, c := range p {
		sum = sum>>8 ^ crcTable[byte(sum)^c]
	}
	return sum
}

// fake is a physical volume of 1 MiB with metadata of our choice.
func fake(text string) []byte { return fakeOf(text, 256<<10) }

// fakeOf is one with an area of so many bytes for its metadata, of which its extents follow.
func fakeOf(text string, area int) []byte {
	data := make([]byte, area+768<<10)
	le := binary.LittleEndian
	l := data[512:1024]
	copy(l, "LABELONE")
	le.PutUint64(l[8:], 1)
	le.PutUint32(l[20:], 32)
	copy(l[24:], "LVM2 001")
	copy(l[32:], strings.Repeat("p", 32))
	le.PutUint64(l[64:], uint64(len(data)))
	le.PutUint64(l[72:], uint64(area+256<<10))
	le.PutUint64(l[104:], 4096)
	le.PutUint64(l[112:], uint64(area))
	le.PutUint32(l[16:], crc(l[20:]))
	h := data[4096 : 4096+512]
	copy(h[4:], "\x20LVM2\x20x[5A%r0N*>")
	le.PutUint32(h[20:], 1)
	le.PutUint64(h[24:], 4096)
	le.PutUint64(h[32:], uint64(area))
	le.PutUint64(h[40:], 512)
	le.PutUint64(h[48:], uint64(len(text)+1))
	le.PutUint32(h[56:], crc(append([]byte(text), 0)))
	copy(data[4096+512:4096+area], text)
	le.PutUint32(h, crc(h[4:]))
	return data
}

const fakeGroup = `vg { id = "g" seqno = 1 extent_size = 8 flags = []
physical_volumes { pv0 { id = "pppppp-pppp-pppp-pppp-pppp-pppp-pppppp" device = "/dev/x" pe_start = 1024 pe_count = 100 } }
logical_volumes { %s } }
# a comment
contents = "Text Format Volume Group"
description = "with \"quotes\" and \\"`

func lv(name, segments string) string {
	return fmt.Sprintf("%s { id = \"%[1]s\" status = [\"VISIBLE\"] segment_count = 1 segment1 { start_extent = 0 "+
		"extent_count = 2 %s } }\n", name, segments)
}

// What no tool would write is an error of the volume that it is in, or of the metadata, and never
// bytes.
func TestImpossibleMetadata(t *testing.T) {
	for _, tt := range []struct{ name, volume string }{
		{"beyond the physical volume", `type = "striped" stripe_count = 1 stripes = ["pv0", 99]`},
		{"on nothing", `type = "striped" stripe_count = 1 stripes = ["pv7", 0]`},
		{"on itself", `type = "striped" stripe_count = 1 stripes = ["x", 0]`},
		{"negative", `type = "striped" stripe_count = 1 stripes = ["pv0", -1]`},
		{"without stripes", `type = "striped" stripe_count = 1`},
		{"stripes without a size", `type = "striped" stripe_count = 2 stripes = ["pv0", 0, "pv0", 1]`},
		{"stripes of no length", `type = "striped" stripe_count = 2 stripe_size = 0 stripes = ["pv0", 0, "pv0", 1]`},
		{"count of stripes", `type = "striped" stripe_count = 9 stripe_size = 8 stripes = ["pv0", 0, "pv0", 1]`},
		{"raid1 without legs", `type = "raid1" raids = []`},
		{"raid1 of numbers", `type = "raid1" raids = [1, 2]`},
		{"unknown", `type = "woven"`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, volumes := assemble(t, fake(fmt.Sprintf(fakeGroup, lv("x", tt.volume)+lv("good", `type = "striped" stripe_count = 1 stripes = ["pv0", 3]`))))
			if v := volumes["x"]; v == nil || v.Err == nil {
				t.Errorf("%+v", v)
			}
			if v := volumes["good"]; v == nil || v.Err != nil || v.Size != 8192 {
				t.Errorf("its neighbour: %+v", v)
			}
		})
	}
	for name, text := range map[string]string{
		"empty": "", "no group": "x = 1", "two groups": fmt.Sprintf(fakeGroup, "") + " vg2 { id = \"g\" }",
		"cut off": "vg { id = \"x\"", "open string": "vg { id = \"x",
		"deep": strings.Repeat("x {", 5000), "list": "x = [ 1, 2", "twice": "vg { id = \"a\" id = \"b\" }",
		"no value": "vg { id = }",
		"overflow": `vg { id = "g" seqno = 1 extent_size = 8 physical_volumes { pv0 { id = "p" pe_start = 9223372036854775807 pe_count = 9223372036854775807 } } }`,
		"overlap":  fmt.Sprintf(fakeGroup, `x { segment_count = 2 segment1 { start_extent = 0 extent_count = 2 type = "zero" } segment2 { start_extent = 1 extent_count = 2 type = "zero" } }`),
	} {
		data := fake(text)
		pv, err := new(lvm.Reader).PV(bytes.NewReader(data), int64(len(data)))
		if err != nil || len(pv.Notes) != 1 || len(lvm.Assemble([]*lvm.PV{pv})) != 0 {
			t.Errorf("%s: %+v, %v", name, pv, err)
		}
	}
}

// Zeros need no disk; what others move from reads through a mirror that the tools hide.
func TestVolumesOfVolumes(t *testing.T) {
	data := fake(fmt.Sprintf(fakeGroup, lv("zero", `type = "zero"`)+lv("moving", `type = "striped" stripe_count = 1 stripes = ["pvmove0", 1]`)+
		`pvmove0 { id = "m" status = ["LOCKED"] segment_count = 1 segment1 { start_extent = 0 extent_count = 4 type = "mirror" mirrors = ["pv0", 5, "pv0", 20] } }`))
	for i := range 2 {
		copy(data[1024*512+(6+i)*4096:], fmt.Sprintf("moving %d\n", i))
	}
	_, volumes := assemble(t, data)
	check(t, volumes["moving"], "moving")
	got := bytes.Repeat([]byte{1}, 8192)
	if n, err := volumes["zero"].ReadAt(got, 0); n != len(got) || err != nil ||
		!bytes.Equal(got, make([]byte, len(got))) {
		t.Errorf("zeros: %d, %v", n, err)
	}
}

// Whatever the text says: no panic, no endless loop, and volumes that can be read cover what they
// say.
func FuzzMetadata(f *testing.F) {
	f.Add(fmt.Sprintf(fakeGroup, lv("x", `type = "striped" stripe_count = 2 stripe_size = 8 stripes = ["pv0", 0, "pv0", 1]`)))
	f.Add(fmt.Sprintf(fakeGroup, lv("x", `type = "mirror" mirrors = ["y", 0]`)+lv("y", `type = "striped" stripe_count = 1 stripes = ["x", 0]`)))
	f.Add(fmt.Sprintf(fakeGroup, lv("r", `type = "raid1" raids = ["x", "y"]`)))
	f.Fuzz(func(t *testing.T, text string) {
		if len(text) > 200<<10 {
			return
		}
		data := fake(text)
		pv, err := new(lvm.Reader).PV(bytes.NewReader(data), int64(len(data)))
		if err != nil {
			t.Fatal(err)
		}
		for _, g := range lvm.Assemble([]*lvm.PV{pv}) {
			for _, v := range g.Volumes {
				if v.Err != nil {
					continue
				}
				for _, off := range []int64{0, v.Size / 2, v.Size - 1} {
					if n, err := v.ReadAt(make([]byte, 1), max(off, 0)); n == 0 && err == nil {
						t.Fatalf("nothing of %s at %d of %d", v.Name, off, v.Size)
					}
				}
			}
		}
	})
}

func FuzzReadPV(f *testing.F) {
	f.Add(fake(fmt.Sprintf(fakeGroup, ""))[:8192])
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) >= 1024 {
			binary.LittleEndian.PutUint32(data[512+16:], crc(data[512+20:1024]))
		}
		pv, err := new(lvm.Reader).PV(bytes.NewReader(data), int64(len(data)))
		if err == nil {
			lvm.Assemble([]*lvm.PV{pv, pv})
		}
	})
}
