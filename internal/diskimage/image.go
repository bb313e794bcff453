package diskimage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/holdfast-vm/holdfast/internal/extent"
	"github.com/holdfast-vm/holdfast/internal/qcow2"
)

// Options says how to open an image. The zero value of each field is its default.
type Options struct {
	Format string // raw, qcow2, luks, vmdk, vhdx, vdi, vpc, qed, qcow or parallels; "" guesses
	Bitmap string // persistent dirty bitmap for Dirty; "" for none
	Secret []byte // opens an encrypted image; nil if there is none
	AsIs   bool   // an encrypted image is read as the bytes that it is, without its secret
}

// Image is an image opened for reading. Its methods are safe for concurrent use.
type Image struct {
	path   string
	format string
	file   *os.File // holds the lock
	length int64    // of file
	source source

	encryption string // luks or aes; "" if it is not encrypted as far as the format tells
	asIs       bool   // it is read encrypted
}

// source reads one kind of image.
type source interface {
	io.ReaderAt
	io.Closer
	size() int64
	// extents returns what may differ from zeros.
	extents(ctx context.Context) (extent.Set, error)
	// dirty returns what the bitmap has set.
	dirty(ctx context.Context) (extent.Set, error)
}

// Open opens the image at path. Callers may decide by the sentinels of this package, os.ErrNotExist
// and os.ErrPermission. ctx is for the opening alone.
func Open(ctx context.Context, path string, o Options) (*Image, error) {
	m, err := open(ctx, path, o)
	if err != nil {
		return nil, fmt.Errorf("open disk image %s: %w", path, err)
	}
	return m, nil
}

func open(ctx context.Context, path string, o Options) (*Image, error) {
	if o.Format != "" {
		if err := known(o.Format); err != nil {
			return nil, err
		}
	}
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	f, length, device, err := openFile(path)
	if err != nil {
		return nil, err
	}
	m := &Image{path: path, format: o.Format, file: f, length: length}
	if err = lockShared(f); err == nil && m.format == "" {
		m.format, err = guess(path, f, device)
		if m.format == "raw" && len(o.Secret) > 0 && isLUKS(f) {
			m.format = formatLUKS
		}
	}
	if err == nil {
		m.source, err = m.openSource(ctx, device, o)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return m, nil
}

// openFile opens a regular file or block device that is not empty.
func openFile(path string) (f *os.File, length int64, device bool, err error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, 0, false, plain(err)
	}
	device = st.Mode()&os.ModeType == os.ModeDevice
	switch {
	case st.IsDir():
		return nil, 0, false, errors.New("it is a directory")
	case !device && !st.Mode().IsRegular():
		return nil, 0, false, errors.New("it is neither a regular file nor a block device")
	}
	if f, err = os.Open(path); err != nil {
		return nil, 0, false, plain(err)
	}
	length, err = f.Seek(0, io.SeekEnd)
	if err == nil && length == 0 {
		err = ErrEmpty
	}
	if err != nil {
		f.Close()
		return nil, 0, false, plain(err)
	}
	return f, length, device, nil
}

// plain drops the operation and path that the caller names anyway.
func plain(err error) error {
	var p *os.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}

func (m *Image) openSource(ctx context.Context, device bool, o Options) (source, error) {
	switch m.format {
	case formatLUKS:
		if m.encryption = formatLUKS; o.AsIs {
			return m.openAsIs("", device)
		}
		return m.openEncrypted(ctx, device, o)
	case "raw":
		if isLUKS(m.file) { // perhaps the guest's own doing: in any case these are the disk's bytes
			m.encryption, m.asIs = formatLUKS, true
		}
		if o.Bitmap != "" {
			return nil, fmt.Errorf("%w: a raw image has none, not %q", ErrNoBitmap, o.Bitmap)
		}
		return newRaw(m.file, m.length, device), nil
	case "qcow2":
		return m.openQcow2(ctx, device, o)
	case "vmdk":
		if o.Format == "" {
			if err := refuseBacking(ctx, m.path, m.format); err != nil {
				return nil, err
			}
		}
	}
	source, err := openChild(ctx, m.path, m.format, o.Bitmap)
	if !errors.Is(err, ErrEncrypted) || !o.AsIs && len(o.Secret) == 0 {
		return source, err
	}
	if m.encryption = "aes"; o.AsIs { // of formats of old
		return m.openAsIs("", device)
	}
	return m.openEncrypted(ctx, device, o)
}

