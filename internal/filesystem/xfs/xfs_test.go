package xfs

import (
	"math/rand/v2"
	"path/filepath"
	"strings"
	"testing"
)

// Whatever options a file system was made with, everything in it is as a mount shows it.
func TestReadsWhatTheKernelWrote(t *testing.T) {
	for _, tt := range []struct {
		name string
		args string
		many int
	}{
		{"default", "", 10000},
		{"all features", "-i nrext64=1,sparse=1 -m bigtime=1,rmapbt=1,inobtcount=1,reflink=1", 2000},
		{"large blocks of directories", "-n size=8192 -i size=2048", 3000},
		{"small blocks", "-b size=1024 -m bigtime=0", 10000},
		{"small blocks, large directory blocks", "-b size=1024 -n size=65536", 10000},
		{"few features", "-m finobt=0,reflink=0,bigtime=0,inobtcount=0 -i sparse=0", 1500},
		{"many groups, striped log", "-d agcount=5 -l version=2,su=256k,size=64m", 1500},
		{"two groups, large sectors", "-d agcount=2 -s size=4096 -i size=2048", 1500},
	} {
		t.Run(tt.name, func(t *testing.T) {
			image := filepath.Join(tempDir(t), "image")
			makeImage(t, image, 512<<20, append(strings.Fields(tt.args), "-L", "my label")...)
			dir, unmount := mount(t, image, "noatime")
			f := filler{t: t, dir: dir, rng: rand.New(rand.NewPCG(1, 2)), dirs: []int{8, 60, 700, tt.many}, last: 2600}
			f.all(!strings.Contains(tt.args, "reflink=0"))
			unmount()
			x := openImage(t, image)
			if len(x.Info().Notes) != 0 || x.Info().Label != "my label" || x.Info().Used <= 0 {
				t.Errorf("info %+v", x.Info())
			}
			got := walk(t, x)
			dir, unmount = mount(t, image, "ro,noatime")
			compare(t, tt.name, got, walkMount(t, dir))
			unmount()
		})
	}
}
