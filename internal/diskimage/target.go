package diskimage

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/holdfast-vm/holdfast/internal/extent"
	"github.com/holdfast-vm/holdfast/internal/luks"
	"github.com/holdfast-vm/holdfast/internal/qcow2"
)

// Target is an image that is being written. WriteAt may be called by many goroutines at once,
// inside the data given to Create; a full file system is ErrNoSpace. Of Commit and Abort the first
// decides and the second does nothing, so that Abort may be deferred.
type Target interface {
	io.WriterAt
	// Commit makes the image durable and gives it its name. On error a file is gone, and what had
	// the name before is untouched.
	Commit() error
	// Abort drops what was written. A block device keeps whatever has been written to it.
	Abort() error
}

// Create begins an image of a disk of size bytes of which only data will be written; all else reads
// as zeros.
//
// A file gets its name in Commit; one that has it already is ErrExists, or with force replaced in
// that instant, its owner and permissions kept, unless it is in use (ErrInUse). Is the file system
// too full for data, it is ErrNoSpace. A block device takes raw only and is written in place:
// ErrTooSmall, or ErrInUse if it is mounted or held; what is not data is zeroed here, and bytes
// after size are left alone.
func Create(path string, size int64, format string, data extent.Set, force bool) (Target, error) {
	t, err := create(path, size, format, data, force, qcow2.CreateOptions{})
	if err != nil {
		return nil, fmt.Errorf("create disk image %s: %w", path, err)
	}
	return t, nil
}

// CreateEncrypted is Create for a qcow2 file that is encrypted with LUKS, and opened by the secret.
// A raw one would have no holes, and a disk that is nearly empty take all of its size.
func CreateEncrypted(path string, size int64, secret []byte, data extent.Set, force bool) (Target, error) {
	volume, err := luks.New(secret, 0)
	var t Target
	if err == nil {
		t, err = create(path, size, "qcow2", data, force, qcow2.CreateOptions{Encryption: volume})
	}
	if err != nil {
		return nil, fmt.Errorf("create encrypted disk image %s: %w", path, err)
	}
	return t, nil
}

func create(path string, size int64, format string, data extent.Set, force bool, o qcow2.CreateOptions) (Target,
	error) {
	if format != "raw" && format != "qcow2" {
		return nil, fmt.Errorf("%w: %q cannot be written, raw and qcow2 can", ErrFormat, format)
	}
	if n := len(data); size < 0 || n > 0 && (data[0].Off < 0 || data[n-1].End() > size) {
		return nil, fmt.Errorf("data ends outside the disk of %d bytes", size)
	}
	path, err := resolve(path)
	if err != nil {
		return nil, err
	}
	st, err := os.Stat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return createFile(path, nil, size, format, data, o)
	case err != nil:
		return nil, plain(err)
	case st.IsDir():
		return nil, errors.New("it is a directory")
	case st.Mode()&os.ModeType == os.ModeDevice && format == "raw":
		return createDevice(path, size, data)
	case st.Mode()&os.ModeType == os.ModeDevice:
		return nil, fmt.Errorf("%w: a block device takes raw, not %s", ErrFormat, format)
	case !st.Mode().IsRegular():
		return nil, errors.New("it is neither a regular file nor a block device")
	case !force:
		return nil, ErrExists
	}
	old, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, plain(err)
	}
	if err := lockWhole(old); err != nil {
		old.Close()
		return nil, err
	}
	return createFile(path, old, size, format, data, o)
}

// resolve returns the absolute path, symbolic links followed, of a file that may not exist.
func resolve(path string) (string, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	if real, err := filepath.EvalSymlinks(path); err == nil {
		return real, nil
	}
	if st, err := os.Lstat(path); err == nil && st.Mode()&os.ModeSymlink != 0 {
		return "", errors.New("it is a symbolic link that leads nowhere")
	}
	dir, err := filepath.EvalSymlinks(filepath.Dir(path))
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, filepath.Base(path)), nil
}

