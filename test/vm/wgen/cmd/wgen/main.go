// Command wgen writes verifiable records to two disks inside the lab guest, or checks a pair.
//
//	wgen [-rate N] [-seed N] [-span MIB] A B
//	wgen -check A B
//
// The writer prints "ACKED n" about once a second: both disks hold step n for good. It opens the
// disks with O_DIRECT and O_DSYNC, and ends after a whole step when it is told to terminate.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"

	"github.com/holdfast-vm/holdfast/test/vm/wgen"
)

func main() {
	rate := flag.Int("rate", 0, "steps a second; 0 is as fast as the disks allow")
	seed := flag.Uint64("seed", 1, "where records go; ignored on disks that have records")
	span := flag.Int64("span", 64, "MiB of each disk to use; ignored on disks that have records")
	check := flag.Bool("check", false, "check the pair and write nothing")
	flag.Parse()
	if flag.NArg() != 2 {
		flag.Usage()
		os.Exit(2)
	}
	run := write
	if *check {
		run = func(a, b string, _ int, _ uint64, _ int64) error { return checkPair(a, b) }
	}
	if err := run(flag.Arg(0), flag.Arg(1), *rate, *seed, *span<<20); err != nil {
		fmt.Fprintln(os.Stdout, "WGEN-FAILED", err)
		os.Exit(1)
	}
}

func checkPair(pathA, pathB string) error {
	a, sizeA, err := open(pathA, os.O_RDONLY)
	if err != nil {
		return err
	}
	defer a.Close()
	b, sizeB, err := open(pathB, os.O_RDONLY)
	if err != nil {
		return err
	}
	defer b.Close()
	nA, nB, err := wgen.Check(a, b, sizeA, sizeB)
	if err != nil {
		return err
	}
	fmt.Printf("CONSISTENT A=%d B=%d\n", nA, nB)
	return nil
}

func write(pathA, pathB string, rate int, seed uint64, span int64) error {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	defer stop()
	a, sizeA, err := openDevice(pathA)
	if err != nil {
		return err
	}
	defer a.Close()
	b, sizeB, err := openDevice(pathB)
	if err != nil {
		return err
	}
	defer b.Close()
	layout, err := wgen.NewLayout(seed, min(span, sizeA, sizeB))
	if err != nil {
		return err
	}
	slot, err := unix.Mmap(-1, 0, wgen.SlotSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return fmt.Errorf("allocate an aligned buffer: %w", err)
	}
	w, err := wgen.NewWriter(a, b, min(sizeA, sizeB), layout, slot)
	if err != nil {
		return err
	}
	fmt.Println("WGEN-BEGIN", w.Done())
	return w.Run(ctx, rate, func(n uint64) { fmt.Println("ACKED", n) })
}

// device reads through the page cache and writes past it, each write durable when it returns.
type device struct {
	cached *os.File
	direct *os.File
}

func openDevice(path string) (*device, int64, error) {
	cached, size, err := open(path, os.O_RDONLY)
	if err != nil {
		return nil, 0, err
	}
	direct, _, err := open(path, os.O_WRONLY|unix.O_DIRECT|unix.O_DSYNC)
	if err != nil {
		return nil, 0, errors.Join(err, cached.Close())
	}
	return &device{cached: cached, direct: direct}, size, nil
}

func (d *device) ReadAt(p []byte, off int64) (int, error)  { return d.cached.ReadAt(p, off) }
func (d *device) WriteAt(p []byte, off int64) (int, error) { return d.direct.WriteAt(p, off) }
func (d *device) Close() error                             { return errors.Join(d.cached.Close(), d.direct.Close()) }

// Zero is made durable by the synchronous write that follows it.
func (d *device) Zero(off, length int64) error {
	return zeroOut(d.direct, off, length)
}

func open(path string, flags int) (*os.File, int64, error) {
	f, err := os.OpenFile(path, flags, 0)
	if err != nil {
		return nil, 0, err
	}
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, 0, errors.Join(fmt.Errorf("size of %s: %w", path, err), f.Close())
	}
	return f, size, nil
}
