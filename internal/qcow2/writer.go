package qcow2

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/holdfast-vm/holdfast/internal/directio"
	"github.com/holdfast-vm/holdfast/internal/extent"
	"github.com/holdfast-vm/holdfast/internal/luks"
)

// Writer fills a new image. WriteAt may be called by many goroutines at once; Close and Abort once
// nobody writes any more.
type Writer struct {
	path   string
	f      *directio.File
	l      *layout
	once   sync.Once
	result error // of Close or Abort
}

// Create writes an empty image of size bytes at path, rounded up to whole sectors of 512 bytes. The
// file must not exist. A large disk gives a small file: only tables and the parts of bitmaps that
// are neither all set nor all clear take space.
func Create(path string, size int64, o CreateOptions) error {
	w, err := NewWriter(path, size, nil, o)
	if err != nil {
		return err
	}
	return w.Close()
}

// NewWriter begins an image of size bytes, rounded up to whole sectors of 512 bytes, at path, which
// must not exist. Exactly the clusters that data touches are allocated, in order; all else reads as
// zeros. Until Close has succeeded, the file has no header and is not an image.
func NewWriter(path string, size int64, data extent.Set, o CreateOptions) (*Writer, error) {
	l, err := plan(size, data, o)
	if err != nil {
		return nil, fmt.Errorf("create qcow2 image %s: %w", path, err)
	}
	f, err := directio.Create(path)
	if err != nil {
		return nil, fmt.Errorf("create qcow2 image: %w", err)
	}
	w := &Writer{path: path, f: f, l: l}
	err = w.writeTables()
	if err == nil && l.encryption != nil {
		err = w.writeEncrypted(data)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("create qcow2 image %s: %w", path, err), w.Abort())
	}
	return w, nil
}

