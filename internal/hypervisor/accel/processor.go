package accel

import (
	"context"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"github.com/holdfast-vm/holdfast/internal/qmp"
)

// Processor is where one processor of a machine is.
type Processor struct {
	At         uint64 `json:"at"`         // the instruction pointer
	Bits       int    `json:"bits"`       // 16, 32 or 64: the width of its code
	Interrupts bool   `json:"interrupts"` // interrupts of devices reach it
	Halted     bool   `json:"halted"`     // it waits for an interrupt; under KVM it may be known to the kernel alone

	counter uint64 // ECX: what the test guest counts, and any guest that copies
}

func (p Processor) String() string {
	text := fmt.Sprintf("%#x in %d-bit code", p.At, p.Bits)
	if !p.Interrupts {
		text += ", interrupts off"
	}
	return text
}

var (
	registers = regexp.MustCompile(`(?m)\b[ER]CX=([0-9a-f]+)(?s:.*?)\b[ER]IP=([0-9a-f]+) [ER]FL=([0-9a-f]+)`)
	halted    = regexp.MustCompile(`\bHLT=1`)
	codeWidth = regexp.MustCompile(`(?m)^CS =.* CS(64|32|16)\b`)
)

// interruptFlag is the bit of the flags that lets interrupts in.
const interruptFlag = 1 << 9

// Registers is the command of QEMU's monitor whose answer [Processors] reads.
const Registers = "info registers -a"

// Look asks a QEMU where the processors of its machine are.
func Look(ctx context.Context, c *qmp.Client) ([]Processor, error) {
	var text string
	err := c.Execute(ctx, "human-monitor-command", map[string]string{"command-line": Registers}, &text)
	return Processors(text), err
}

// Processors reads QEMU's registers of a machine. It returns none for one that is no x86.
func Processors(text string) []Processor {
	var all []Processor
	for _, one := range strings.Split("\n"+text, "\nCPU#") {
		m := registers.FindStringSubmatch(one)
		if m == nil {
			continue
		}
		p := Processor{Bits: 16, Halted: halted.MatchString(one), counter: hex(m[1]), At: hex(m[2]),
			Interrupts: hex(m[3])&interruptFlag != 0}
		if w := codeWidth.FindStringSubmatch(one); w != nil {
			p.Bits, _ = strconv.Atoi(w[1])
		}
		all = append(all, p)
	}
	return all
}

// hex reads digits that were matched.
func hex(digits string) uint64 {
	n, _ := strconv.ParseUint(digits, 16, 64)
	return n
}
