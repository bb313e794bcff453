package durable

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/holdfast-vm/holdfast/internal/directio"
)

// OS is the file system of the machine. A file that is being created is held by a flock(2), which
// ends with the process at the latest.
type OS struct{}

// Create implements [FS].
func (OS) Create(name string) (File, error) {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	if err := hold(f); err != nil {
		f.Close()
		return nil, err
	}
	return &osFile{f: f}, nil
}

// hold locks a file that was just created. A sweep may have come between: then the file is gone,
// and the name counts as taken so that the caller picks another.
func hold(f *os.File) error {
	err := flock(f, unix.LOCK_EX)
	if noLocks(err) {
		return nil
	}
	if errors.Is(err, unix.EWOULDBLOCK) {
		return &fs.PathError{Op: "create", Path: f.Name(), Err: unix.EEXIST}
	}
	if err != nil {
		return &fs.PathError{Op: "lock", Path: f.Name(), Err: err}
	}
	info, err := statFile(f)
	if err == nil && info.Links == 0 {
		return &fs.PathError{Op: "create", Path: f.Name(), Err: unix.EEXIST}
	}
	return err
}

func flock(f *os.File, how int) error {
	for {
		err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB)
		if err != unix.EINTR {
			return err
		}
	}
}

func noLocks(err error) bool {
	return errors.Is(err, unix.ENOLCK) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS)
}

// Open implements [FS].
func (OS) Open(name string) (Reader, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && info.IsDir() {
		err = &fs.PathError{Op: "open", Path: name, Err: unix.EISDIR}
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return osReader{f}, nil
}

// Link implements [FS].
func (OS) Link(from, to string) error { return os.Link(from, to) }

// RenameNew implements [FS].
func (OS) RenameNew(from, to string) error {
	err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE)
	if err != nil {
		return &os.LinkError{Op: "rename", Old: from, New: to, Err: err}
	}
	return nil
}

// Replace implements [FS].
func (OS) Replace(from, to string) error { return os.Rename(from, to) }

// Remove implements [FS].
func (OS) Remove(name string) error {
	if err := ignoringEINTR(func() error { return unix.Unlink(name) }); err != nil {
		return &fs.PathError{Op: "remove", Path: name, Err: err}
	}
	return nil
}

// RemoveAbandoned implements [FS].
func (OS) RemoveAbandoned(name string) (bool, error) {
	// NFS locks exclusively only what is open for writing. Where that is not allowed a shared lock
	// tells as well that nobody has an exclusive one.
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	how := unix.LOCK_EX
	if errors.Is(err, fs.ErrPermission) {
		f, err = os.Open(name)
		how = unix.LOCK_SH
	}
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	err = flock(f, how)
	if errors.Is(err, unix.EWOULDBLOCK) || noLocks(err) {
		return false, nil
	}
	if err != nil {
		return false, &fs.PathError{Op: "lock", Path: name, Err: err}
	}
	err = OS{}.Remove(name)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// Mkdir implements [FS].
func (OS) Mkdir(name string) error { return os.Mkdir(name, 0o700) }

// SyncDir implements [FS].
func (OS) SyncDir(name string) error {
	d, err := os.Open(name)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// Stat implements [FS].
func (OS) Stat(name string) (Info, error) {
	var st unix.Stat_t
	if err := ignoringEINTR(func() error { return unix.Stat(name, &st) }); err != nil {
		return Info{}, &fs.PathError{Op: "stat", Path: name, Err: err}
	}
	return infoOf(&st), nil
}

func statFile(f *os.File) (Info, error) {
	var st unix.Stat_t
	if err := ignoringEINTR(func() error { return unix.Fstat(int(f.Fd()), &st) }); err != nil {
		return Info{}, &fs.PathError{Op: "stat", Path: f.Name(), Err: err}
	}
	return infoOf(&st), nil
}

func ignoringEINTR(call func() error) error {
	for {
		if err := call(); err != unix.EINTR {
			return err
		}
	}
}

func infoOf(st *unix.Stat_t) Info {
	return Info{Size: st.Size, Dir: st.Mode&unix.S_IFMT == unix.S_IFDIR, Links: int(st.Nlink)}
}

// ReadDir implements [FS]. Symbolic links count as what they lead to.
func (OS) ReadDir(name string) ([]Entry, error) {
	d, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	all, err := d.ReadDir(-1)
	if err != nil {
		return nil, err
	}
	entries := make([]Entry, 0, len(all))
	for _, e := range all {
		mode := e.Type()
		if mode&fs.ModeSymlink != 0 {
			info, err := os.Stat(filepath.Join(name, e.Name()))
			if err != nil {
				continue
			}
			mode = info.Mode().Type()
		}
		if mode.IsDir() || mode.IsRegular() {
			entries = append(entries, Entry{Name: e.Name(), Dir: mode.IsDir()})
		}
	}
	return entries, nil
}

// osFile is a file being written.
type osFile struct {
	f    *os.File
	past *directio.File // f past the page cache, once that pays; nil until then
	size int64          // bytes written
}

// longWrite is from how many bytes on a write is worth going past the page cache.
const longWrite = 512 << 10

// Write implements [File]. Of what is long, and lies in memory and in the file where it must, whole
// blocks go past the page cache.
func (o *osFile) Write(p []byte) (int, error) {
	if o.past == nil && len(p) >= longWrite && directPays(o.f) {
		o.past = directio.On(o.f)
	}
	done := 0
	if o.past != nil {
		n, err := o.past.WriteAt(p[:len(p)/directio.Align*directio.Align], o.size)
		done, o.size = n, o.size+int64(n)
		if err != nil {
			return done, err
		}
	}
	n, err := o.f.WriteAt(p[done:], o.size)
	o.size += int64(n)
	return done + n, err
}

// directPays reports whether a file is on a file system of this machine on which a write past the
// page cache costs less than one through it, which a network file system would have to acknowledge
// one by one.
func directPays(f *os.File) bool {
	var st unix.Statfs_t
	if unix.Fstatfs(int(f.Fd()), &st) != nil {
		return false
	}
	return st.Type == unix.EXT4_SUPER_MAGIC || st.Type == unix.XFS_SUPER_MAGIC || st.Type == unix.BTRFS_SUPER_MAGIC
}

func (o *osFile) Close() error {
	if o.past != nil {
		return o.past.Close()
	}
	return o.f.Close()
}

func (o *osFile) Sync() error { return o.f.Sync() }

// SetReadOnly implements [File]. Where the file system knows no permissions there is nothing to
// take away.
func (o *osFile) SetReadOnly() error {
	err := o.f.Chmod(0o400)
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	return err
}

// StartWriteBack implements [WriteBacker].
func (o *osFile) StartWriteBack(off, n int64) {
	// Only a hint: whatever is wrong with the bytes, Sync will say.
	_ = unix.SyncFileRange(int(o.f.Fd()), off, n, unix.SYNC_FILE_RANGE_WRITE)
}

type osReader struct{ f *os.File }

func (o osReader) ReadAt(p []byte, off int64) (int, error) { return o.f.ReadAt(p, off) }
func (o osReader) Close() error                            { return o.f.Close() }
func (o osReader) Stat() (Info, error)                     { return statFile(o.f) }
