// Command labvm runs a lab guest for use by hand and by the demo.
//
//	go run ./test/vm/cmd/labvm --dir DIR [--name NAME] [flags]
//	go run ./test/vm/cmd/labvm --image
//
// It uses the disks DIR/vda.qcow2, DIR/vdb.qcow2 and DIR/vdc.raw as they are and makes those that
// are missing. Once the guest is up it prints where its sockets and its console are, one NAME=PATH
// a line, and runs until it is interrupted, or until the guest powers off. With --daemonize it
// leaves QEMU running, its process ID in DIR/NAME.pid.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/holdfast-vm/holdfast/test/vm"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "labvm:", err)
		os.Exit(1)
	}
}

func run() error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	var o vm.Options
	flag.StringVar(&o.Dir, "dir", "", "directory of the disks; made if it is missing")
	flag.StringVar(&o.Name, "name", "lab", "name of the machine")
	flag.StringVar(&o.UUID, "uuid", "", "UUID of the machine; default a random one")
	flag.IntVar(&o.Memory, "memory", 0, "MiB of memory; default 384")
	flag.StringVar(&o.Work, "work", "", `jobs in the guest; default "disks,db", "none" for none`)
	flag.IntVar(&o.Rate, "rate", 0, "steps a second of the job disks; default 50")
	flag.BoolVar(&o.NoIOThread, "no-iothread", false, "serve vdb from QEMU's main loop")
	imageOnly := flag.Bool("image", false, "build the guest image if it is missing, print its directory, and end")
	daemonize := flag.Bool("daemonize", false, "end once the guest is up, and leave QEMU running")
	flag.Parse()

	image, err := vm.FindImage(ctx, os.Stderr)
	if err != nil {
		return err
	}
	if *imageOnly {
		fmt.Println(filepath.Dir(image.Disk))
		return nil
	}
	if o.Dir == "" || flag.NArg() != 0 {
		return errors.New("give --dir and no arguments; --help lists the flags")
	}
	if err := useDisks(&o); err != nil {
		return err
	}
	if *daemonize {
		return daemon(image, o)
	}
	return foreground(ctx, image, o)
}

// useDisks takes the disks of the directory that exist.
func useDisks(o *vm.Options) error {
	if err := os.MkdirAll(o.Dir, 0o755); err != nil {
		return err
	}
	for name, disk := range map[string]*vm.Disk{"vda.qcow2": &o.System, "vdb.qcow2": &o.DataA, "vdc.raw": &o.DataB} {
		path := filepath.Join(o.Dir, name)
		if _, err := os.Stat(path); err == nil {
			disk.Path = path
		}
	}
	return nil
}

func foreground(ctx context.Context, image vm.Image, o vm.Options) error {
	v, err := vm.LaunchQEMU(image, o)
	if err != nil {
		return err
	}
	// An interrupt during the boot ends QEMU, and that ends the wait.
	context.AfterFunc(ctx, func() { v.Close() })
	if err := v.WaitUp(); err != nil {
		return errors.Join(err, v.Close())
	}
	describe(v)
	<-v.Done()
	return v.Close()
}

func daemon(image vm.Image, o vm.Options) error {
	v, err := vm.LaunchDetached(image, o)
	if err != nil {
		return err
	}
	if err := v.WaitUp(); err != nil {
		return errors.Join(err, v.Close())
	}
	pidfile := filepath.Join(o.Dir, o.Name+".pid")
	if err := os.WriteFile(pidfile, fmt.Appendln(nil, v.PID), 0o644); err != nil {
		return errors.Join(err, v.Close())
	}
	describe(v)
	fmt.Printf("PIDFILE=%s\n", pidfile)
	return nil
}

func describe(v *vm.VM) {
	fmt.Printf("PID=%d\nQMP=%s\nQGA=%s\nLABQMP=%s\nLABAGENT=%s\nCONSOLE=%s\n",
		v.PID, v.QMPPath, v.QGAPath, v.HarnessPath, v.LabPath, v.ConsolePath)
	for _, d := range v.Disks {
		fmt.Printf("DISK_%s=%s\n", d.Name, d.Path)
	}
}
