package qcow2

import (
	"bytes"
	"encoding/binary"
	"io"
	"math"
)

const (
	magic           = 0x514649fb // "QFI\xfb"
	minClusterBits  = 9
	maxClusterBits  = 21
	maxDiskBytes    = 1 << 61 // QEMU's limits
	maxL1Bytes      = 32 << 20
	maxRefTabBytes  = 8 << 20
	headerV2Bytes   = 72
	headerV3Bytes   = 104
	headerFullBytes = 112 // what Writer writes: compression_type and its padding included

	incompatDirty       = 1 << 0
	incompatCorrupt     = 1 << 1
	incompatDataFile    = 1 << 2
	incompatCompression = 1 << 3
	incompatExtendedL2  = 1 << 4
	incompatKnown       = 1<<5 - 1

	autoclearBitmaps = 1 << 0

	cryptNone = 0
	cryptAES  = 1
	cryptLUKS = 2

	extEnd           = 0x00000000
	extBackingFormat = 0xe2792aca
	extBitmaps       = 0x23852875
	extDataFile      = 0x44415441
	extCrypto        = 0x0537be77

	offsetMask    = 0x00fffffffffffe00 // bits 9-55 of table entries
	flagCopied    = 1 << 63
	flagCompressd = 1 << 62
	flagZero      = 1 << 0
)

// Info is what the header of an image says.
type Info struct {
	Version       int
	Size          int64 // of the virtual disk
	ClusterSize   int
	BackingFile   string // "" if there is none
	BackingFormat string // "" if not told
	DataFile      string // name of the external data file, if told
	HasDataFile   bool   // guest data is in another file
	Encryption    string // how guest data is encrypted: "aes", "luks", or of a kind not known, "other"; "" if it is not
	Incompatible  uint64 // feature bits as stored
	Snapshots     int    // internal snapshots
}

// MarkedCorrupt reports whether QEMU found the image corrupt and said so in its header.
func (i Info) MarkedCorrupt() bool { return i.Incompatible&incompatCorrupt != 0 }

// header is the decoded header with the places of the tables.
type header struct {
	Info
	clusterBits uint
	l1Offset    int64
	l1Entries   int64
	autoclear   uint64
	bitmaps     struct {
		count      uint32
		off, bytes int64
	}
}

// l2Entries returns the number of clusters that one L2 table maps.
func (h *header) l2Entries() int64 {
	n := int64(1) << (h.clusterBits - 3)
	if h.Incompatible&incompatExtendedL2 != 0 {
		n /= 2
	}
	return n
}

// readHeader decodes the header and its extensions, all of which must be in the first cluster.
func readHeader(r io.ReaderAt, fileSize int64) (*header, error) {
	buf := make([]byte, min(fileSize, headerV3Bytes))
	if _, err := io.ReadFull(io.NewSectionReader(r, 0, fileSize), buf); err != nil {
		return nil, err
	}
	if len(buf) < 8 || binary.BigEndian.Uint32(buf) != magic {
		return nil, ErrNotQcow2
	}
	if len(buf) < headerV2Bytes {
		return nil, corrupt("header ends after %d bytes", len(buf))
	}
	h := &header{}
	extAt, err := h.decodeFixed(buf)
	if err != nil {
		return nil, err
	}
	if err := h.check(fileSize); err != nil {
		return nil, err
	}
	first := make([]byte, min(fileSize, int64(h.ClusterSize)))
	if _, err := io.ReadFull(io.NewSectionReader(r, 0, fileSize), first); err != nil {
		return nil, err
	}
	if err := h.decodeBacking(first); err != nil {
		return nil, err
	}
	return h, h.decodeExtensions(first, extAt)
}

