package xfs

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Sectors of the last records that did not get to the disk, or came out as something else, cost what they cost a mount. Only the long runs that
// HOLDFAST_ROUNDS asks for tear logs: Linux decides otherwise now and then, and which of both is right is not settled.
func TestTornLogs(t *testing.T) {
	asked := rounds(t, 0)
	if asked == 0 {
		return
	}
	dir := store(t)
	mounted := 0
	for seed := range uint64(asked) {
		rng := rand.New(rand.NewPCG(seed, 8))
		options := crashOptions[seed%uint64(len(crashOptions))]
		images := crashes(t, rng, filepath.Join(dir, fmt.Sprint(seed)), options.mkfs, options.mount)
		for n := range 3 {
			torn := filepath.Join(dir, fmt.Sprintf("torn%d.%d", seed, n))
			clone(t, images[len(images)-1], torn)
			lost := tear(t, rng, torn, images[0])
			what := fmt.Sprintf("seed %d.%d, made with %+v, without sectors %v of the log", seed, n, options, lost)
			if compareTorn(t, what, torn) {
				mounted++
			}
			if t.Failed() {
				t.FailNow()
			}
		}
		remove(t, images)
	}
	if mounted == 0 {
		t.Error("Linux mounted none of the images")
	}
}

// tear replaces some of the sectors that may have been in flight when image was taken, and returns which.
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

// compareTorn compares what is read of an image with what a mount shows, if it can be mounted, and says whether it can.
func compareTorn(t testing.TB, what, image string) bool {
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
	x, openErr := Open(file, info.Size())
	got := tree{}
	if openErr == nil {
		got = walk(t, x)
	}
	dir, err := tryMount(t, image, "noatime")
	if err != nil {
		if openErr == nil {
			t.Logf("%s: read, but %v", what, strings.TrimSpace(err.Error()))
		}
		return false
	}
	if openErr != nil {
		t.Errorf("%s: Linux mounts it, but %v", what, openErr)
	} else {
		compare(t, what, got, walkMount(t, dir))
	}
	poll(t, func() error { return unmountAll(dir) })
	return true
}
