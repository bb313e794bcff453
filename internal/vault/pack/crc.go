package pack

import "hash/crc32"

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// joinSums returns the CRC-32C of a‖b from those of a and of b, which has n bytes. CRCs are
// remainders of polynomials over two elements: what is before n bytes counts times x to the 8n.
func joinSums(a, b uint32, n int) uint32 {
	shift := uint32(1 << 31) // 1: bits are in reverse
	for k := 3; n > 0; k, n = k+1, n>>1 {
		if n&1 != 0 {
			shift = times(powers[k&31], shift)
		}
	}
	return times(shift, a) ^ b
}

// powers are x to the 1, 2, 4, 8 and so on; after 31 of them they repeat.
var powers = func() (p [32]uint32) {
	p[0] = 1 << 30
	for i := 1; i < len(p); i++ {
		p[i] = times(p[i-1], p[i-1])
	}
	return p
}()

// times multiplies polynomials modulo that of CRC-32C.
func times(a, b uint32) (product uint32) {
	for ; a != 0; a <<= 1 {
		if a>>31 != 0 {
			product ^= b
		}
		b = b>>1 ^ crc32.Castagnoli&-(b&1)
	}
	return product
}
