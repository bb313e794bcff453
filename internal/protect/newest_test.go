package protect

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/holdfast-vm/holdfast/internal/hypervisor"
	"github.com/holdfast-vm/holdfast/internal/point"
)

// What is found of a machine or of images in the points that a filter takes is what is found in
// all.
func TestNewestAreEnough(t *testing.T) {
	m := hypervisor.Machine{Name: "a", UUID: "u"}
	for seed := range uint64(300) {
		rng := rand.New(rand.NewPCG(seed, 9))
		var points []*point.RecoveryPoint
		for range rng.IntN(40) {
			p := &point.RecoveryPoint{ID: point.NewID(), Time: time.Unix(int64(rng.IntN(30)), 0), VM: "a",
				MachineUUID: "u"}
			switch rng.IntN(4) {
			case 0:
				p.Kind = point.Snapshot
			case 1:
				p.Definition.Kind, p.MachineUUID = point.OnlyDisks, ""
			case 2:
				p.VM, p.MachineUUID = "b", "v"
			}
			for n := range rng.IntN(4) {
				d := point.Disk{Name: fmt.Sprint("vd", n), Root: fmt.Sprint(rng.Uint64())}
				if rng.IntN(2) == 0 {
					d.Bitmap = fmt.Sprint("record", rng.IntN(6))
				}
				if rng.IntN(3) == 0 {
					d.ManagedID = fmt.Sprint("m", rng.IntN(3))
				}
				p.Disks = append(p.Disks, d)
			}
			points = append(points, p)
		}
		some := func(takes func(*point.RecoveryPoint) bool) []*point.RecoveryPoint {
			taken := slices.DeleteFunc(slices.Clone(points), func(p *point.RecoveryPoint) bool { return !takes(p) })
			slices.SortFunc(taken, point.ByTime)
			return taken
		}
		live, images := some(newestOf(m)), some(newestOfImages(ImageRequest{Name: "a"}))
		disks := []ManagedDisk{{Name: "one", ID: "m1"}, {Name: "two", ID: "m2"}, {Name: "new"}}
		managed := some(newestOfImages(ImageRequest{Name: "s", Managed: disks}))
		slices.SortFunc(points, point.ByTime)
		for what, pair := range map[string][2]any{
			"records": {recordsOf(live, m), recordsOf(points, m)},
			"lineage": {lineageOf(live, m), lineageOf(points, m)},
			"snapshots lineage": {snapshotLineage(live, m, []string{"vd0", "vd2"}),
				snapshotLineage(points, m, []string{"vd0", "vd2"})},
			"images":        {imageLineage(images, "a"), imageLineage(points, "a")},
			"managed disks": {managedLineage(managed, disks), managedLineage(points, disks)},
		} {
			if !reflect.DeepEqual(pair[0], pair[1]) {
				t.Fatalf("seed %d: %s: of the newest\n%+v, of all\n%+v", seed, what, pair[0], pair[1])
			}
		}
	}
}
