package export

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/holdfast-vm/holdfast/internal/durable"
	"github.com/holdfast-vm/holdfast/internal/nbd"
)

// The format of a layer's map, docs/formats/layer.md: a header, then a bit per block.
const (
	layerHeader = 4096
	layerMagic  = "HFLAYER1"
	layerUsed   = 8 + 4 + 4 + 8 + 16 + 32 // bytes of the header that mean something
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// LayerOf says which disk a layer lies over: it is of no use over any other.
type LayerOf struct {
	Vault string // ID of the vault, 32 hexadecimal digits
	Root  string // of the disk's tree, 64 hexadecimal digits; "" is a disk of holes
	Size  int64  // bytes
}

func (o LayerOf) header() ([]byte, error) {
	vault, err := hex.DecodeString(o.Vault)
	if err != nil || len(vault) != 16 {
		return nil, fmt.Errorf("vault ID %q is not 32 hexadecimal digits", o.Vault)
	}
	root, err := hex.DecodeString(o.Root)
	if err != nil || len(root) != 32 && len(root) != 0 {
		return nil, fmt.Errorf("root %q is not 64 hexadecimal digits", o.Root)
	}
	b := make([]byte, 0, layerHeader)
	b = append(b, layerMagic...)
	b = binary.LittleEndian.AppendUint32(b, layerBlock)
	b = binary.LittleEndian.AppendUint32(b, 0)
	b = binary.LittleEndian.AppendUint64(b, uint64(o.Size))
	b = append(b, vault...)
	b = append(b, root...)
	b = b[:layerHeader]
	binary.LittleEndian.PutUint32(b[layerHeader-4:], crc32.Checksum(b[:layerHeader-4], castagnoli))
	return b, nil
}

// checkLayerHeader compares the header that was found with the one that belongs to the disk.
func checkLayerHeader(got, want []byte) error {
	sum := binary.LittleEndian.Uint32(got[layerHeader-4:])
	switch {
	case string(got[:8]) != layerMagic:
		return fmt.Errorf("%w: its map does not begin as one of this format", ErrLayerDamaged)
	case sum != crc32.Checksum(got[:layerHeader-4], castagnoli):
		return fmt.Errorf("%w: the header of its map is not as it was written", ErrLayerDamaged)
	case !bytes.Equal(got[:layerUsed], want[:layerUsed]):
		var of []string
		if !bytes.Equal(got[24:40], want[24:40]) {
			of = append(of, "vault "+hex.EncodeToString(got[24:28]))
		}
		of = append(of, fmt.Sprintf("the disk of %d bytes with root %x…", binary.LittleEndian.Uint64(got[16:]),
			got[40:44]))
		return fmt.Errorf("%w: it was made over %s", ErrOtherDisk, joined(of))
	}
	return nil
}

func joined(parts []string) string {
	if len(parts) == 2 {
		return parts[1] + " of " + parts[0]
	}
	return parts[0]
}

// OpenLayer opens the layer called name in dir over below, which is the disk that of describes, or
// makes a new one. Its files are NAME.layer and NAME.map. It returns ErrOtherDisk for a layer of
// another disk, ErrLayerInUse while another process has it open, and ErrLayerDamaged.
func OpenLayer(dir, name string, below nbd.Backend, of LayerOf) (*Layer, error) {
	l, err := openLayer(dir, name, below, of)
	if err != nil {
		return nil, fmt.Errorf("open layer %s: %w", filepath.Join(dir, name), err)
	}
	return l, nil
}

func openLayer(dir, name string, below nbd.Backend, of LayerOf) (l *Layer, err error) {
	dir, err = filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	if err := durable.MkdirAll(durable.OS{}, dir); err != nil {
		return nil, err
	}
	data, err := os.OpenFile(filepath.Join(dir, name+".layer"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			data.Close()
		}
	}()
	if err := unix.Flock(int(data.Fd()), unix.LOCK_EX|unix.LOCK_NB); errors.Is(err, unix.EWOULDBLOCK) {
		return nil, ErrLayerInUse
	} else if err != nil {
		return nil, fmt.Errorf("lock %s: %w", data.Name(), err)
	}
	meta, err := openMap(filepath.Join(dir, name+".map"), data, of)
	if err != nil {
		return nil, err
	}
	// The process that made the layer may have been killed before its names were on disk.
	if err = (durable.OS{}).SyncDir(dir); err == nil {
		l, err = newLayer(below, &osFile{data}, &osFile{meta})
	}
	if err != nil {
		meta.Close()
	}
	return l, err
}

// openMap opens the map of a layer whose data file is locked, or makes both of a new layer.
func openMap(path string, data *os.File, of LayerOf) (*os.File, error) {
	want, err := of.header()
	if err != nil {
		return nil, err
	}
	meta, err := os.OpenFile(path, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		if meta, err = createLayer(path, data, of, want); err != nil {
			return nil, err
		}
	} else if err != nil {
		return nil, err
	}
	// What is read ahead counts as data from then on, though nothing was ever written there: the
	// whole map of a large disk would be read.
	err = unix.Fadvise(int(meta.Fd()), 0, 0, unix.FADV_RANDOM)
	if err == nil {
		err = checkLayer(meta, data, of, want)
	}
	if err != nil {
		meta.Close()
		return nil, err
	}
	return meta, nil
}

func checkLayer(meta, data *os.File, of LayerOf, want []byte) error {
	got := make([]byte, layerHeader)
	if _, err := meta.ReadAt(got, 0); errors.Is(err, io.EOF) {
		return fmt.Errorf("%w: its map ends within the header", ErrLayerDamaged)
	} else if err != nil {
		return err
	}
	if err := checkLayerHeader(got, want); err != nil {
		return err
	}
	for f, size := range map[*os.File]int64{meta: mapSize(of.Size), data: of.Size} {
		info, err := f.Stat()
		if err != nil {
			return err
		}
		if info.Size() != size {
			return fmt.Errorf("%w: %s has %d bytes, %d belong there", ErrLayerDamaged, f.Name(), info.Size(), size)
		}
	}
	return nil
}

// mapSize returns the size of the map file of a disk.
func mapSize(disk int64) int64 { return layerHeader + mapPages(disk)*mapPage }

// createLayer makes the files of a new layer. The map gets its name last: without one there is no
// layer.
func createLayer(path string, data *os.File, of LayerOf, header []byte) (meta *os.File, err error) {
	if allocated(data) {
		return nil, fmt.Errorf("%w: %s holds data, but its map %s is not there", ErrLayerDamaged, data.Name(),
			filepath.Base(path))
	}
	if err := data.Truncate(of.Size); err != nil {
		return nil, err
	}
	if err := data.Sync(); err != nil {
		return nil, err
	}
	temp := path + ".new"
	meta, err = os.OpenFile(temp, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			meta.Close()
			os.Remove(temp)
		}
	}()
	if _, err = meta.WriteAt(header, 0); err != nil {
		return nil, err
	}
	// Room for the map is taken now, where the file system can: a flush does not want for it later.
	if err = unix.Fallocate(int(meta.Fd()), 0, 0, mapSize(of.Size)); errors.Is(err, unix.EOPNOTSUPP) {
		err = meta.Truncate(mapSize(of.Size))
	}
	if err != nil {
		return nil, err
	}
	if err = meta.Sync(); err != nil {
		return nil, err
	}
	if err = os.Rename(temp, path); err != nil {
		return nil, err
	}
	return meta, durable.OS{}.SyncDir(filepath.Dir(path))
}

