package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/holdfast-vm/holdfast/test/sparse"
)

// sparseSizes are the sizes of disks in bytes that hold the same little.
var sparseSizes = []int64{1 << 30, 1 << 40, 8 << 40}

// sparse is the part of goals 3 and 16 that is about holes: what each command costs follows what a
// disk holds, and not how large it is. Printed is processor time, of holdfast and what it starts.
func (b *bench) sparse() error {
	took := make(map[string][][]float64) // by command: seconds by size, round by round
	var order []string
	for range b.rounds {
		for i, size := range sparseSizes {
			c := sparse.Commands{Holdfast: b.holdfast, Dir: filepath.Join(b.dir, "sparse"), Size: size,
				Ran: func(command string, p *os.ProcessState) {
					if took[command] == nil {
						took[command] = make([][]float64, len(sparseSizes))
						order = append(order, command)
					}
					seconds := (p.UserTime() + p.SystemTime()).Seconds()
					took[command][i] = append(took[command][i], seconds)
				}}
			if err := os.Mkdir(c.Dir, 0o700); err != nil {
				return err
			}
			if err := c.Run(); err != nil {
				return err
			}
			if err := os.RemoveAll(c.Dir); err != nil {
				return err
			}
		}
	}
	const row = "%-32s %8s %8s %8s   %s\n"
	fmt.Printf(row, "ms of processor time", "1 GiB", "1 TiB", "8 TiB", "1 TiB / 1 GiB")
	ms := func(s []float64) string { return fmt.Sprintf("%.0f", 1000*median(s)) }
	for _, command := range order {
		t := took[command]
		fmt.Printf(row, command, ms(t[0]), ms(t[1]), ms(t[2]), ratio(t[1], t[0]))
	}
	fmt.Print("goals 3, 16  wanted at most 1.5x\n\n")
	return nil
}
