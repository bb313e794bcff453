package ext4

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// filler makes files in a mounted file system. Its methods fail the test.
type filler struct {
	t   testing.TB
	dir string
	rng *rand.Rand
}

func (f *filler) path(name string) string { return filepath.Join(f.dir, name) }

func (f *filler) must(err error) {
	f.t.Helper()
	if err != nil {
		f.t.Fatal(err)
	}
}

// may is must, where some file systems cannot do it.
func (f *filler) may(err error) {
	f.t.Helper()
	if !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.E2BIG) &&
		!errors.Is(err, unix.ENAMETOOLONG) {
		f.must(err)
	}
}

func (f *filler) bytes(n int) []byte {
	b := make([]byte, 0, n+8)
	for len(b) < n {
		b = binary.LittleEndian.AppendUint64(b, f.rng.Uint64())
	}
	return b[:n]
}

func (f *filler) file(name string, size int) string {
	f.must(os.WriteFile(f.path(name), f.bytes(size), 0o644))
	return f.path(name)
}

func (f *filler) writeAt(name string, offsets ...int64) {
	file, err := os.OpenFile(f.path(name), os.O_CREATE|os.O_RDWR, 0o600)
	f.must(err)
	defer file.Close()
	for _, off := range offsets {
		_, err := file.WriteAt(f.bytes(700), off)
		f.must(err)
	}
}

// fill makes one of everything.
func fill(t testing.TB, dir string, entries int) {
	f := &filler{t: t, dir: dir, rng: rand.New(rand.NewPCG(7, 7))}
	f.sizes()
	f.holes()
	f.links()
	f.names(entries)
	f.attributes()
	f.nodes()
	f.times()
	f.fragments()
}

func (f *filler) sizes() {
	for _, n := range []int{0, 1, 59, 60, 61, 100, 130, 150, 160, 200, 511, 1023, 1024, 1025, 4095, 4096, 4097, 70000,
		1 << 20} {
		f.file(fmt.Sprintf("size-%d", n), n)
	}
	grown := f.file("grown", 20)
	f.must(os.Truncate(grown, 100000))
	grown = f.file("grown-later", 130)
	f.must(os.Truncate(grown, 5<<20))
	cut := f.file("cut", 200000)
	f.must(os.Truncate(cut, 12345))
}

