package ext4

import (
	"encoding/binary"
	"hash/crc32"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// crc32c continues a checksum as the kernel does: without inverting before and after.
func crc32c(seed uint32, b []byte) uint32 { return ^crc32.Update(^seed, castagnoli, b) }

// crc32cNumber continues a checksum with a number of 32 bits.
func crc32cNumber(seed, n uint32) uint32 {
	return crc32c(seed, binary.LittleEndian.AppendUint32(nil, n))
}

// crc16Table is for the polynomial 0x8005, low bit first.
var crc16Table = func() (t [256]uint16) {
	for i := range t {
		c := uint16(i)
		for range 8 {
			if c&1 != 0 {
				c = c>>1 ^ 0xA001
			} else {
				c >>= 1
			}
		}
		t[i] = c
	}
	return t
}()

// crc16 is the checksum of group descriptors before metadata_csum.
func crc16(seed uint16, b []byte) uint16 {
	for _, v := range b {
		seed = seed>>8 ^ crc16Table[byte(seed)^v]
	}
	return seed
}

// crc32beTable is for the polynomial 0x04C11DB7, high bit first.
var crc32beTable = func() (t [256]uint32) {
	for i := range t {
		c := uint32(i) << 24
		for range 8 {
			if c&(1<<31) != 0 {
				c = c<<1 ^ 0x04C11DB7
			} else {
				c <<= 1
			}
		}
		t[i] = c
	}
	return t
}()

// crc32be is the checksum of a journal's transactions in their first form.
func crc32be(seed uint32, b []byte) uint32 {
	for _, v := range b {
		seed = seed<<8 ^ crc32beTable[byte(seed>>24)^v]
	}
	return seed
}

func le16(b []byte, off int) uint16 { return binary.LittleEndian.Uint16(b[off:]) }
func le32(b []byte, off int) uint32 { return binary.LittleEndian.Uint32(b[off:]) }