// decodeFixed fills h from the fixed fields and returns where extensions begin.
func (h *header) decodeFixed(buf []byte) (extAt uint32, err error) {
	be := binary.BigEndian
	h.Version = int(be.Uint32(buf[4:]))
	if h.Version != 2 && h.Version != 3 {
		return 0, unsupported("version %d", h.Version)
	}
	h.clusterBits = uint(be.Uint32(buf[20:]))
	if h.clusterBits < minClusterBits || h.clusterBits > maxClusterBits {
		return 0, corrupt("cluster size of 2^%d bytes", h.clusterBits)
	}
	h.ClusterSize = 1 << h.clusterBits
	size, l1Off := be.Uint64(buf[24:]), be.Uint64(buf[40:])
	if size > maxDiskBytes || l1Off > math.MaxInt64/2 {
		return 0, corrupt("disk size %d, L1 table at %d", size, l1Off)
	}
	h.Size, h.l1Offset, h.l1Entries = int64(size), int64(l1Off), int64(be.Uint32(buf[36:]))
	h.Encryption = encryption(be.Uint32(buf[32:]))
	h.Snapshots = int(be.Uint32(buf[60:]))
	if h.Version == 2 {
		return headerV2Bytes, nil
	}
	if len(buf) < headerV3Bytes {
		return 0, corrupt("header ends after %d bytes", len(buf))
	}
	h.Incompatible, h.autoclear = be.Uint64(buf[72:]), be.Uint64(buf[88:])
	h.HasDataFile = h.Incompatible&incompatDataFile != 0
	if unknown := h.Incompatible &^ incompatKnown; unknown != 0 {
		return 0, unsupported("unknown incompatible features %#x", unknown)
	}
	extAt = be.Uint32(buf[100:])
	if extAt < headerV3Bytes || extAt%8 != 0 || int64(extAt) > int64(h.ClusterSize) {
		return 0, corrupt("header length %d", extAt)
	}
	return extAt, nil
}

func encryption(method uint32) string {
	switch method {
	case cryptNone:
		return ""
	case cryptAES:
		return "aes"
	case cryptLUKS:
		return "luks"
	}
	return "other"
}

// check holds the tables' places against the file's end.
func (h *header) check(fileSize int64) error {
	span := h.l2Entries() << h.clusterBits
	need := (h.Size + span - 1) / span
	switch {
	case h.l1Entries < need:
		return corrupt("L1 table has %d entries, a disk of %d bytes needs %d", h.l1Entries, h.Size, need)
	case h.l1Entries*8 > maxL1Bytes:
		return corrupt("L1 table of %d entries is larger than %d bytes", h.l1Entries, maxL1Bytes)
	case h.l1Offset%int64(h.ClusterSize) != 0:
		return corrupt("L1 table at %d is not on a cluster boundary", h.l1Offset)
	case h.l1Offset+h.l1Entries*8 > fileSize:
		return corrupt("L1 table at %d of %d bytes is beyond the end of the file at %d", h.l1Offset, h.l1Entries*8,
			fileSize)
	}
	h.l1Entries = need // what follows is the state of a stopped machine, not the disk
	return nil
}

func (h *header) decodeBacking(first []byte) error {
	off, n := binary.BigEndian.Uint64(first[8:]), uint64(binary.BigEndian.Uint32(first[16:]))
	if off == 0 {
		return nil
	}
	if n == 0 || n > 1023 || off > uint64(len(first)) || off+n > uint64(len(first)) {
		return corrupt("backing file name of %d bytes at %d", n, off)
	}
	h.BackingFile = string(first[off : off+n])
	return nil
}

func (h *header) decodeExtensions(first []byte, at uint32) error {
	be := binary.BigEndian
	rest := first[min(int(at), len(first)):]
	if off := be.Uint64(first[8:]); off >= uint64(at) && off <= uint64(len(first)) {
		rest = first[at:off]
	}
	for len(rest) >= 8 {
		kind, n := be.Uint32(rest), uint64(be.Uint32(rest[4:]))
		if kind == extEnd {
			return nil
		}
		padded := (n + 7) &^ 7
		if n > uint64(len(rest)-8) {
			return corrupt("header extension %#x of %d bytes leaves the first cluster", kind, n)
		}
		if err := h.decodeExtension(kind, rest[8:8+n]); err != nil {
			return err
		}
		rest = rest[8+min(padded, uint64(len(rest)-8)):]
	}
	return nil
}

func (h *header) decodeExtension(kind uint32, data []byte) error {
	switch kind {
	case extBackingFormat:
		h.BackingFormat = string(data)
	case extDataFile:
		h.DataFile = string(bytes.TrimRight(data, "\x00"))
	case extBitmaps:
		if len(data) != 24 {
			return corrupt("bitmaps extension of %d bytes", len(data))
		}
		be := binary.BigEndian
		n, off := be.Uint64(data[8:]), be.Uint64(data[16:])
		if n > math.MaxInt64/2 || off > math.MaxInt64/2 {
			return corrupt("bitmap directory of %d bytes at %d", n, off)
		}
		h.bitmaps.count, h.bitmaps.bytes, h.bitmaps.off = be.Uint32(data), int64(n), int64(off)
	}
	return nil
}
