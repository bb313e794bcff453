package ext4

import (
	"testing"

	"golang.org/x/sys/unix"
)

// variants are the kinds of file systems that the kernel fills and our reader is compared on.
var variants = []struct {
	name    string
	size    int64 // bytes
	entries int   // of the large directory
	mount   string
	options []string
	kind    string
}{
	{"ext4", 96 << 20, 10000, "", []string{"-t", "ext4"}, "ext4"},
	{"ext4 of 1 KiB blocks", 96 << 20, 600, "", []string{"-t", "ext4", "-b", "1024"}, "ext4"},
	{"ext4 with data in inodes", 96 << 20, 600, "", []string{"-t", "ext4", "-O", "inline_data", "-I", "256"}, "ext4"},
	{"ext4 with data in large inodes", 96 << 20, 300, "",
		[]string{"-t", "ext4", "-O", "inline_data,ea_inode", "-I", "1024", "-b", "4096"}, "ext4"},
	{"ext4 without checksums and 64 bits", 96 << 20, 300, "",
		[]string{"-t", "ext4", "-O", "^metadata_csum,^64bit,^flex_bg"}, "ext4"},
	{"ext4 with group checksums", 96 << 20, 300, "",
		[]string{"-t", "ext4", "-O", "^metadata_csum,uninit_bg,^resize_inode", "-G", "4"}, "ext4"},
	{"ext4 with meta_bg", 300 << 20, 300, "",
		[]string{"-t", "ext4", "-O", "meta_bg,^resize_inode,metadata_csum_seed,orphan_file", "-b", "1024", "-g",
			"1024"}, "ext4"},
	{"ext4 with bigalloc", 96 << 20, 300, "",
		[]string{"-t", "ext4", "-O", "bigalloc,ea_inode,large_dir,sparse_super2,^resize_inode", "-b", "1024", "-C",
			"8192"}, "ext4"},
	{"ext4 with all else", 96 << 20, 300, "",
		[]string{"-t", "ext4", "-O", "encrypt,verity,mmp,stable_inodes,^has_journal"}, "ext4"},
	{"ext4 with data in the journal", 96 << 20, 300, "data=journal", []string{"-t", "ext4"}, "ext4"},
	{"ext4 without types in directories", 96 << 20, 600, "", []string{"-t", "ext4", "-O", "^filetype,^dir_index"},
		"ext4"},
	{"ext3", 96 << 20, 600, "", []string{"-t", "ext3", "-I", "128"}, "ext3"},
	{"ext2", 96 << 20, 600, "", []string{"-t", "ext2", "-b", "1024"}, "ext2"},
	{"ext2 of revision 0", 96 << 20, 300, "", []string{"-t", "ext2", "-r", "0", "-b", "4096"}, "ext2"},
}

// What the kernel wrote, our reader shows as the kernel does.
func TestKernelCorpus(t *testing.T) {
	if !mayMount() {
		t.Log("only root with loop devices can compare with the kernel")
		return
	}
	for _, v := range variants {
		t.Run(v.name, func(t *testing.T) {
			t.Parallel()
			image := makeImage(t, v.size, append(v.options, "-L", "holdfast", "-U",
				"01234567-89ab-cdef-0123-456789abcdef")...)
			dir, unmount := mounted(t, image, v.mount)
			fill(t, dir, v.entries)
			unmount()

			dir, unmount = mounted(t, image, "ro,noatime")
			want := mountView(t, dir)
			f := opened(t, image)
			sameViews(t, viewOf(t, f), want, true)
			var st unix.Statfs_t
			if err := unix.Statfs(dir, &st); err != nil {
				t.Fatal(err)
			}
			unmount()
			if info, free := f.Info(), int64(st.Bfree)*st.Bsize; info.Size-info.Used != free || len(info.Notes) != 0 {
				t.Errorf("%d bytes are free, want %d; notes %q", info.Size-info.Used, free, info.Notes)
			}
			if sum, err := f.countFree(); err != nil || int64(sum) != int64(st.Bfree) {
				t.Errorf("groups have %d free blocks, want %d: %v", sum, st.Bfree, err)
			}
			if info := f.Info(); info.Type != v.kind || info.Label != "holdfast" ||
				info.UUID != "01234567-89ab-cdef-0123-456789abcdef" || info.Size != v.size {
				t.Errorf("Info is %+v", info)
			}
		})
	}
}
