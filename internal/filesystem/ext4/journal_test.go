package ext4

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/filesystem"
)

// Whatever byte of a journal with checksums is changed: what is read is as if the log ended at some
// transaction, or is an error.
func TestJournalDamage(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	f := &filler{t: t, dir: dir, rng: rand.New(rand.NewPCG(3, 9))}
	f.file("file", 60<<10)
	path := makeImage(t, 8<<20, "-t", "ext4", "-b", "1024", "-J", "size=1", "-O", "^64bit,^resize_inode", "-d", dir)
	debug(t, path, transactions(t, f, blocksOfFile(t, opened(t, path), "file"), "-c -v 3")...)
	image, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	log := journalBytes(t, opened(t, path))
	allowed := map[string]bool{}
	commits := 0
	for _, at := range log {
		if be32(image, at) != journalMagic || be32(image, at+4) != journalCommit {
			continue
		}
		commits++
		image[at] ^= 1
		content, err := fileIn(t, image)
		if err != nil {
			t.Fatal(err)
		}
		allowed[content] = true
		image[at] ^= 1
	}
	whole, err := fileIn(t, image)
	if err != nil || commits < 5 {
		t.Fatalf("%d commits: %v", commits, err)
	}
	allowed[whole] = true
	checkJournalDamage(t, image, log[:200], allowed)
}

func checkJournalDamage(t *testing.T, image []byte, log []int, allowed map[string]bool) {
	rng := rand.New(rand.NewPCG(6, 6))
	refused := 0
	for range 600 {
		at := log[rng.IntN(len(log))] + rng.IntN(1024)
		if rng.IntN(2) == 0 {
			at = at&^1023 + rng.IntN(64) // where headers and tags are
		}
		old := image[at]
		image[at] ^= byte(1 + rng.IntN(255))
		switch content, err := fileIn(t, image); {
		case err == nil && !allowed[content]:
			t.Fatalf("byte %d changed from %d to %d: the file is as it never was", at, old, image[at])
		case err != nil && !errors.Is(err, filesystem.ErrCorrupt) && !errors.Is(err, filesystem.ErrUnsupported):
			t.Fatalf("byte %d changed: %v", at, err)
		case err != nil:
			refused++
		}
		image[at] = old
	}
	if refused == 0 {
		t.Error("no change was noticed")
	}
}

// journalBytes returns where on disk the blocks of the journal are.
func journalBytes(t *testing.T, f *FS) (list []int) {
	t.Helper()
	in, err := f.inode(f.sb.journalInode)
	if err != nil {
		t.Fatal(err)
	}
	m := &blockMap{fs: f, in: in}
	for n := range f.blocksOf(in.size) {
		r, err := m.at(n)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, int(r.phys)*int(f.sb.blockSize))
	}
	return list
}

func fileIn(t *testing.T, image []byte) (string, error) {
	t.Helper()
	f, err := Open(bytes.NewReader(image), int64(len(image)))
	if err != nil {
		return "", err
	}
	return string(contentOf(t, f, "file")), nil
}

// Edits of a mapping, in whatever order, leave for each block what the last of them says.
func TestEditsOfMapping(t *testing.T) {
	const blocks = 60
	rng := rand.New(rand.NewPCG(2, 2))
	for range 2000 {
		l := &leaf{lo: 5, hi: 50}
		want := map[uint64]run{}
		mark := func(r run, removed bool) {
			for i := range r.count {
				want[r.start+i] = run{start: r.start + i, count: 1, phys: r.phys + i, hole: r.hole || removed}
			}
		}
		for at := l.lo; at < l.hi; {
			r := run{start: at, count: min(1+rng.Uint64N(8), l.hi-at), phys: 1000 + rng.Uint64N(1000),
				hole: rng.IntN(4) == 0}
			if rng.IntN(3) > 0 {
				l.add(r)
				mark(r, false)
			}
			at = r.end()
		}
		s := &fastState{}
		for range rng.IntN(10) {
			start := rng.Uint64N(blocks)
			e := fastEdit{run: run{start: start, count: rng.Uint64N(blocks - start), phys: 5000 + rng.Uint64N(1000)},
				removed: rng.IntN(3) == 0}
			s.replace(e)
			mark(e.run, e.removed)
		}
		got := l.edited(s.edits)
		for b := l.lo; b < l.hi; b++ {
			r, w := got.at(b), want[b]
			if hole := w.count == 0 || w.hole; r.hole != hole || !hole && r.phys != w.phys {
				t.Fatalf("block %d is at %+v, want %+v, after %+v", b, r, w, s.edits)
			}
		}
	}
}

// The cache keeps no more than it may, and what it gives is right.
func TestCacheIsBounded(t *testing.T) {
	const chunks = 3 * maxChunks
	data := make([]byte, chunks*chunkSize)
	for n := range chunks {
		copy(data[n*chunkSize:], fmt.Sprint(n))
	}
	d := newDisk(bytes.NewReader(data), int64(len(data)))
	d.blockSize = 4096
	rng := rand.New(rand.NewPCG(1, 1))
	for range 5000 {
		n := rng.IntN(chunks)
		b, err := d.block(uint64(n) * chunkSize / 4096)
		if err != nil || !bytes.HasPrefix(b, append(fmt.Append(nil, n), 0)) {
			t.Fatalf("chunk %d is %q, %v", n, b[:8], err)
		}
		if len(d.chunks) > maxChunks || d.recent.Len() != len(d.chunks) {
			t.Fatalf("%d chunks are kept, %d in order", len(d.chunks), d.recent.Len())
		}
	}
}
