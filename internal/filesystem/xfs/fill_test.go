package xfs

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// filler makes files of all kinds below a mounted directory.
type filler struct {
	t    testing.TB
	dir  string
	rng  *rand.Rand
	dirs []int // entries of directories
	last int   // extents of the file with most
}

func (f *filler) path(name string) string { return filepath.Join(f.dir, name) }

func (f *filler) must(what string, err error) {
	f.t.Helper()
	if err != nil {
		f.t.Fatalf("%s: %v", what, err)
	}
}

// bytes returns data that is different everywhere and packs well.
func (f *filler) bytes(n int) []byte { return pattern(f.rng, n) }

func pattern(rng *rand.Rand, n int) []byte {
	b := make([]byte, 0, n+8)
	for word := rng.Uint64(); len(b) < n; {
		b = binary.LittleEndian.AppendUint64(b, word)
		if len(b)%basicBlock == 0 {
			word++
		}
	}
	return b[:n]
}

// file makes a file and writes parts of it.
func (f *filler) file(name string, size int64, parts map[int64]int) {
	f.t.Helper()
	file, err := os.Create(f.path(name))
	f.must("create", err)
	defer file.Close()
	for off, n := range parts {
		_, err := file.WriteAt(f.bytes(n), off)
		f.must("write", err)
	}
	f.must("truncate", file.Truncate(size))
}

func (f *filler) fallocate(name string, mode uint32, off, n int64) {
	f.t.Helper()
	file, err := os.OpenFile(f.path(name), os.O_RDWR, 0)
	f.must("open", err)
	defer file.Close()
	f.must("fallocate", unix.Fallocate(int(file.Fd()), mode, off, n))
}

func (f *filler) all(reflink bool) {
	f.files()
	f.names()
	f.specials()
	f.xattrs()
	f.fragments()
	if reflink {
		f.reflinks()
	}
}

func (f *filler) files() {
	f.file("empty", 0, nil)
	f.file("one", 1, map[int64]int{0: 1})
	f.file("odd", 123457, map[int64]int{0: 123457})
	f.file("sparse", 9<<20, map[int64]int{0: 5000, 4 << 20: 70000, 9<<20 - 3: 3})
	f.file("hole first", 3<<20+77, map[int64]int{2 << 20: 1<<20 + 77})
	f.file("only hole", 5<<20+1, nil)
	f.file("huge", 6<<40, map[int64]int{5 << 30: 4096, 6<<40 - 100: 100})
	f.file("preallocated", 100, map[int64]int{0: 100})
	f.fallocate("preallocated", 0, 0, 1<<20)
	f.file("kept size", 100, map[int64]int{0: 100})
	f.fallocate("kept size", unix.FALLOC_FL_KEEP_SIZE, 0, 1<<20)
	f.file("punched", 1<<20, map[int64]int{0: 1 << 20})
	f.fallocate("punched", unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 100000, 300000)
	f.file("zeroed", 1<<20, map[int64]int{0: 1 << 20})
	f.fallocate("zeroed", unix.FALLOC_FL_ZERO_RANGE, 65536, 131072)
}

func (f *filler) names() {
	f.must("mkdir", os.Mkdir(f.path("ünïcödé"), 0o2751))
	for i, name := range []string{"snow☃man", "日本語", "e\u0301", "\xff\xfe not utf-8", strings.Repeat("n", 255),
		"new\nline", "-"} {
		f.file("ünïcödé/"+name, int64(i), map[int64]int{0: i})
	}
	f.must("mkdir", os.Mkdir(f.path("empty dir"), 0o1777))
	for _, n := range f.dirs {
		dir := fmt.Sprintf("dir%d", n)
		f.must("mkdir", os.Mkdir(f.path(dir), 0o755))
		for i := range n {
			name := fmt.Sprintf("%s/%0*d", dir, 4+i%29, i)
			if i == 0 {
				f.file(name, 0, nil)
				continue
			}
			f.must("link", os.Link(f.path(fmt.Sprintf("%s/%04d", dir, 0)), f.path(name)))
		}
		for i := 1; i < n; i += 7 { // leaves gaps in the blocks
			f.must("remove", os.Remove(f.path(fmt.Sprintf("%s/%0*d", dir, 4+i%29, i))))
		}
	}
}

