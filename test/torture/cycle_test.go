package torture

import (
	"testing"
	"time"

	"github.com/holdfast-vm/holdfast/internal/point"
	"github.com/holdfast-vm/holdfast/test/vm"
)

// A whole incremental cycle of a guest that writes: from the start of the process to its end, and
// as the point has it.
func BenchmarkCycle(b *testing.B) {
	for _, name := range []string{"qemu", "libvirt"} {
		b.Run(name, func(b *testing.B) {
			l := newLab(b, name == "libvirt", vm.Options{})
			l.backup("--consistency=crash")
			var took, best time.Duration
			for b.Loop() {
				b.StopTimer()
				l.writesGoOn(10)
				b.StartTimer()
				r := l.run(l.backupArgs("--consistency=crash")...)
				b.StopTimer()
				if r.Status() != 0 {
					b.Fatal(r)
				}
				p := decode[point.RecoveryPoint](b, r.Out.String())
				l.tracked(p, "vda", "vdb")
				took += time.Duration(p.Took * float64(time.Second))
				if best == 0 || r.Took < best {
					best = r.Took
				}
				b.StartTimer()
			}
			b.ReportMetric(took.Seconds()/float64(b.N), "took-s/op")
			b.ReportMetric(best.Seconds(), "best-s")
		})
	}
}
