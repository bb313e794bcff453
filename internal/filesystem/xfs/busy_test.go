package xfs

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// busy does what comes to its mind below a mounted directory. Much of it fails, as in life.
type busy struct {
	dir  string
	rng  *rand.Rand
	fsr  bool
	done int // operations that did something
}

// path returns the path of one of a few names, so that operations meet.
func (b *busy) path() string {
	p := b.dir
	for b.rng.IntN(3) > 0 && len(p) < len(b.dir)+12 {
		p = filepath.Join(p, fmt.Sprintf("d%d", b.rng.IntN(4)))
	}
	return filepath.Join(p, fmt.Sprintf("%s%d", strings.Repeat("f", 1+b.rng.IntN(2)*40), b.rng.IntN(12)))
}

func (b *busy) dirPath() string { return filepath.Dir(b.path()) }

// step does one thing.
func (b *busy) step() {
	ops := []func() error{
		b.write, b.write, b.write, b.fallocate, b.fallocate, b.truncate, b.fragment, b.rename, b.link, b.unlink,
		b.mkdir, b.mkdir,
		b.symlink, b.xattr, b.xattr, b.xattr, b.removeXattr, b.owner, b.times, b.reflink, b.reflink, b.node, b.burst,
		b.sync, b.removeAll,
		b.acl, b.defragment,
	}
	if ops[b.rng.IntN(len(ops))]() == nil {
		b.done++
	}
}

func (b *busy) onFile(flags int, do func(file *os.File) error) error {
	file, err := os.OpenFile(b.path(), os.O_RDWR|unix.O_NONBLOCK|flags, 0o644)
	if err != nil {
		return err
	}
	defer file.Close()
	if err := do(file); err != nil {
		return err
	}
	if b.rng.IntN(6) == 0 {
		return file.Sync()
	}
	return nil
}

func (b *busy) random(n int) []byte { return pattern(b.rng, n) }

func (b *busy) write() error {
	return b.onFile(os.O_CREATE, func(file *os.File) error {
		_, err := file.WriteAt(b.random(1+b.rng.IntN(60000)), int64(b.rng.IntN(300000)))
		return err
	})
}

func (b *busy) fragment() error {
	return b.onFile(os.O_CREATE, func(file *os.File) error {
		for i := range 10 + b.rng.IntN(150) {
			if _, err := file.WriteAt([]byte{byte(i)}, int64(i)*8192); err != nil {
				return err
			}
		}
		return nil
	})
}

func (b *busy) fallocate() error {
	modes := []uint32{
		0, unix.FALLOC_FL_KEEP_SIZE, unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE, unix.FALLOC_FL_ZERO_RANGE,
		unix.FALLOC_FL_COLLAPSE_RANGE, unix.FALLOC_FL_INSERT_RANGE, unix.FALLOC_FL_UNSHARE_RANGE,
	}
	return b.onFile(os.O_CREATE, func(file *os.File) error {
		return unix.Fallocate(int(file.Fd()), modes[b.rng.IntN(len(modes))], int64(b.rng.IntN(60))*4096,
			int64(1+b.rng.IntN(30))*4096)
	})
}

func (b *busy) truncate() error { return os.Truncate(b.path(), int64(b.rng.IntN(400000))) }
func (b *busy) rename() error   { return os.Rename(b.path(), b.path()) }
func (b *busy) link() error     { return os.Link(b.path(), b.path()) }
func (b *busy) unlink() error   { return os.Remove(b.path()) }
func (b *busy) mkdir() error {
	return os.Mkdir(filepath.Join(b.dirPath(), fmt.Sprintf("d%d", b.rng.IntN(4))), 0o755)
}

func (b *busy) symlink() error {
	n := []int{5, 100, 400, 1000}[b.rng.IntN(4)]
	return os.Symlink(strings.Repeat("y", n), b.path())
}

func (b *busy) xattr() error {
	n := []int{3, 30, 300, 3000, 20000, 65536}[b.rng.IntN(6)]
	return unix.Lsetxattr(b.path(), fmt.Sprintf("user.%d", b.rng.IntN(20)), b.random(n), 0)
}

