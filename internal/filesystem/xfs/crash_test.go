package xfs

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// rounds returns how often a random test is repeated.
func rounds(t testing.TB, usual int) int {
	t.Helper()
	s := os.Getenv("HOLDFAST_ROUNDS")
	if s == "" {
		return usual
	}
	n, err := strconv.Atoi(s)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// store is a mounted file system that can copy images at an instant, while they are written.
func store(t testing.TB) string {
	t.Helper()
	image := filepath.Join(tempDir(t), "store")
	makeImage(t, image, 8<<30)
	dir, _ := mount(t, image, "noatime")
	return dir
}

func clone(t testing.TB, from, to string) {
	t.Helper()
	src, err := os.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	dst, err := os.Create(to)
	if err != nil {
		t.Fatal(err)
	}
	defer dst.Close()
	if err := unix.IoctlFileClone(int(dst.Fd()), int(src.Fd())); err != nil {
		t.Fatalf("copy %s at an instant: %v", from, err)
	}
}

var crashOptions = []struct{ mkfs, mount string }{
	{"", ""},
	{"-m rmapbt=1 -i nrext64=1", "logbsize=256k"},
	{"-b size=1024 -n size=4096 -m bigtime=0,reflink=0", "logbsize=64k"},
	{"-l su=32k -i size=2048 -m reflink=1", "logbsize=128k"},
	{"-m finobt=0,reflink=0 -i sparse=0 -d agcount=2", "logbufs=2"},
	{"-b size=1024 -n size=65536 -l su=256k", "logbsize=256k"},
}

// Wherever a crash falls, what is read is what a mount shows that replays the log.
func TestReplaysAsTheKernelDoes(t *testing.T) {
	dir := store(t)
	total, replayed, refused := 0, 0, 0
	for seed := range uint64(rounds(t, 2)) {
		rng := rand.New(rand.NewPCG(seed, 7))
		options := crashOptions[seed%uint64(len(crashOptions))]
		images := crashes(t, rng, filepath.Join(dir, fmt.Sprint(seed)), options.mkfs, options.mount)
		for _, image := range images {
			what := fmt.Sprintf("seed %d, %s", seed, filepath.Base(image))
			total++
			switch compareReplay(t, what, image) {
			case sameReplayed:
				replayed++
			case kernelRefused:
				refused++
			}
			if t.Failed() {
				t.Fatalf("%s, made with %+v", what, options)
			}
		}
		remove(t, images)
	}
	if replayed*2 < total || refused*4 > total {
		t.Errorf("of %d images, %d were replayed, and %d refused by the kernel", total, replayed, refused)
	}
}

// crashes returns images of a file system in use, as they were at random moments. Their names begin
// with a path that was not used before: some other program may still have a copy of what was
// mounted and unmounted here.
func crashes(t testing.TB, rng *rand.Rand, path, mkfs, options string) []string {
	t.Helper()
	image := path + "image"
	makeImage(t, image, 100<<20, strings.Fields(mkfs)...)
	dir, unmount := mount(t, image, "noatime,nodev,"+options)
	// Without a reverse map, Linux cannot replay such exchanges: it checks a checksum before it
	// has computed it.
	b := busy{dir: dir, rng: rng, fsr: strings.Contains(mkfs, "rmapbt=1")}
	var images []string
	for n := range 2 {
		for want := b.done + 5 + rng.IntN(80); b.done < want; {
			b.step()
		}
		copied := fmt.Sprintf("%scopy%d", path, n)
		clone(t, image, copied)
		images = append(images, copied)
	}
	crash(t, dir, rng.IntN(2) == 0)
	unmount()
	return append(images, image)
}

func remove(t testing.TB, images []string) {
	t.Helper()
	for _, image := range images {
		if err := os.Remove(image); err != nil {
			t.Fatal(err)
		}
	}
}

type outcome int

const (
	sameClean outcome = iota
	sameReplayed
	kernelRefused
)

// compareReplay compares what is read of an image with what a mount of it shows. Some images Linux
// itself gives up on.
func compareReplay(t testing.TB, what, image string) outcome {
	t.Helper()
	x := openImage(t, image)
	got := walk(t, x)
	dir, err := tryMount(t, image, "noatime")
	if err != nil {
		t.Logf("%s: %v", what, err)
		return kernelRefused
	}
	compare(t, what, got, walkMount(t, dir))
	poll(t, func() error { return unmountAll(dir) })
	if len(x.Info().Notes) > 0 {
		return sameReplayed
	}
	return sameClean
}