// contents is the inside of a file target: finish makes it durable and closes it, drop closes and
// removes it, leave only closes it.
type contents interface {
	io.WriterAt
	sync() error
	finish() error
	drop() error
	leave() error
}

// fileTarget is a file under a temporary name beside its own.
type fileTarget struct {
	contents
	path, temp string
	old        *os.File // what is to be replaced, locked; or nil
	over       bool     // committed or aborted
}

func createFile(path string, old *os.File, size int64, format string, data extent.Set, o qcow2.CreateOptions) (Target,
	error) {
	t := &fileTarget{path: path, temp: tempName(path), old: old}
	err := checkSpace(filepath.Dir(path), data.Bytes())
	if err == nil && format == "qcow2" {
		var w *qcow2.Writer
		if w, err = qcow2.NewWriter(t.temp, size, data, o); err == nil {
			t.contents = qcow2Contents{w}
		}
	} else if err == nil {
		t.contents, err = newRawContents(t.temp, size, data)
	}
	if err != nil {
		t.release()
		return nil, full(err)
	}
	return t, nil
}

// checkSpace returns ErrNoSpace if the file system of dir has no room for need bytes.
func checkSpace(dir string, need int64) error {
	have, err := Room(dir)
	if err != nil {
		return err
	}
	if have < need {
		return fmt.Errorf("%w in %s: %d bytes needed, %d free", ErrNoSpace, dir, need, have)
	}
	return nil
}

// full says ErrNoSpace where the system said ENOSPC or that a quota is used up.
func full(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("%w: %w", ErrNoSpace, err)
	}
	return err
}

func (t *fileTarget) WriteAt(p []byte, off int64) (int, error) {
	n, err := t.contents.WriteAt(p, off)
	if err != nil {
		err = fmt.Errorf("write disk image %s: %w", t.path, full(err))
	}
	return n, err
}

func (t *fileTarget) Commit() error {
	if t.over {
		return fmt.Errorf("commit disk image %s: %w", t.path, os.ErrClosed)
	}
	t.over = true
	defer t.release()
	if err := t.finish(); err != nil {
		os.Remove(t.temp)
		return fmt.Errorf("commit disk image %s: %w", t.path, full(err))
	}
	if err := t.publish(); err != nil {
		os.Remove(t.temp)
		return fmt.Errorf("commit disk image %s: %w", t.path, err)
	}
	return nil
}

// publish gives the file its name, for good.
func (t *fileTarget) publish() error {
	flags := uint(unix.RENAME_NOREPLACE)
	if t.old != nil {
		if err := inherit(t.temp, t.old); err != nil {
			return err
		}
		flags = 0
	}
	err := unix.Renameat2(unix.AT_FDCWD, t.temp, unix.AT_FDCWD, t.path, flags)
	if errors.Is(err, unix.EINVAL) { // a file system that cannot promise to replace nothing
		if err = os.Link(t.temp, t.path); err == nil {
			err = os.Remove(t.temp)
		}
	}
	if errors.Is(err, os.ErrExist) {
		return ErrExists
	}
	if err != nil {
		return err
	}
	return syncDir(filepath.Dir(t.path))
}

// inherit gives the file at path the permissions and, as far as we may, the owner of old.
func inherit(path string, old *os.File) error {
	st, err := old.Stat()
	if err != nil {
		return err
	}
	owner := st.Sys().(*syscall.Stat_t)
	if err := os.Chown(path, int(owner.Uid), int(owner.Gid)); err != nil && !errors.Is(err, os.ErrPermission) {
		return err
	}
	return os.Chmod(path, st.Mode().Perm())
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

func (t *fileTarget) Abort() error {
	if t.over {
		return nil
	}
	t.over = true
	defer t.release()
	if err := t.drop(); err != nil {
		return fmt.Errorf("drop unfinished disk image of %s: %w", t.path, err)
	}
	return nil
}

func (t *fileTarget) release() {
	if t.old != nil {
		t.old.Close()
	}
}