func (f *filler) specials() {
	for _, n := range []int{1, 30, 300, 700, 1000, 1023} {
		f.must("symlink", os.Symlink(strings.Repeat("x/", n)[:n], f.path(fmt.Sprintf("link%d", n))))
	}
	for name, mode := range map[string]uint32{"fifo": unix.S_IFIFO, "socket": unix.S_IFSOCK, "char": unix.S_IFCHR,
		"block": unix.S_IFBLK} {
		f.must("mknod", unix.Mknod(f.path(name), mode|0o640, int(unix.Mkdev(259, 70000))))
	}
	f.file("owned", 10, map[int64]int{0: 10})
	f.must("chown", os.Chown(f.path("owned"), 4000000000, 70000))
	f.must("chmod", unix.Chmod(f.path("owned"), 0o6755))
	f.must("utimes", os.Chtimes(f.path("owned"), time.Unix(1, 2), time.Unix(1234567890, 123456789)))
	f.file("old", 0, nil)
	f.must("utimes", os.Chtimes(f.path("old"), time.Unix(-5, 7), time.Unix(-1<<31+5, 999999999)))
	f.file("future", 0, nil)
	// without bigtime the kernel clamps it
	f.must("utimes", os.Chtimes(f.path("future"), time.Unix(5e9, 7), time.Unix(5e9, 3)))
}

func (f *filler) xattrs() {
	f.file("xattrs few", 10, map[int64]int{0: 10})
	f.file("xattrs long", 10, map[int64]int{0: 10})
	f.file("xattrs many", 10, map[int64]int{0: 10})
	set := func(path, name string, n int) {
		f.t.Helper()
		f.must("setxattr "+name, unix.Setxattr(f.path(path), name, f.bytes(n), 0))
	}
	set("xattrs few", "user.a", 5)
	set("xattrs few", "user.empty", 0)
	set("xattrs few", "trusted.b", 20)
	set("xattrs few", "security.c", 3)
	for _, n := range []int{1, 255, 1000, 2000, 4000, 30000, 65536} {
		set("xattrs long", fmt.Sprintf("user.%d", n), n)
	}
	for i := range f.last / 8 {
		set("xattrs many", fmt.Sprintf("user.name %d %s", i, strings.Repeat("y", i%100)), i%700)
	}
	for i := 0; i < f.last/8; i += 3 {
		f.must("removexattr", unix.Removexattr(f.path("xattrs many"),
			fmt.Sprintf("user.name %d %s", i, strings.Repeat("y", i%100))))
	}
	acl := []byte("\x02\x00\x00\x00\x01\x00\x07\x00\xff\xff\xff\xff\x02\x00\x05\x00\x39\x30\x00\x00\x04\x00\x05\x00" +
		"\xff\xff\xff\xff" +
		"\x08\x00\x04\x00\x40\x00\x00\x00\x10\x00\x07\x00\xff\xff\xff\xff\x20\x00\x01\x00\xff\xff\xff\xff")
	f.must("acl", unix.Setxattr(f.path("xattrs few"), "system.posix_acl_access", acl, 0))
	f.must("acl", unix.Setxattr(f.path("empty dir"), "system.posix_acl_default", acl, 0))
}

// fragments makes files whose extents need a btree, one of them with more than one level.
func (f *filler) fragments() {
	for name, n := range map[string]int{"fragments few": 60, "fragments many": f.last} {
		parts := map[int64]int{}
		for i := range n {
			parts[int64(i)*16384] = 1000
		}
		f.file(name, int64(n)*16384, parts)
	}
	f.fallocate("fragments many", 0, 0, 8<<20)
}

func (f *filler) reflinks() {
	src, err := os.Open(f.path("odd"))
	f.must("open", err)
	defer src.Close()
	for _, name := range []string{"clone", "clone changed"} {
		dst, err := os.Create(f.path(name))
		f.must("create", err)
		defer dst.Close()
		f.must("clone", unix.IoctlFileClone(int(dst.Fd()), int(src.Fd())))
		if name == "clone changed" {
			_, err = dst.WriteAt(bytes.Repeat([]byte("changed"), 1000), 30000)
			f.must("write", err)
		}
	}
}
