package accel

import "encoding/binary"

// The test guest is firmware of our own: a reset vector, an entry that copies the rest to memory,
// and three stages there. Each stage writes its letter to the first serial port and counts
// loopCount down to zero in ECX. Then the guest writes [letterEnd] and halts. It uses no firmware
// but itself: that of QEMU runs on hosts, too, where nothing else does.
const (
	romSize   = 64 << 10
	romEntry  = 0x400  // in the ROM
	resetAt   = 0xfff0 // in the ROM: where a processor begins
	codeAt    = 0x1000 // in memory
	gdtAt     = codeAt + 0xa0
	loopCount = 1 << 23 // 10 ms on a processor, 50 to 100 ms emulated

	letterReal      = 'R'
	letterProtected = 'P'
	letterLong      = 'L'
	letterEnd       = 'E'
)

var resetVector = []byte{
	0xea, 0x00, 0x04, 0x00, 0xf0, // ljmp 0xf000:romEntry
}

// entryCode copies all that precedes it to codeAt. It runs in the ROM, in real mode.
var entryCode = []byte{
	0xfa,       // cli
	0xfc,       // cld
	0x31, 0xc0, // xor %ax, %ax
	0x8e, 0xd8, // mov %ax, %ds
	0x8e, 0xc0, // mov %ax, %es
	0x8e, 0xd0, // mov %ax, %ss
	0x31, 0xf6, // xor %si, %si
	0xbf, 0x00, 0x10, // mov $codeAt, %di
	0xb9, 0x00, 0x04, // mov $romEntry, %cx
	0x2e, 0xf3, 0xa4, // rep movsb %cs:(%si), %es:(%di)
	0xea, 0x00, 0x10, 0x00, 0x00, // ljmp 0:codeAt
}

var guestCode = []byte{
	// Real mode.
	0xba, 0xf8, 0x03, // mov $0x3f8, %dx
	0xb0, letterReal, // mov $letterReal, %al
	0xee,                               // out %al, (%dx)
	0x66, 0xb9, 0x00, 0x00, 0x80, 0x00, // mov $loopCount, %ecx
	0x66, 0x49, // dec %ecx
	0x75, 0xfc, // jnz, to the dec
	0x0f, 0x01, 0x16, 0xc0, 0x10, // lgdt codeAt+0xc0
	0x0f, 0x20, 0xc0, // mov %cr0, %eax
	0x0c, 0x01, // or $1, %al
	0x0f, 0x22, 0xc0, // mov %eax, %cr0
	0x66, 0xea, 0x25, 0x10, 0x00, 0x00, 0x08, 0x00, // ljmpl $8, to the next instruction

	// Protected mode, 32 bits wide.
	0x66, 0xb8, 0x10, 0x00, // mov $16, %ax
	0x8e, 0xd8, // mov %eax, %ds
	0x8e, 0xc0, // mov %eax, %es
	0x8e, 0xd0, // mov %eax, %ss
	0xb0, letterProtected, // mov $letterProtected, %al
	0xee,                         // out %al, (%dx)
	0xb9, 0x00, 0x00, 0x80, 0x00, // mov $loopCount, %ecx
	0x49,       // dec %ecx
	0x75, 0xfd, // jnz, to the dec
	// Page tables that map the first 2 MiB to themselves.
	0xc7, 0x05, 0x00, 0x20, 0x00, 0x00, 0x03, 0x30, 0x00, 0x00, // movl $0x3003, 0x2000
	0xc7, 0x05, 0x00, 0x30, 0x00, 0x00, 0x03, 0x40, 0x00, 0x00, // movl $0x4003, 0x3000
	0xc7, 0x05, 0x00, 0x40, 0x00, 0x00, 0x83, 0x00, 0x00, 0x00, // movl $0x83, 0x4000
	0xb8, 0x00, 0x20, 0x00, 0x00, // mov $0x2000, %eax
	0x0f, 0x22, 0xd8, // mov %eax, %cr3
	0x0f, 0x20, 0xe0, // mov %cr4, %eax
	0x0c, 0x20, // or $0x20, %al: physical address extension
	0x0f, 0x22, 0xe0, // mov %eax, %cr4
	0xb9, 0x80, 0x00, 0x00, 0xc0, // mov $0xc0000080, %ecx
	0x0f, 0x32, // rdmsr
	0x80, 0xcc, 0x01, // or $1, %ah: long mode
	0x0f, 0x30, // wrmsr
	0x0f, 0x20, 0xc0, // mov %cr0, %eax
	0x0d, 0x00, 0x00, 0x00, 0x80, // or $0x80000000, %eax: paging
	0x0f, 0x22, 0xc0, // mov %eax, %cr0
	0xea, 0x86, 0x10, 0x00, 0x00, 0x18, 0x00, // ljmp $24, to the next instruction

	// Long mode, 64 bits wide, with paging.
	0x66, 0xba, 0xf8, 0x03, // mov $0x3f8, %dx
	0xb0, letterLong, // mov $letterLong, %al
	0xee,                         // out %al, (%dx)
	0xb9, 0x00, 0x00, 0x80, 0x00, // mov $loopCount, %ecx
	0xff, 0xc9, // dec %ecx
	0x75, 0xfc, // jnz, to the dec
	0xb0, letterEnd, // mov $letterEnd, %al
	0xee,       // out %al, (%dx)
	0xf4,       // hlt
	0xeb, 0xfd, // jmp, to the hlt
}

// segments are those of the modes: none, code and data of 32 bits, code of 64.
var segments = []uint64{0, 0x00cf9b000000ffff, 0x00cf93000000ffff, 0x00af9b000000ffff}

// rom returns the test guest as firmware for QEMU's -bios.
func rom() []byte {
	image := make([]byte, romSize)
	copy(image, guestCode)
	table := image[gdtAt-codeAt : gdtAt-codeAt]
	for _, s := range segments {
		table = binary.LittleEndian.AppendUint64(table, s)
	}
	table = binary.LittleEndian.AppendUint16(table, uint16(8*len(segments)-1)) // what lgdt reads
	binary.LittleEndian.AppendUint32(table, gdtAt)
	copy(image[romEntry:], entryCode)
	copy(image[resetAt:], resetVector)
	return image
}