// allocated reports whether a file takes any space.
func allocated(f *os.File) bool {
	var st unix.Stat_t
	return unix.Fstat(int(f.Fd()), &st) == nil && st.Blocks > 0
}

// osFile is a file of a layer on the machine's file system.
type osFile struct{ *os.File }

// Sync implements layerFile: size and names do not change after the layer was made.
func (f *osFile) Sync() error { return unix.Fdatasync(int(f.Fd())) }

// Reread implements layerFile. Pages that a failed sync has left in the cache count as clean, and
// are dropped.
func (f *osFile) Reread() error {
	if err := f.Sync(); err != nil {
		return err
	}
	return unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
}

// Zero implements layerFile.
func (f *osFile) Zero(off, n int64, punch bool) error {
	mode := uint32(unix.FALLOC_FL_ZERO_RANGE)
	if punch {
		mode = unix.FALLOC_FL_PUNCH_HOLE
	}
	err := unix.Fallocate(int(f.Fd()), mode|unix.FALLOC_FL_KEEP_SIZE, off, n)
	if !errors.Is(err, unix.EOPNOTSUPP) {
		return err
	}
	zeros := make([]byte, min(n, 1<<20))
	for end := off + n; off < end; off += int64(len(zeros)) {
		if _, err := f.WriteAt(zeros[:min(int64(len(zeros)), end-off)], off); err != nil {
			return err
		}
	}
	return nil
}

// Run implements layerFile.
func (f *osFile) Run(off, n int64) (length int64, hole bool, err error) {
	at, err := unix.Seek(int(f.Fd()), off, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO):
		return n, true, nil
	case err != nil:
		return n, false, nil // it cannot tell: all is data
	case at > off:
		return min(at-off, n), true, nil
	}
	if at, err = unix.Seek(int(f.Fd()), off, unix.SEEK_HOLE); err != nil {
		return n, false, nil
	}
	return min(at-off, n), false, nil
}

// TryReadAt implements layerFile.
func (f *osFile) TryReadAt(p []byte, off int64) bool {
	n, err := unix.Preadv2(int(f.Fd()), [][]byte{p}, off, unix.RWF_NOWAIT)
	return err == nil && n == len(p)
}
