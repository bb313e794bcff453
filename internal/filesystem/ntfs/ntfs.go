// Package ntfs reads NTFS 3.0 and 3.1 as a mount would show it, without one.
//
// Every record's update sequence, every reference's sequence number and every stream's runs against
// its sizes are checked when they are read: bytes that come without an error are those of the file.
// Compressed and sparse files, attribute lists, hard links, named streams, symbolic links and
// junctions are read. Not supported, and reported for each file: encryption, and content that
// something else than NTFS keeps (system compression, deduplication, cloud placeholders). The
// journal is not replayed: a file system that was not unmounted is read as it is, Info says so, and
// what contradicts itself is an error.
//
// NTFS has no owners and modes as Linux has: files are root's, 0644, directories 0755, unless Linux
// (WSL) has stored them. Names are UTF-8, unpaired surrogates as three bytes each, so that no two
// names become one. Links are shown with slashes; C:\x becomes C:/x. What belongs to Windows alone
// is in the attributes that ntfs-3g shows too: system.ntfs_attrib, system.ntfs_acl,
// system.ntfs_reparse_data, system.ntfs_ea.
package ntfs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"sync"

	"github.com/holdfast-vm/holdfast/internal/filesystem"
)

var le = binary.LittleEndian

// Numbers of the system's own files. Those below firstUser are not shown.
const (
	recMFT     = 0
	recLogFile = 2
	recVolume  = 3
	recRoot    = 5
	recBitmap  = 6
	recSecure  = 9
	recUpCase  = 10
	firstUser  = 24
)

const (
	maxTableReads = 1 << 20 // of records, to find all parts of the table
	maxCluster    = 2 << 20
	maxRecord     = 64 << 10
)

// FS is an NTFS file system. It is safe for concurrent use.
type FS struct {
	r          io.ReaderAt
	cluster    int64 // bytes
	clusters   int64
	recordSize int64 // bytes
	mft        *stream
	root       filesystem.ID
	info       filesystem.Info
	upcase     []uint16

	mu     sync.Mutex
	inodes map[uint64]*inode        // by reference
	kept   int                      // bytes that these take
	dirs   map[filesystem.ID]*names // of the directories looked into last

	opening int // records that may be read while the table itself is put together; 0 when it is

	secureOnce sync.Once
	secure     map[uint32][]byte // security descriptors by ID
	secureErr  error
}

var _ filesystem.FS = (*FS)(nil)

func corrupt(format string, args ...any) error {
	return fmt.Errorf("%w: %s", filesystem.ErrCorrupt, fmt.Sprintf(format, args...))
}

func unsupported(what string) error { return fmt.Errorf("%w: %s", filesystem.ErrUnsupported, what) }

// Open reads the file system in the first size bytes of r, which must stay readable while the FS is
// in use. It returns [filesystem.ErrNotThis] if there is no NTFS, [filesystem.ErrUnsupported] for a
// version that it does not know, and [filesystem.ErrCorrupt].
func Open(r io.ReaderAt, size int64) (*FS, error) {
	f := &FS{r: r, inodes: map[uint64]*inode{}, dirs: map[filesystem.ID]*names{}}
	if err := f.boot(size); err != nil {
		return nil, err
	}
	if err := f.openMFT(); err != nil {
		return nil, fmt.Errorf("read the master file table: %w", err)
	}
	if err := f.identify(); err != nil {
		return nil, err
	}
	return f, nil
}

// boot takes in the geometry.
func (f *FS) boot(size int64) error {
	b := make([]byte, 512)
	if size < 512 {
		return filesystem.ErrNotThis
	}
	if err := readFull(f.r, b, 0); err != nil {
		return fmt.Errorf("read the boot sector: %w", err)
	}
	if string(b[3:11]) != "NTFS    " {
		return filesystem.ErrNotThis
	}
	sector := int64(le.Uint16(b[11:]))
	perCluster := int64(b[13])
	if b[13] > 0x80 {
		perCluster = 1 << min(256-int(b[13]), 40)
	}
	f.cluster = sector * perCluster
	total := int64(le.Uint64(b[40:]))
	switch {
	case sector < 256 || sector > 4096 || sector&(sector-1) != 0:
		return corrupt("sectors of %d bytes", sector)
	case f.cluster <= 0 || f.cluster > maxCluster || f.cluster&(f.cluster-1) != 0:
		return corrupt("clusters of %d bytes", f.cluster)
	case total <= 0 || total > size/sector:
		return corrupt("%d sectors of %d bytes do not fit in %d bytes", total, sector, size)
	}
	f.clusters = total * sector / f.cluster
	f.recordSize = blockSize(int8(b[64]), f.cluster)
	if f.recordSize < 512 || f.recordSize > maxRecord || f.recordSize&(f.recordSize-1) != 0 {
		return corrupt("file records of %d bytes", f.recordSize)
	}
	lcn := int64(le.Uint64(b[48:]))
	if lcn <= 0 || lcn >= f.clusters {
		return corrupt("the master file table is at cluster %d of %d", lcn, f.clusters)
	}
	span := (f.recordSize + f.cluster - 1) / f.cluster
	f.mft = &stream{fs: f, size: span * f.cluster, init: span * f.cluster, runs: []run{{lcn: lcn, n: span}}}
	f.info = filesystem.Info{Type: "ntfs", UUID: fmt.Sprintf("%016X", le.Uint64(b[72:])), Size: total * sector}
	return nil
}

