package qcow2

import (
	"encoding/binary"
	"fmt"
	"io"
	"os"

	"github.com/holdfast-vm/holdfast/internal/luks"
)

// Image is an image opened for reading. Its methods are safe for concurrent use.
type Image struct {
	r        io.ReaderAt
	close    func() error
	fileSize int64
	h        *header
	l1       []uint64
	cache    tableCache
	cipher   *luks.Cipher // of the guest data, once it is known
}

// Open opens the image at path, a regular file or a block device, for reading. A file of another
// format is ErrNotQcow2, one whose header contradicts itself or the file's length ErrCorrupt.
func Open(path string) (*Image, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("open qcow2 image: %w", err)
	}
	if !st.Mode().IsRegular() && st.Mode()&os.ModeType != os.ModeDevice {
		return nil, fmt.Errorf("open qcow2 image %s: neither a regular file nor a block device", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open qcow2 image: %w", err)
	}
	size, err := f.Seek(0, io.SeekEnd) // the size of block devices too
	if err == nil {
		var img *Image
		if img, err = New(f, size); err == nil {
			img.close = f.Close
			return img, nil
		}
	}
	f.Close()
	return nil, fmt.Errorf("open qcow2 image %s: %w", path, err)
}

// New returns the image stored in the first fileSize bytes of r, which must allow concurrent reads.
func New(r io.ReaderAt, fileSize int64) (*Image, error) {
	h, err := readHeader(r, fileSize)
	if err != nil {
		return nil, err
	}
	img := &Image{r: r, close: func() error { return nil }, fileSize: fileSize, h: h}
	img.cache.limit = max(4, cacheBytes>>h.clusterBits)
	return img, img.loadL1()
}

// loadL1 reads the L1 table. No L2 table may be used twice, so the file's length bounds their
// number, and with it all later work.
func (m *Image) loadL1() error {
	buf := make([]byte, m.h.l1Entries*8)
	if err := m.readFull(buf, m.h.l1Offset, "L1 table"); err != nil {
		return err
	}
	m.l1 = make([]uint64, m.h.l1Entries)
	tables := int64(0)
	for i := range m.l1 {
		m.l1[i] = binary.BigEndian.Uint64(buf[i*8:]) & offsetMask
		if m.l1[i] != 0 {
			tables++
		}
	}
	if most := m.fileSize >> m.h.clusterBits; tables > most {
		return corrupt("L1 table names %d L2 tables, the file has room for %d", tables, most)
	}
	return nil
}

// readFull fills buf from the file at off; what names it in errors.
func (m *Image) readFull(buf []byte, off int64, what string) error {
	if off < 0 || off > m.fileSize-int64(len(buf)) {
		return corrupt("%s at %d of %d bytes is beyond the end of the file at %d", what, off, len(buf), m.fileSize)
	}
	n, err := m.r.ReadAt(buf, off)
	if n == len(buf) {
		return nil
	}
	if err == io.EOF {
		return corrupt("%s at %d of %d bytes: the file became shorter", what, off, len(buf))
	}
	return fmt.Errorf("read %s at %d: %w", what, off, err)
}

// Unlock makes guest data readable that is encrypted with LUKS by c, as an image is that was made
// with the same volume in CreateOptions. Call it before all else.
func (m *Image) Unlock(c *luks.Cipher) { m.cipher = c }

// Info returns what the header says.
func (m *Image) Info() Info { return m.h.Info }

// Size returns the size of the virtual disk.
func (m *Image) Size() int64 { return m.h.Size }

// Close closes the file if Open opened it.
func (m *Image) Close() error { return m.close() }

// dataSupported returns ErrUnsupported if guest data cannot be read for what the header says.
func (m *Image) dataSupported() error {
	switch {
	case m.h.Encryption != "" && (m.h.Encryption != "luks" || m.cipher == nil):
		return unsupported("encryption (%s)", m.h.Encryption)
	case m.h.HasDataFile:
		return unsupported("external data file %q", m.h.DataFile)
	case m.h.Incompatible&incompatExtendedL2 != 0:
		return unsupported("extended L2 entries")
	}
	return nil
}

// ReadAt reads len(p) bytes of the virtual disk at off. What is neither in the image nor flagged
// zero reads as zeros if there is no backing file, else it is ErrUnsupported. At the disk's end it
// returns io.EOF with what there was.
func (m *Image) ReadAt(p []byte, off int64) (int, error) {
	if err := m.dataSupported(); err != nil {
		return 0, err
	}
	if off < 0 {
		return 0, fmt.Errorf("read qcow2 image at %d: negative offset", off)
	}
	if off >= m.h.Size {
		return 0, io.EOF
	}
	var end error
	if int64(len(p)) > m.h.Size-off {
		p, end = p[:m.h.Size-off], io.EOF
	}
	for done := 0; done < len(p); {
		n, err := m.readRun(p[done:], off+int64(done))
		if err != nil {
			return done, fmt.Errorf("read disk at %d: %w", off+int64(done), err)
		}
		done += n
	}
	return len(p), end
}

// readRun reads the first bytes of p, as many as lie together in the file or are zeros together.
func (m *Image) readRun(p []byte, off int64) (int, error) {
	kind, host, n, err := m.lookup(off, int64(len(p)))
	if err != nil {
		return 0, err
	}
	p = p[:n]
	switch kind {
	case clusterData:
		return len(p), m.readData(p, host)
	case clusterUnallocated:
		if m.h.BackingFile != "" {
			return 0, unsupported("backing file %q", m.h.BackingFile)
		}
	}
	clear(p)
	return len(p), nil
}

// readData reads guest data that lies at host in the file. What is encrypted is so in whole
// sectors.
func (m *Image) readData(p []byte, host int64) error {
	if m.cipher == nil {
		return m.readFull(p, host, "data")
	}
	before := host % luks.Sector
	whole := p
	if before != 0 || len(p)%luks.Sector != 0 {
		whole = make([]byte, (before+int64(len(p))+luks.Sector-1)&^(luks.Sector-1))
	}
	if err := m.readFull(whole, host-before, "data"); err != nil {
		return err
	}
	m.cipher.Decrypt(whole, uint64(host-before)/luks.Sector)
	copy(p, whole[before:])
	return nil
}
