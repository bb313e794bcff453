package lvm_test

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/filesystem"
	"github.com/holdfast-vm/holdfast/internal/filesystem/lvm"
)

// Volumes become directories of a mount and paths on the command line: names that LVM would not
// give are none.
func TestNamesThatAreNone(t *testing.T) {
	for _, name := range []string{"..", ".", "a/b", "-x", "red\x1b[31m", "größe", strings.Repeat("n", 128)} {
		for what, text := range map[string]string{
			"volume": fmt.Sprintf(fakeGroup, lv(name, `type = "zero"`)),
			"group":  strings.Replace(fmt.Sprintf(fakeGroup, lv("x", `type = "zero"`)), "vg {", name+" {", 1),
		} {
			pv := readPV(t, fake(text))
			if len(pv.Notes) != 1 || len(lvm.Assemble([]*lvm.PV{pv})) != 0 {
				t.Errorf("a %s called %q: %+v", what, name, pv)
			}
		}
	}
}

// A volume may be made of volumes that are made of volumes. Work is bounded, for all groups
// together, and what needs no more of it is read.
func TestVolumesWithoutEnd(t *testing.T) {
	var pvs []*lvm.PV
	var r lvm.Reader
	for g := range 8 {
		var text strings.Builder
		text.WriteString(lv("a-good", `type = "zero"`))
		size := 2                 // extents
		for i := 6; i >= 0; i-- { // each is twenty times the next: 20^7
			fmt.Fprintf(&text, "v%d { id = \"v\" status = [\"VISIBLE\"] segment_count = 20\n", i)
			for s := range 20 {
				fmt.Fprintf(&text, "segment%d { start_extent = %d extent_count = %d type = \"striped\" stripe_count "+
					"= 1 stripes = [\"v%d\", 0] }\n",
					s+1, s*size, size, i+1)
			}
			text.WriteString("}\n")
			size *= 20
		}
		text.WriteString(lv("v7", `type = "zero"`))
		data := fake(strings.Replace(fmt.Sprintf(fakeGroup, text.String()), `id = "g"`, fmt.Sprintf(`id = "g%d"`, g), 1))
		pv, err := r.PV(bytes.NewReader(data), int64(len(data)))
		if err != nil || len(pv.Notes) > 0 {
			t.Fatalf("%v, %q", err, pv.Notes)
		}
		pvs = append(pvs, pv)
	}
	refused, good := 0, 0
	for _, g := range lvm.AssembleWithin(pvs, 10_000) {
		for _, v := range g.Volumes {
			switch {
			case v.Name == "a-good" && v.Err == nil:
				good++
			case errors.Is(v.Err, filesystem.ErrUnsupported) && strings.Contains(v.Err.Error(), "too many times"):
				refused++
			}
		}
	}
	if good == 0 || refused < 8 {
		t.Errorf("%d volumes were refused, and %d beside them read", refused, good)
	}
}

// What many disks say alike is kept once; what they say each for itself has a limit.
func TestMuchMetadata(t *testing.T) {
	text := func(i int) string {
		return strings.Replace(fmt.Sprintf(fakeGroup, lv("x", `type = "zero"`)), `id = "g"`, fmt.Sprintf(`id = "g%d"`, i), 1)
	}
	r := lvm.NewReader(int64(3 * len(text(0))))
	for i := range 10 {
		data := fake(text(min(i/5, 1)))
		if pv, err := r.PV(bytes.NewReader(data), int64(len(data))); err != nil || len(pv.Notes) != 0 {
			t.Fatalf("%v, %q", err, pv.Notes)
		}
	}
	for i := 2; i < 5; i++ {
		data := fake(text(i))
		pv, err := r.PV(bytes.NewReader(data), int64(len(data)))
		if err != nil {
			t.Fatal(err)
		}
		if refused := len(pv.Notes) == 1 && strings.Contains(pv.Notes[0],
			"the metadata of all groups has more than"); refused != (i >= 3) {
			t.Errorf("text %d: %q", i, pv.Notes)
		}
	}
}
