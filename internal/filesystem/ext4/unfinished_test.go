package ext4

import (
	"fmt"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/filesystem"
)

// unfinished returns the inodes that the machine was about to cut or to remove when it stopped: the
// list that begins in the superblock, and the entries of the orphan file. A mount finishes that,
// and sets the times of those that still have a name to its own.
func unfinished(t testing.TB, f *FS) map[filesystem.ID]bool {
	t.Helper()
	raw := make([]byte, superblockSize)
	if err := f.disk.readAt(raw, superblockOffset); err != nil {
		t.Fatal(err)
	}
	all := map[filesystem.ID]bool{}
	for n := uint64(le32(raw, 0xE8)); n != 0 && !all[filesystem.ID(n)]; {
		all[filesystem.ID(n)] = true
		b, err := f.inodeBytes(n)
		if err != nil {
			t.Fatal(err)
		}
		n = uint64(le32(b, 0x14)) // where the time of its removal would stand
	}
	if n := uint64(le32(raw, 0x280)); n != 0 {
		addOrphans(t, f, n, all)
	}
	return all
}

// addOrphans adds what the orphan file names: in each block inode numbers, and 8 bytes of a tail.
func addOrphans(t testing.TB, f *FS, n uint64, all map[filesystem.ID]bool) {
	t.Helper()
	in, err := f.inode(n)
	if err != nil {
		t.Fatal(err)
	}
	file, err := f.data(in)
	if err != nil {
		t.Fatal(err)
	}
	block := make([]byte, f.sb.blockSize)
	for off := int64(0); off < file.Size(); off += int64(len(block)) {
		if _, err := file.ReadAt(block, off); err != nil {
			t.Fatal(err)
		}
		for at := 0; at < len(block)-8; at += 4 {
			if n := le32(block, at); n != 0 {
				all[filesystem.ID(n)] = true
			}
		}
	}
}

// sameTimes gives the files that a mount has finished the times that they had without it.
func sameTimes(mounted, without view, finished map[filesystem.ID]bool) {
	for path, m := range mounted {
		if w := without[path]; w != nil && finished[m.attr.ID] {
			m.attr.Modified, m.attr.Changed = w.attr.Modified, w.attr.Changed
		}
	}
}

// A file that the machine was cutting when it stopped is as short as it was to be, and its times
// are those that the machine gave it. Only a mount that writes can give it others.
func TestCuttingUnfinished(t *testing.T) {
	if !mayMount() {
		t.Log("only root with loop devices can compare with the kernel")
		return
	}
	image := makeImage(t, 16<<20, "-t", "ext4", "-J", "size=4")
	dir, unmount := mounted(t, image, "")
	if err := writeSome(dir+"/cut", make([]byte, 50_000), 0, true); err != nil {
		t.Fatal(err)
	}
	before := mountView(t, dir)["/cut"].attr
	unmount()
	begin(t, image, uint64(before.ID), 20_000)
	f := opened(t, image)
	if left := unfinished(t, f); len(left) != 1 || !left[before.ID] {
		t.Fatalf("unfinished is %v", left)
	}
	got := viewOf(t, f)["/cut"].attr
	if got.Size != 20_000 || !got.Modified.Equal(before.Modified) || !got.Changed.Equal(before.Changed) {
		t.Errorf("of %+v we see %+v", before, got)
	}
	compareAfterCrash(t, image)
}

// begin makes an image what it is between the two steps of cutting a file.
func begin(t *testing.T, image string, inode uint64, size int) {
	t.Helper()
	command(t, "debugfs", "-w", "-R", fmt.Sprintf("set_inode_field <%d> size %d", inode, size), image)
	command(t, "debugfs", "-w", "-R", fmt.Sprintf("set_super_value last_orphan %d", inode), image)
}