// openQcow2 reads the image itself where it can. QEMU reads zeros where a file is cut off: so the
// tables are checked in any case.
func (m *Image) openQcow2(ctx context.Context, device bool, o Options) (source, error) {
	img, err := qcow2.New(m.file, m.length)
	if err != nil {
		return nil, damaged(err)
	}
	info := img.Info()
	if m.encryption = info.Encryption; m.encryption != "" && o.AsIs {
		return m.openAsIs(info.BackingFile+info.DataFile, device)
	}
	if o.Format == "" && (info.BackingFile != "" || info.HasDataFile) {
		return nil, refers(m.format, info.BackingFile+info.DataFile)
	}
	data, _, err := img.Map()
	if err == nil && info.BackingFile == "" {
		return newQcow2(img, data, o.Bitmap)
	}
	if err != nil && !errors.Is(err, qcow2.ErrUnsupported) {
		return nil, damaged(err)
	}
	if err := img.Check(); err != nil {
		return nil, damaged(err)
	}
	if o.Bitmap != "" {
		if err := requireRecording(img, o.Bitmap); err != nil {
			return nil, err
		}
	}
	if m.encryption != "" {
		return m.openEncrypted(ctx, device, o)
	}
	return openChild(ctx, m.path, m.format, o.Bitmap)
}

// damaged says in this package's words what package qcow2 found.
func damaged(err error) error {
	for theirs, ours := range map[error]error{
		qcow2.ErrCorrupt: ErrDamaged, qcow2.ErrNoBitmap: ErrNoBitmap,
		qcow2.ErrBitmapInconsistent: ErrBitmapInconsistent, qcow2.ErrNotQcow2: ErrFormat,
	} {
		if errors.Is(err, theirs) {
			return fmt.Errorf("%w: %w", ours, err)
		}
	}
	return err
}

// Path returns the absolute path of the image.
func (m *Image) Path() string { return m.path }

// Format returns the format as told or found.
func (m *Image) Format() string { return m.format }

// Encryption returns how the image is encrypted, luks or aes; "" if it is not as far as can be
// told.
func (m *Image) Encryption() string { return m.encryption }

// AsIs reports whether what is read of the image is encrypted.
func (m *Image) AsIs() bool { return m.asIs }

// Size returns the size of the virtual disk.
func (m *Image) Size() int64 { return m.source.size() }

// FileSize returns the length of the file or device.
func (m *Image) FileSize() int64 { return m.length }

// ReadAt reads the virtual disk, as io.ReaderAt says.
func (m *Image) ReadAt(p []byte, off int64) (int, error) {
	n, err := m.source.ReadAt(p, off)
	if err != nil && err != io.EOF {
		err = fmt.Errorf("read disk image %s: %w", m.path, damaged(err))
	}
	return n, err
}

// Extents returns which bytes of the virtual disk may differ from zeros.
func (m *Image) Extents(ctx context.Context) (extent.Set, error) {
	set, err := m.source.extents(ctx)
	if err != nil {
		return nil, fmt.Errorf("map disk image %s: %w", m.path, err)
	}
	return set, nil
}

// Dirty returns what the bitmap of Options has set: ErrNoBitmap if there was none in Options.
func (m *Image) Dirty(ctx context.Context) (extent.Set, error) {
	set, err := m.source.dirty(ctx)
	if err != nil {
		return nil, fmt.Errorf("read dirty bitmap of disk image %s: %w", m.path, err)
	}
	return set, nil
}

// Close ends the process behind the image, if there is one, and releases the lock.
func (m *Image) Close() error {
	return errors.Join(m.source.Close(), m.file.Close())
}