func (b *busy) removeXattr() error {
	return unix.Lremovexattr(b.path(), fmt.Sprintf("user.%d", b.rng.IntN(20)))
}

func (b *busy) acl() error {
	acl := "\x02\x00\x00\x00\x01\x00\x07\x00\xff\xff\xff\xff\x02\x00\x05\x00\x39\x30\x00\x00\x04\x00\x05\x00\xff\xff" +
		"\xff\xff" +
		"\x10\x00\x07\x00\xff\xff\xff\xff\x20\x00\x01\x00\xff\xff\xff\xff"
	return unix.Setxattr(b.path(), "system.posix_acl_access", []byte(acl), 0)
}

func (b *busy) owner() error {
	if err := os.Chmod(b.path(), os.FileMode(b.rng.IntN(0o1000))); err != nil {
		return err
	}
	return os.Lchown(b.path(), b.rng.IntN(1<<31), b.rng.IntN(1<<31))
}

func (b *busy) times() error {
	return os.Chtimes(b.path(), time.Time{}, time.Unix(b.rng.Int64N(1<<33), b.rng.Int64N(1e9)))
}

func (b *busy) reflink() error {
	src, err := os.OpenFile(b.path(), unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer src.Close()
	return b.onFile(os.O_CREATE, func(file *os.File) error {
		if b.rng.IntN(2) == 0 {
			return unix.IoctlFileClone(int(file.Fd()), int(src.Fd()))
		}
		return unix.IoctlFileCloneRange(int(file.Fd()), &unix.FileCloneRange{
			Src_fd: int64(src.Fd()), Src_offset: uint64(b.rng.IntN(20)) * 4096,
			Src_length:  uint64(1+b.rng.IntN(20)) * 4096,
			Dest_offset: uint64(b.rng.IntN(40)) * 4096,
		})
	})
}

func (b *busy) node() error {
	return unix.Mknod(b.path(), []uint32{unix.S_IFIFO, unix.S_IFCHR, unix.S_IFBLK}[b.rng.IntN(3)]|0o600,
		int(unix.Mkdev(4000, b.rng.Uint32N(1<<18))))
}

// burst fills a directory, or empties it.
func (b *busy) burst() error {
	dir, n := b.dirPath(), 50+b.rng.IntN(400)
	for i := range n {
		name := filepath.Join(dir, fmt.Sprintf("burst %0*d", 1+b.rng.IntN(40), i))
		if b.rng.IntN(4) == 0 {
			_ = os.Remove(name)
			continue
		}
		if err := os.WriteFile(name, []byte(name), 0o600); err != nil {
			return err
		}
	}
	return nil
}

func (b *busy) removeAll() error {
	if b.rng.IntN(3) > 0 {
		return os.ErrInvalid
	}
	return os.RemoveAll(filepath.Join(b.dirPath(), fmt.Sprintf("d%d", b.rng.IntN(4))))
}

func (b *busy) sync() error {
	dir, err := os.Open(b.dir)
	if err != nil {
		return err
	}
	defer dir.Close()
	if b.rng.IntN(4) == 0 {
		return unix.Syncfs(int(dir.Fd()))
	}
	return dir.Sync()
}

// defragment exchanges the extents of a file with those of a new one, if it has many.
func (b *busy) defragment() error {
	if !b.fsr || b.rng.IntN(6) > 0 {
		return os.ErrInvalid
	}
	return runQuietly("xfs_fsr", b.path())
}

// crash stops a mounted file system at once: nothing more gets to the disk, the log neither, unless
// flush.
func crash(t testing.TB, dir string, flush bool) {
	t.Helper()
	file, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	const goingDown = 'X'<<8 | 125 | 4<<16 | 2<<30
	how := 2
	if flush {
		how = 1
	}
	if err := unix.IoctlSetPointerInt(int(file.Fd()), goingDown, how); err != nil {
		t.Fatalf("shut down %s: %v", dir, err)
	}
}