func (f *filler) holes() {
	f.writeAt("sparse", 0, 100000, 3<<20, 20<<20)
	f.writeAt("hole-first", 1<<20)
	f.writeAt("far", 5000, 70<<20, 4<<30+12345)
	f.must(os.Truncate(f.file("hole-last", 10000), 9<<20))
	f.must(os.Truncate(f.path("far"), 5<<30))
	f.file("empty-large", 0)
	f.must(os.Truncate(f.path("empty-large"), 1<<30))

	for name, mode := range map[string]uint32{"preallocated": 0, "kept-size": unix.FALLOC_FL_KEEP_SIZE} {
		file, err := os.Create(f.path(name))
		f.must(err)
		_, err = file.WriteAt(f.bytes(5000), 30000)
		f.must(err)
		f.may(unix.Fallocate(int(file.Fd()), mode, 0, 2<<20))
		_, err = file.WriteAt(f.bytes(9000), 500000)
		f.must(err)
		f.must(file.Close())
	}
	file, err := os.OpenFile(f.file("punched", 600000), os.O_RDWR, 0)
	f.must(err)
	f.may(unix.Fallocate(int(file.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 5000, 300000))
	f.may(unix.Fallocate(int(file.Fd()), unix.FALLOC_FL_ZERO_RANGE, 400000, 100000))
	f.must(file.Close())
}

func (f *filler) links() {
	for _, n := range []int{1, 58, 59, 60, 61, 100, 155, 156, 157, 500, 1023, 1024, 3000, 4094, 4095} {
		f.may(os.Symlink(strings.Repeat("x/", n)[:n], f.path(fmt.Sprintf("link-%d", n))))
	}
	f.must(os.Symlink("größe/日本語", f.path("link-unicode")))
	f.may(unix.Lsetxattr(f.path("link-60"), "trusted.on-link", f.bytes(30), 0))
	f.may(unix.Lsetxattr(f.path("link-58"), "trusted.on-fast-link", f.bytes(600), 0))
	for i := range 5 {
		f.must(os.Link(f.path("size-4097"), f.path(fmt.Sprintf("hard-%d", i))))
	}
}

func (f *filler) names(entries int) {
	f.must(os.MkdirAll(f.path("deep/a/b/c/d/e/f"), 0o750))
	f.must(os.Mkdir(f.path("empty"), 0o700))
	for _, name := range []string{"größe", "日本語", "emoji 😀", "e\u0301", "\xff\xfe not utf-8", "new\nline",
		strings.Repeat("n", 255), " "} {
		f.file("deep/"+name, 10)
	}
	f.must(os.Mkdir(f.path("few"), 0o755))
	for i := range 7 {
		f.file(fmt.Sprintf("few/%d", i), 3)
	}
	f.must(os.Mkdir(f.path("many"), 0o755))
	for i := range entries {
		f.must(os.Link(f.path("size-1"), f.path(fmt.Sprintf("many/%s-%d", strings.Repeat("entry", 1+i%5), i))))
	}
	for i := range entries / 10 {
		f.must(os.Remove(f.path(fmt.Sprintf("many/%s-%d", strings.Repeat("entry", 1+i*7%5), i*7))))
	}
}

func (f *filler) attributes() {
	name := f.file("attributes", 100)
	f.may(unix.Setxattr(name, "user.short", []byte("v"), 0))
	f.may(unix.Setxattr(name, "user.empty", nil, 0))
	f.may(unix.Setxattr(name, "user.longer", f.bytes(300), 0))
	f.may(unix.Setxattr(name, "trusted.t", f.bytes(40), 0))
	f.may(unix.Setxattr(name, "security.thing", f.bytes(70), 0))
	capability := make([]byte, 20)
	binary.LittleEndian.PutUint32(capability, 0x02000001)
	binary.LittleEndian.PutUint32(capability[4:], 1<<10)
	f.may(unix.Setxattr(name, "security.capability", capability, 0))
	f.may(unix.Setxattr(f.file("large-attribute", 10), "user.large", f.bytes(3000), 0))
	f.may(unix.Setxattr(f.file("huge-attribute", 10), "user.huge", f.bytes(20000), 0))
	for _, tag := range []string{"system.posix_acl_access", "system.posix_acl_default"} {
		f.may(unix.Setxattr(f.path("deep"), tag, acl(), 0))
	}
	f.may(unix.Setxattr(f.file("acl", 10), "system.posix_acl_access", acl(), 0))
	f.may(unix.Setxattr(f.path("empty"), "user.on-directory", f.bytes(80), 0))
}

// acl returns rights for the owner, user 1234567, the group, group 42, with a mask, and others.
func acl() []byte {
	b := binary.LittleEndian.AppendUint32(nil, 2)
	for _, e := range [][3]uint32{{1, 6, aclNobody}, {2, 4, 1234567}, {4, 4, aclNobody}, {8, 2, 42}, {16, 6, aclNobody},
		{32, 4, aclNobody}} {
		b = binary.LittleEndian.AppendUint16(b, uint16(e[0]))
		b = binary.LittleEndian.AppendUint16(b, uint16(e[1]))
		b = binary.LittleEndian.AppendUint32(b, e[2])
	}
	return b
}

func (f *filler) nodes() {
	f.must(unix.Mknod(f.path("char"), unix.S_IFCHR|0o620, int(unix.Mkdev(5, 3))))
	f.must(unix.Mknod(f.path("block"), unix.S_IFBLK|0o660, int(unix.Mkdev(259, 70001))))
	f.must(unix.Mknod(f.path("fifo"), unix.S_IFIFO|0o600, 0))
	f.must(unix.Mknod(f.path("socket"), unix.S_IFSOCK|0o755, 0))
	f.must(os.Chmod(f.file("setuid", 5), 0o755|os.ModeSetuid|os.ModeSetgid))
	f.must(os.Chmod(f.path("few"), 0o777|os.ModeSticky))
	f.must(os.Lchown(f.file("owned", 5), 100000, 70000))
	f.must(os.Lchown(f.path("link-59"), 3, 4))
}

func (f *filler) times() {
	for name, at := range map[string]time.Time{
		"1950": time.Unix(-631151999, 0), "1970": time.Unix(0, 0), "2037": time.Unix(2114380801, 123456789),
		"2100": time.Unix(4102444801, 999999999), "2400": time.Unix(13569465601, 1),
	} {
		ts, err := unix.TimeToTimespec(at)
		f.must(err)
		f.must(unix.UtimesNanoAt(unix.AT_FDCWD, f.file("time-"+name, 3), []unix.Timespec{ts, ts}, 0))
	}
}

// fragments writes every second block of two files in turn, so that no two blocks are next to each
// other.
func (f *filler) fragments() {
	a, err := os.Create(f.path("fragments-a"))
	f.must(err)
	defer a.Close()
	b, err := os.Create(f.path("fragments-b"))
	f.must(err)
	defer b.Close()
	block := f.bytes(4096)
	for i := range int64(800) {
		binary.LittleEndian.PutUint64(block, uint64(i))
		_, err := a.WriteAt(block[:4096-i%2*3000], i*3*4096)
		f.must(err)
		_, err = b.WriteAt(block, (800-i)*2*4096)
		f.must(err)
	}
}