// blockSize is a size as the boot sector has it: clusters, or if negative a power of two of bytes.
func blockSize(v int8, cluster int64) int64 {
	if v >= 0 {
		return int64(v) * cluster
	}
	return 1 << min(-int(v), 30)
}

// openMFT finds all parts of the master file table, of which the boot sector tells only where the
// first is.
func (f *FS) openMFT() error {
	first, err := f.inode(recMFT, false)
	if err != nil {
		return err
	}
	s, err := first.stream(attrData, "")
	if err != nil {
		return err
	}
	f.mft = s
	f.opening = maxTableReads
	defer func() { f.opening = 0 }()
	for { // its attribute list may lead to records in parts that become known on the way
		f.forget()
		if first, err = f.inode(recMFT, false); err != nil {
			return err
		}
		s, err := first.stream(attrData, "")
		if err != nil {
			return err
		}
		if len(s.runs) <= len(f.mft.runs) {
			f.mft = s
			return nil
		}
		f.mft = s
	}
}

// identify reads what the volume says of itself.
func (f *FS) identify() error {
	root, err := f.inode(recRoot, false)
	if err != nil {
		return fmt.Errorf("read the root directory: %w", err)
	}
	if !root.dir {
		return fmt.Errorf("read the root directory: %w", corrupt("record %d is not a directory", recRoot))
	}
	f.root = filesystem.ID(root.ref)
	volume, err := f.inode(recVolume, false)
	if err != nil {
		return fmt.Errorf("read the volume's information: %w", err)
	}
	if a := volume.find(attrVolumeName, ""); a != nil && !a.nonResident {
		f.info.Label = decodeName(a.value)
	}
	if a := volume.find(attrVolumeInfo, ""); a != nil && len(a.value) >= 12 {
		if major := a.value[8]; major != 3 && major != 1 {
			return unsupported(fmt.Sprintf("NTFS version %d.%d", major, a.value[9]))
		}
		if le.Uint16(a.value[10:])&1 != 0 {
			f.info.Notes = append(f.info.Notes, "the volume is marked dirty: Windows would check it")
		}
	}
	if f.logInUse() {
		f.info.Notes = append(f.info.Notes,
			"it was not unmounted, and its journal is not replayed: what was being changed at that moment may be "+
				"missing or be an error")
	}
	f.readUpCase()
	f.info.Used = f.used()
	return nil
}

// logInUse reports whether the journal says that the volume was in use.
func (f *FS) logInUse() bool {
	ino, err := f.inode(recLogFile, false)
	if err != nil {
		return false
	}
	s, err := ino.stream(attrData, "")
	if err != nil || s.size < 4096 {
		return false
	}
	page := make([]byte, 4096)
	if _, err := s.ReadAt(page, 0); err != nil || string(page[:4]) != "RSTR" || applyFixups(page) != nil {
		return false
	}
	at := int(le.Uint16(page[24:]))
	if at+16 > len(page) {
		return false
	}
	return le.Uint16(page[at+12:]) != 0xffff && le.Uint16(page[at+14:])&2 == 0
}

// readUpCase reads how this volume folds case. Without, only equal names are equal.
func (f *FS) readUpCase() {
	ino, err := f.inode(recUpCase, false)
	if err != nil {
		return
	}
	s, err := ino.stream(attrData, "")
	if err != nil || s.size != 128<<10 {
		return
	}
	raw := make([]byte, s.size)
	if n, err := s.ReadAt(raw, 0); int64(n) < s.size && err != nil {
		return
	}
	f.upcase = make([]uint16, 1<<16)
	for i := range f.upcase {
		f.upcase[i] = le.Uint16(raw[2*i:])
	}
}

// used counts the clusters in use; 0 if that cannot be read.
func (f *FS) used() int64 {
	ino, err := f.inode(recBitmap, false)
	if err != nil {
		return 0
	}
	s, err := ino.stream(attrData, "")
	if err != nil {
		return 0
	}
	n, left := int64(0), f.clusters
	buf := make([]byte, 256<<10)
	for off := int64(0); left > 0 && off < s.size; off += int64(len(buf)) {
		m, err := s.ReadAt(buf, off)
		if err != nil && !errors.Is(err, io.EOF) {
			return 0
		}
		for _, b := range buf[:m] {
			if left < 8 {
				b &= 1<<max(left, 0) - 1
			}
			n += int64(bits.OnesCount8(b))
			left -= 8
		}
	}
	return n * f.cluster
}

// Info implements [filesystem.FS].
func (f *FS) Info() filesystem.Info { return f.info }

// Root implements [filesystem.FS].
func (f *FS) Root() filesystem.ID { return f.root }

// readFull fills p from off, or says that the disk is cut off.
func readFull(r io.ReaderAt, p []byte, off int64) error {
	n, err := r.ReadAt(p, off)
	switch {
	case n == len(p):
		return nil
	case err == nil || errors.Is(err, io.EOF):
		return corrupt("it is cut off at byte %d", off+int64(n))
	}
	return err
}