// ReopenWriter goes on with an image that NewWriter began with the same arguments and that was left
// before Close. What was written before a Sync that succeeded is there.
func ReopenWriter(path string, size int64, data extent.Set, o CreateOptions) (*Writer, error) {
	l, err := plan(size, data, o)
	if err != nil {
		return nil, fmt.Errorf("go on with qcow2 image %s: %w", path, err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("go on with qcow2 image: %w", err)
	}
	info, err := f.Stat()
	if err == nil && info.Size() != l.fileSize {
		err = fmt.Errorf("it has %d bytes, not %d", info.Size(), l.fileSize)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("go on with qcow2 image %s: %w", path, err)
	}
	return &Writer{path: path, f: directio.On(f), l: l}, nil
}

// WriteAt writes p at off of the disk. Bytes outside the clusters given to NewWriter are an error,
// and then nothing may be written of p.
func (w *Writer) WriteAt(p []byte, off int64) (int, error) {
	for done := 0; done < len(p); {
		at, n := w.l.host(off + int64(done))
		if n == 0 {
			return done, fmt.Errorf("write qcow2 image %s at %d: outside the allocated clusters", w.path,
				off+int64(done))
		}
		m, err := w.writeData(p[done:done+int(min(n, int64(len(p)-done)))], at)
		done += m
		if err != nil {
			return done, fmt.Errorf("write qcow2 image at %d: %w", off+int64(done), err)
		}
	}
	return len(p), nil
}

// writeData writes guest data at the place at of the file. What is encrypted is so in whole
// sectors: of the last one of a disk the rest is zeros.
func (w *Writer) writeData(p []byte, at int64) (int, error) {
	if w.l.encryption == nil {
		return w.f.WriteAt(p, at)
	}
	if at%luks.Sector != 0 {
		return 0, fmt.Errorf("%d is within a sector of an encrypted image", at)
	}
	sealed := make([]byte, (len(p)+luks.Sector-1)&^(luks.Sector-1))
	copy(sealed, p)
	w.l.encryption.Cipher.Encrypt(sealed, uint64(at)/luks.Sector)
	n, err := w.f.WriteAt(sealed, at)
	return min(n, len(p)), err
}

// writeEncrypted writes the header that the secret opens, and zeros to what is allocated beside
// data: a hole in the file would read as noise.
func (w *Writer) writeEncrypted(data extent.Set) error {
	if _, err := w.f.WriteAt(w.l.encryption.Header, w.l.crypto); err != nil {
		return err
	}
	zeros := make([]byte, w.l.clusterSize)
	for _, e := range w.l.clusters.Subtract(data.Align(luks.Sector, w.l.size)) {
		for off := e.Off; off < e.End(); off += int64(len(zeros)) {
			if _, err := w.WriteAt(zeros[:min(int64(len(zeros)), e.End()-off)], off); err != nil {
				return err
			}
		}
	}
	return nil
}

// StartWriteBack has the kernel begin to write what was written so far. It promises nothing.
func (w *Writer) StartWriteBack() {
	_ = unix.SyncFileRange(int(w.f.Fd()), 0, 0, unix.SYNC_FILE_RANGE_WRITE) // the sync in Close tells of errors
}

// Sync makes what was written so far durable. The directory's entry is the caller's to sync.
func (w *Writer) Sync() error { return w.f.Sync() }

// Leave closes the file, which is not an image yet, and leaves it for ReopenWriter. After Close and
// Abort it does nothing.
func (w *Writer) Leave() error {
	var err error
	w.once.Do(func() {
		err = w.f.Close()
		w.result = fmt.Errorf("qcow2 image %s: %w", w.path, os.ErrClosed)
	})
	return err
}

// Close writes the header once all else is durable, and makes it durable too. The directory's entry
// is the caller's to sync. On error the file is removed.
func (w *Writer) Close() error {
	w.once.Do(func() {
		if err := w.finish(); err != nil {
			w.result = errors.Join(fmt.Errorf("close qcow2 image %s: %w", w.path, err), w.discard())
		}
	})
	return w.result
}

// Abort closes and removes the file. After Close it does nothing, so that it may be deferred.
func (w *Writer) Abort() error {
	var err error
	w.once.Do(func() {
		err = w.discard()
		w.result = fmt.Errorf("qcow2 image %s: %w", w.path, os.ErrClosed)
	})
	return err
}

func (w *Writer) discard() error {
	w.f.Close()
	return os.Remove(w.path)
}

func (w *Writer) finish() error {
	if err := w.f.Sync(); err != nil {
		return err
	}
	if _, err := w.f.WriteAt(w.header(), 0); err != nil {
		return err
	}
	if err := w.f.Sync(); err != nil {
		return err
	}
	return w.f.Close()
}

func (w *Writer) header() []byte {
	l, be := w.l, binary.BigEndian
	h := make([]byte, headerFullBytes, 256)
	be.PutUint32(h, magic)
	be.PutUint32(h[4:], 3)
	be.PutUint32(h[20:], uint32(bits.TrailingZeros64(uint64(l.clusterSize))))
	be.PutUint64(h[24:], uint64(l.size))
	if l.encryption != nil {
		be.PutUint32(h[32:], cryptLUKS)
	}
	be.PutUint32(h[36:], uint32(l.l1Entries))
	be.PutUint64(h[40:], uint64(l.l1))
	be.PutUint64(h[48:], uint64(l.refTable))
	be.PutUint32(h[56:], uint32(l.refTableClusters))
	be.PutUint32(h[96:], 4) // 16-bit reference counts
	be.PutUint32(h[100:], headerFullBytes)
	if len(l.bitmaps) > 0 {
		be.PutUint64(h[88:], autoclearBitmaps)
		h = be.AppendUint32(h, extBitmaps)
		h = be.AppendUint32(h, 24)
		h = be.AppendUint32(h, uint32(len(l.bitmaps)))
		h = be.AppendUint32(h, 0)
		h = be.AppendUint64(h, uint64(len(l.directory)))
		h = be.AppendUint64(h, uint64(l.directoryAt))
	}
	if l.encryption != nil {
		h = be.AppendUint32(h, extCrypto)
		h = be.AppendUint32(h, 16)
		h = be.AppendUint64(h, uint64(l.crypto))
		h = be.AppendUint64(h, uint64(len(l.encryption.Header)))
	}
	if l.backing == "" {
		return be.AppendUint64(h, extEnd)
	}
	if n := len(l.backingFormat); n > 0 {
		h = be.AppendUint32(h, extBackingFormat)
		h = be.AppendUint32(h, uint32(n))
		h = append(h, l.backingFormat...)
		h = append(h, make([]byte, -n&7)...)
	}
	h = be.AppendUint64(h, extEnd)
	be.PutUint64(h[8:], uint64(len(h)))
	be.PutUint32(h[16:], uint32(len(l.backing)))
	return append(h, l.backing...)
}

func (w *Writer) writeTables() error {
	if err := w.f.Truncate(w.l.fileSize); err != nil {
		return err
	}
	if err := w.f.Reserve(extent.Set{{Off: w.l.data, Len: w.l.fileSize - w.l.data}}); err != nil {
		return err
	}
	for _, write := range []func() error{w.writeRefcounts, w.writeMapping, w.writeBitmaps} {
		if err := write(); err != nil {
			return err
		}
	}
	return nil
}

// writeRefcounts counts every cluster of the file once.
func (w *Writer) writeRefcounts() error {
	l := w.l
	table := make([]byte, l.refBlockCount*8)
	for i := range l.refBlockCount {
		binary.BigEndian.PutUint64(table[i*8:], uint64(l.refBlocks+i*l.clusterSize))
	}
	if err := w.writeSparse(table, l.refTable); err != nil {
		return err
	}
	out := bufio.NewWriterSize(io.NewOffsetWriter(w.f, l.refBlocks), 256<<10)
	for range l.fileSize / l.clusterSize {
		if _, err := out.Write([]byte{0, 1}); err != nil {
			return err
		}
	}
	return out.Flush()
}

// writeMapping writes the L1 table and the L2 tables, which follow one another in the disk's order.
func (w *Writer) writeMapping() error {
	l := w.l
	l1, l2 := make([]byte, l.l1Entries*8), make([]byte, l.clusterSize)
	out := bufio.NewWriterSize(io.NewOffsetWriter(w.f, l.l2), 256<<10)
	perTable, current, tables := l.clusterSize/8, int64(-1), int64(0)
	for k, e := range l.clusters {
		host := l.dataAt[k]
		for c := e.Off / l.clusterSize; c*l.clusterSize < e.End(); c++ {
			if i := c / perTable; i != current {
				if err := flushTable(out, l2, current); err != nil {
					return err
				}
				binary.BigEndian.PutUint64(l1[i*8:], uint64(l.l2+tables*l.clusterSize)|flagCopied)
				current, tables = i, tables+1
			}
			binary.BigEndian.PutUint64(l2[c%perTable*8:], uint64(host)|flagCopied)
			host += l.clusterSize
		}
	}
	if err := flushTable(out, l2, current); err != nil {
		return err
	}
	if err := out.Flush(); err != nil {
		return err
	}
	return w.writeSparse(l1, l.l1)
}

// flushTable writes the L2 table of entry index, unless there is none yet, and clears it for the
// next.
func flushTable(out io.Writer, table []byte, index int64) error {
	if index < 0 {
		return nil
	}
	_, err := out.Write(table)
	clear(table)
	return err
}

func (w *Writer) writeBitmaps() error {
	if err := w.writeSparse(w.l.directory, w.l.directoryAt); err != nil {
		return err
	}
	buf := make([]byte, w.l.clusterSize)
	for i := range w.l.bitmaps {
		b := &w.l.bitmaps[i]
		table := make([]byte, len(b.entries)*8)
		for k, e := range b.entries {
			binary.BigEndian.PutUint64(table[k*8:], uint64(e))
			if e <= 1 {
				continue
			}
			b.render(buf, int64(k), b.span(w.l))
			if err := w.writeSparse(buf, e); err != nil {
				return err
			}
		}
		if err := w.writeSparse(table, b.table); err != nil {
			return err
		}
	}
	return nil
}

// writeSparse writes buf at off and leaves blocks of zeros as the holes they are.
func (w *Writer) writeSparse(buf []byte, off int64) error {
	const block = 4096
	for len(buf) > 0 {
		n := 0
		for n < len(buf) && !allZero(buf[n:min(n+block, len(buf))]) {
			n = min(n+block, len(buf))
		}
		if _, err := w.f.WriteAt(buf[:n], off); err != nil {
			return err
		}
		n = min(n+block, len(buf)) // the block of zeros that ended the run
		buf, off = buf[n:], off+int64(n)
	}
	return nil
}

var zeros [4096]byte

// allZero reports whether b, of at most 4096 bytes, is zeros.
func allZero(b []byte) bool { return bytes.Equal(b, zeros[:len(b)]) }
