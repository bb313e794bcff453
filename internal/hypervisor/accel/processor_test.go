package accel

import (
	"reflect"
	"testing"
)

// What QEMU 7.2 writes, shortened.
const (
	realMode = `
CPU#0
EAX=00000052 EBX=00000000 ECX=00035b7c EDX=000003f8
ESI=00000400 EDI=00001400 EBP=00000000 ESP=00000000
EIP=0000100e EFL=00000002 [-------] CPL=0 II=0 A20=1 SMM=0 HLT=0
ES =0000 00000000 0000ffff 00009300
CS =0000 00000000 0000ffff 00009b00
CR0=60000010 CR2=00000000 CR3=00000000 CR4=00000000
`
	twoProcessors = `
CPU#0
RAX=0000000000000000 RBX=00000000035b1000 RCX=000000000017dc00 RDX=0000000000000010
RSI=0000000000cedff8 RDI=000000000419eff8 RBP=0000000001000000 RSP=0000000004338000
RIP=00000000001002aa RFL=00010416 [D---AP-] CPL=0 II=0 A20=1 SMM=0 HLT=0
CS =0010 0000000000000000 ffffffff 00a09b00 DPL=0 CS64 [-RA]
EFER=0000000000000500

CPU#1
EAX=00000000 EBX=00000000 ECX=00000001 EDX=00000663
EIP=000fd0a8 EFL=00000246 [---Z-P-] CPL=0 II=0 A20=1 SMM=0 HLT=1
CS =0008 00000000 ffffffff 00c09b00 DPL=0 CS32 [-RA]
`
	noX86 = "\nCPU#0\n PC=0000000040000000 X00=0000000000000000\nPSTATE=400003c5 -Z-- EL1h\n"
)

func TestProcessors(t *testing.T) {
	for _, tt := range []struct {
		name, text string
		want       []Processor
		words      string // of the last
	}{
		{"real mode", realMode, []Processor{{At: 0x100e, Bits: 16, counter: 0x35b7c}},
			"0x100e in 16-bit code, interrupts off"},
		{"two", twoProcessors, []Processor{{At: 0x1002aa, Bits: 64, counter: 0x17dc00},
			{At: 0xfd0a8, Bits: 32, Interrupts: true, Halted: true, counter: 1}}, "0xfd0a8 in 32-bit code"},
		{"no x86", noX86, nil, ""},
		{"nothing", "", nil, ""},
	} {
		got := Processors(tt.text)
		if !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%s: %+v, want %+v", tt.name, got, tt.want)
		}
		if n := len(got); n > 0 && got[n-1].String() != tt.words {
			t.Errorf("%s: %q, want %q", tt.name, got[n-1], tt.words)
		}
	}
}
