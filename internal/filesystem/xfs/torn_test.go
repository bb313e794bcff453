package xfs

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// seeds returns those of the rounds of a random test, the last of which nobody has seen before.
func seeds(t testing.TB, usual int) []uint64 {
	t.Helper()
	var list []uint64
	for seed := range uint64(rounds(t, usual)) {
		list = append(list, seed)
	}
	if len(list) > 0 {
		list[len(list)-1] = rand.Uint64()
	}
	t.Logf("seeds %v", list)
	return list
}

// Whatever a disk that loses power keeps of what it was not told to keep, sector by sector, what is
// read is what a mount shows.
func TestPowerFails(t *testing.T) {
	dir := store(t)
	seen, refused := map[verdict]int{}, 0
	for _, seed := range seeds(t, 2) {
		rng := rand.New(rand.NewPCG(seed, 9))
		options := crashOptions[seed%uint64(len(crashOptions))]
		empty := filepath.Join(dir, fmt.Sprintf("empty%d", seed))
		makeImage(t, empty, 100<<20, strings.Fields(options.mkfs)...)
		isLog := logOf(t, empty)
		events := recordUse(t, rng, empty, options.mkfs, options.mount, isLog)
		for n := range waysToLose {
			// Most of what the first events did is in the log's first round.
			at, way := len(events)/3+rng.IntN(len(events)*2/3)+1, n
			image := filepath.Join(dir, fmt.Sprintf("failed%d.%d", seed, n))
			clone(t, empty, image)
			cutPower(t, rng, image, events[:at], way, isLog)
			v := judge(t, image)
			seen[v]++
			what := fmt.Sprintf("seed %d, made with %+v, power failed after %d of %d writes and flushes, way %d", seed,
				options, at, len(events), way)
			// A block torn in place is more than the log of XFS can mend, as long as the block says
			// that it is newer.
			stricter := way == tearsSectors && v.doubted
			if v.differs || !v.refused && v.damaged != v.doubted && !stricter {
				t.Fatalf("%s: %+v", what, v)
			}
			if v.refused && way != tearsSectors {
				refused++
			}
			remove(t, []string{image})
		}
		remove(t, []string{empty})
	}
	t.Logf("%+v", seen)
	if refused > seen[verdict{}] {
		t.Errorf("Linux refused %d images that an honest disk makes", refused)
	}
}

// logOf returns what says whether a byte of an image is in its log.
func logOf(t testing.TB, image string) func(off int64) bool {
	t.Helper()
	j, err := openImage(t, image).journal()
	if err != nil {
		t.Fatal(err)
	}
	return func(off int64) bool { return off >= j.start && off < j.start+j.blocks*basicBlock }
}

// recordUse returns what a disk is told while a file system on it is used, until the log went round
// once at most.
func recordUse(t testing.TB, rng *rand.Rand, empty, mkfs, options string, isLog func(int64) bool) []diskEvent {
	t.Helper()
	image := empty + "used"
	clone(t, empty, image)
	file, err := os.OpenFile(image, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		t.Fatal(err)
	}
	r, disk := record(t, file, info.Size())
	dir, unmount := mount(t, disk, "noatime,"+options)
	b := busy{dir: dir, rng: rng, fsr: strings.Contains(mkfs, "rmapbt=1")}
	for want := rng.Int64N(8 << 20); b.done < 40 || b.done < 300 && r.written(isLog) < want; {
		b.step()
	}
	crash(t, dir, rng.IntN(2) == 0)
	unmount()
	remove(t, []string{image})
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.events) // another program may have a copy of the mount
}

func cutPower(t testing.TB, rng *rand.Rand, image string, events []diskEvent, way int, isLog func(int64) bool) {
	t.Helper()
	file, err := os.OpenFile(image, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	powerFails(t, rng, file, events, way, isLog)
}

// verdict says how an image is read by Linux and by this package. The zero value is: both the same,
// all of it.
type verdict struct {
	refused bool // Linux does not mount it
	damaged bool // Linux mounts it and cannot read something
	doubted bool // this package refuses it, or something in it
	differs bool // both read all of it, and differ
}

// judge compares what is read of an image with what a mount shows, if it can be mounted.
func judge(t testing.TB, image string) (v verdict) {
	t.Helper()
	got, err := lookImage(t, image)
	if v.doubted = err != nil; v.doubted {
		t.Logf("here: %v", err)
	}
	dir, err := tryMount(t, image, "noatime")
	if v.refused = err != nil; v.refused {
		t.Logf("Linux: %v", err)
		return v
	}
	want, err := lookMount(dir)
	if v.damaged = err != nil; v.damaged {
		t.Logf("Linux: %v", err)
	}
	if !v.damaged && !v.doubted {
		compare(t, image, got, want)
		v.differs = t.Failed()
	}
	poll(t, func() error { return unmountAll(dir) })
	return v
}

func lookImage(t testing.TB, image string) (tree, error) {
	t.Helper()
	file, err := os.Open(image)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		t.Fatal(err)
	}
	x, err := Open(file, info.Size())
	if err != nil {
		return nil, err
	}
	return look(x)
}

// A disk that loses sectors of the log that it was told to keep, which no crash of an honest one
// does, is read as a mount shows it or not at all.
func TestTornLogs(t *testing.T) {
	dir := store(t)
	seen := map[verdict]int{}
	for _, seed := range seeds(t, 2) {
		rng := rand.New(rand.NewPCG(seed, 8))
		options := crashOptions[seed%uint64(len(crashOptions))]
		images := crashes(t, rng, filepath.Join(dir, fmt.Sprint(seed)), options.mkfs, options.mount)
		for n := range 3 {
			torn := filepath.Join(dir, fmt.Sprintf("torn%d.%d", seed, n))
			clone(t, images[len(images)-1], torn)
			lost := tear(t, rng, torn, images[0])
			v := judge(t, torn)
			seen[v]++
			if v.differs || v.damaged && !v.doubted {
				t.Fatalf("seed %d.%d, made with %+v, without sectors %v of the log: %+v", seed, n, options, lost, v)
			}
			remove(t, []string{torn})
		}
		remove(t, images)
	}
	t.Logf("%+v", seen)
}

// tear replaces some of the sectors that may have been in flight when image was taken, and returns
// which.
func tear(t testing.TB, rng *rand.Rand, image, older string) []int64 {
	t.Helper()
	x := openImage(t, image)
	j, err := x.journal()
	if err != nil {
		t.Fatal(err)
	}
	head, err := j.head()
	if err != nil || head < 0 {
		t.Fatalf("head of the log at %d: %v", head, err)
	}
	first := head
	for range 1 + rng.IntN(maxInFlight-1) {
		r, err := j.lastBefore(first, j.blocks)
		if err != nil {
			t.Fatal(err)
		}
		first = r.at
	}
	file, err := os.OpenFile(image, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	old, err := os.Open(older)
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	var lost []int64
	garbage := rng.IntN(4) == 0
	for range 1 + rng.IntN(4) {
		at := (first + rng.Int64N(j.distance(first, head))) % j.blocks
		sector := pattern(rng, basicBlock)
		if !garbage {
			if _, err := old.ReadAt(sector, j.start+at*basicBlock); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := file.WriteAt(sector, j.start+at*basicBlock); err != nil {
			t.Fatal(err)
		}
		lost = append(lost, at)
	}
	return lost
}
