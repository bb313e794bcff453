package hostcheck

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"

	"github.com/holdfast-vm/holdfast/internal/child"
	"github.com/holdfast-vm/holdfast/internal/nbd"
)

const exportSize = 1 << 20

// pattern is an export of known bytes.
type pattern struct{ data []byte }

func (p pattern) Size() int64 { return int64(len(p.data)) }

func (p pattern) ReadAt(_ context.Context, b []byte, off int64) error {
	copy(b, p.data[off:])
	return nil
}

func (p pattern) Status(_ context.Context, off, n int64) ([]nbd.StatusExtent, error) {
	return []nbd.StatusExtent{{Length: n}}, nil
}

// checkNBD has QEMU read an export of ours, as a machine does that runs on one.
func checkNBD(ctx context.Context, _ *look) []Finding {
	f := Finding{Verdict: Works, Found: "QEMU's tools read an export of ours over a unix socket, byte for byte"}
	if _, err := child.Find("qemu-img"); err != nil {
		return one(Finding{Verdict: Unknown, Found: "not tried: there is no qemu-img", Advice: "see the check tools"})
	}
	if err := tryNBD(ctx); err != nil {
		f = Finding{Verdict: Fails, Found: err.Error(),
			Lost:   "instant restores, drills and disks that are attached at once",
			Advice: "install QEMU's NBD driver (Fedora, RHEL: qemu-img and qemu-kvm-core with block-nbd)"}
	}
	if _, err := os.Stat("/dev/nbd0"); err != nil && f.Verdict == Works {
		f.Found += "; the kernel's nbd module is not loaded, which only nbd-client needs"
	}
	return one(f)
}

func tryNBD(ctx context.Context) error {
	dir, err := os.MkdirTemp("", "hf")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		return err
	}
	want := bytes.Repeat([]byte("Holdfast"), exportSize/8)
	server := nbd.NewServer(nbd.ServerOptions{Exports: nbd.ExportList{{Name: "x", Backend: pattern{want},
		ReadOnly: true}}})
	serving, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(serving, l) }()
	limited, cancel := context.WithTimeout(ctx, hostTime)
	defer cancel()
	to := filepath.Join(dir, "copy")
	out, err := child.CommandContext(limited, "qemu-img", "convert", "-f", "raw", "-O", "raw",
		nbd.URI(&net.UnixAddr{Name: filepath.Join(dir, "s"), Net: "unix"}, "x", false), to).CombinedOutput()
	stop()
	<-ended
	if err != nil {
		return fmt.Errorf("qemu-img convert from an export: %w: %s", err, strings.TrimSpace(string(out)))
	}
	got, err := os.ReadFile(to)
	if err == nil && !bytes.Equal(got, want) {
		err = fmt.Errorf("qemu-img read other bytes from an export than it serves")
	}
	return err
}
