package vm

import (
	"crypto/rand"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
)

// Options describes a lab guest. The zero value of each field is its default.
type Options struct {
	Name     string // "" means lab
	UUID     string // "" means a random one
	Dir      string // where new disks go; "" means the test's temporary directory
	Memory   int    // MiB; 0 means 384
	DataSize int64  // bytes of each new data disk; 0 means 256 MiB

	// Disks that exist already and are used as they are. The others are made: the system disk as
	// a copy of the guest image, the data disks empty.
	System, DataA, DataB Disk

	// Work lists the jobs that start with the guest, separated by commas: "disks" and "db". "none"
	// is a guest that does nothing, "" means both. "noagent" among them leaves the product's guest
	// agent channel unanswered.
	Work string
	Rate int    // steps a second of "disks"; 0 means 50
	Seed uint64 // of "disks"; 0 means 1
	Span int    // MiB of each data disk that "disks" uses; 0 means 64

	// Init is the program that the kernel starts in a system disk of one's own; "" is the lab's.
	Init string

	NoIOThread bool // vdb is served by QEMU's main loop
	NoChannel  bool // there is no guest agent channel for the product at all

	// Extra is appended to QEMU's arguments; a libvirt domain ignores it.
	Extra []string

	// outlive leaves QEMU running when the process that started it ends.
	outlive bool
}

// Disk is an image file of a lab guest.
type Disk struct {
	Name   string // in the guest: vda, vdb or vdc
	Path   string
	Format string // raw or qcow2; "" takes what the file's extension says, raw if it says nothing
}

func (o Options) withDefaults() Options {
	if o.Name == "" {
		o.Name = "lab"
	}
	if o.UUID == "" {
		o.UUID = newUUID()
	}
	if o.Memory == 0 {
		o.Memory = 384
	}
	if o.DataSize == 0 {
		o.DataSize = 256 << 20
	}
	if o.Work == "" {
		o.Work = "disks,db"
	}
	if o.Rate == 0 {
		o.Rate = 50
	}
	if o.Seed == 0 {
		o.Seed = 1
	}
	if o.Span == 0 {
		o.Span = 64
	}
	return o
}

// commandLine is what the kernel is told.
func (o Options) commandLine() string {
	line := fmt.Sprintf("console=ttyS0 quiet panic=1 no_timer_check hf.work=%s hf.rate=%d hf.seed=%d hf.span=%d",
		o.Work,
		o.Rate, o.Seed, o.Span)
	if o.Init != "" {
		line += " init=" + o.Init
	}
	return line
}

func newUUID() string {
	var b [16]byte
	rand.Read(b[:])
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// disks returns the three disks with absolute paths, having made those that do not exist.
func (o Options) disks(image Image) ([]Disk, error) {
	dir, err := filepath.Abs(o.Dir)
	if err != nil {
		return nil, err
	}
	disks := []Disk{o.System, o.DataA, o.DataB}
	for i, fresh := range []struct {
		name, file, format string
		create             func(path string) error
	}{
		{"vda", "vda.qcow2", "qcow2", func(path string) error {
			return run("cp", "--reflink=auto", "--sparse=always", image.Disk, path)
		}},
		{"vdb", "vdb.qcow2", "qcow2", func(path string) error {
			return run("qemu-img", "create", "-q", "-f", "qcow2", path, fmt.Sprint(o.DataSize))
		}},
		{"vdc", "vdc.raw", "raw", func(path string) error {
			return run("qemu-img", "create", "-q", "-f", "raw", path, fmt.Sprint(o.DataSize))
		}},
	} {
		d := &disks[i]
		d.Name = fresh.name
		if d.Path == "" {
			d.Path, d.Format = filepath.Join(dir, fresh.file), fresh.format
			if err := fresh.create(d.Path); err != nil {
				return nil, fmt.Errorf("make disk %s: %w", d.Name, err)
			}
			continue
		}
		if d.Path, err = filepath.Abs(d.Path); err != nil {
			return nil, err
		}
		if d.Format == "" {
			d.Format = formatOf(d.Path)
		}
	}
	return disks, nil
}

func formatOf(path string) string {
	if filepath.Ext(path) == ".qcow2" {
		return "qcow2"
	}
	return "raw"
}

// run runs a program whose output matters only when it fails.
func run(name string, args ...string) error {
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}
