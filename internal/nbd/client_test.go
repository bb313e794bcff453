package nbd_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/holdfast-vm/holdfast/internal/nbd"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const mib = 1 << 20

// server is a real NBD server. It was given a socket that listens already, so that there is nothing
// to wait for.
type server struct {
	socket string
	cmd    *exec.Cmd
}

func start(t testing.TB, name string, args ...string) *server {
	t.Helper()
	dir, err := os.MkdirTemp("", "hf")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	s := &server{socket: filepath.Join(dir, "s")}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: s.socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	l.SetUnlinkOnClose(false)
	f, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	s.cmd = exec.Command("sh", append([]string{"-c", `LISTEN_FDS=1 LISTEN_PID=$$ exec "$0" "$@"`, name}, args...)...)
	s.cmd.ExtraFiles = []*os.File{f}
	var log bytes.Buffer
	s.cmd.Stderr = &log
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.cmd.Process.Kill()
		s.cmd.Wait()
		if t.Failed() {
			t.Logf("%s: %s", name, &log)
		}
	})
	return s
}

func nbdkit(t testing.TB, args ...string) *server {
	return start(t, "nbdkit", append([]string{"-f"}, args...)...)
}

func (s *server) dial(t testing.TB, o nbd.Options) *nbd.Client {
	t.Helper()
	o.Network, o.Address = "unix", s.socket
	c, err := nbd.Dial(t.Context(), o)
	// the handshake is held to a short RequestTimeout too
	for end := time.Now().Add(2 * time.Minute); errors.Is(err, nbd.ErrTimeout) && time.Now().Before(end); {
		c, err = nbd.Dial(t.Context(), o)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// Many goroutines write and read different parts; what is there in the end is what nbdcopy reads.
func TestParallelWritesAndReads(t *testing.T) {
	const size = 8 * mib
	disk := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(disk, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(disk, size); err != nil {
		t.Fatal(err)
	}
	want := make([]byte, size)
	rand.NewChaCha8([32]byte{1}).Read(want)
	for name, s := range map[string]*server{
		"nbdkit":                nbdkit(t, "file", disk),
		"nbdkit simple replies": nbdkit(t, "--no-sr", "memory", fmt.Sprint(size)),
		"nbdkit blocks of 4 KiB": nbdkit(t, "--filter=blocksize-policy", "memory", fmt.Sprint(size),
			"blocksize-minimum=4096", "blocksize-maximum=64k"),
		"nbdkit answers shuffled": nbdkit(t, "--filter=delay", "memory", fmt.Sprint(size), "delay-read=3ms"),
		"qemu-nbd":                start(t, "qemu-nbd", "-t", "-e", "0", "-f", "raw", disk),
	} {
		t.Run(name, func(t *testing.T) {
			c := s.dial(t, nbd.Options{Window: 8})
			if c.Size() != size {
				t.Fatalf("Size = %d, want %d", c.Size(), size)
			}
			var wg sync.WaitGroup
			for from := 0; from < size; from += mib {
				wg.Go(func() {
					if n, err := c.WriteAt(want[from:from+mib], int64(from)); err != nil || n != mib {
						t.Errorf("write: %d, %v", n, err)
					}
				})
			}
			wg.Wait()
			if err := c.Flush(t.Context()); err != nil {
				t.Fatal(err)
			}
			for range 16 {
				wg.Go(func() {
					off := rand.IntN(size)
					got := make([]byte, rand.IntN(3*mib))
					n, err := c.ReadAt(got, int64(off))
					if n != min(len(got), size-off) || (err == io.EOF) != (n < len(got)) ||
						!bytes.Equal(got[:n], want[off:off+n]) {
						t.Errorf("read of %d bytes at %d: %d, %v, or bytes differ", len(got), off, n, err)
					}
				})
			}
			wg.Wait()
			out, err := exec.Command("nbdcopy", "nbd+unix:///?socket="+s.socket, "-").Output()
			if err != nil || !bytes.Equal(out, want) {
				t.Errorf("nbdcopy: %v, or its bytes differ", err)
			}
		})
	}
}

// A read longer than the server's limit is split; one that begins or ends within a block is
// widened.
func TestReadSplits(t *testing.T) {
	s := nbdkit(t, "--filter=blocksize-policy", "pattern", "size=64M",
		"blocksize-minimum=64k", "blocksize-preferred=64k", "blocksize-maximum=1M", "blocksize-error-policy=error")
	c := s.dial(t, nbd.Options{})
	for _, r := range []struct{ off, n int }{{0, 5 * mib}, {1, 3 * mib}, {mib - 1, 1}, {1000, mib}, {65535, 65538}} {
		got := make([]byte, r.n)
		if err := c.Read(t.Context(), got, int64(r.off)); err != nil {
			t.Fatal(err)
		}
		for i, b := range got {
			at := r.off + i // the pattern is each offset's own, as eight bytes
			if want := byte(at &^ 7 >> (8 * (7 - at%8))); b != want {
				t.Fatalf("read of %d bytes at %d: byte %d is %#x, want %#x", r.n, r.off, at, b, want)
			}
		}
	}
}

func TestZeroesAndTrim(t *testing.T) {
	s := nbdkit(t, "memory", "1M")
	c := s.dial(t, nbd.Options{MetaContexts: []string{"base:allocation"}})
	ctx := t.Context()
	if _, err := c.WriteAt(bytes.Repeat([]byte{7}, mib), 0); err != nil {
		t.Fatal(err)
	}
	if err := c.WriteZeroes(ctx, 65536, 131072, false); err != nil {
		t.Fatal(err)
	}
	if err := c.Trim(ctx, 524288, 65536); err != nil {
		t.Fatal(err)
	}
	want := []nbd.Range{{0, 65536, 0}, {65536, 131072, 3}, {196608, 327680, 0}, {524288, 65536, 3}, {589824, 458752, 0}}
	if got := ranges(t, c, "base:allocation"); !slices.Equal(got, want) {
		t.Errorf("extents are %v, want %v", got, want)
	}
}

func ranges(t testing.TB, c *nbd.Client, name string) []nbd.Range {
	t.Helper()
	var list []nbd.Range
	for r, err := range c.Extents(t.Context(), name) {
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, r)
	}
	return list
}

// nbdinfoMap returns what nbdinfo finds, with equal neighbours merged.
func nbdinfoMap(t testing.TB, s *server, name string) []nbd.Range {
	t.Helper()
	out, err := exec.Command("nbdinfo", "--json", "--map="+name, "nbd+unix:///?socket="+s.socket).Output()
	if err != nil {
		t.Fatal(err)
	}
	var found []struct {
		Offset, Length int64
		Type           uint64
	}
	if err := json.Unmarshal(out, &found); err != nil {
		t.Fatal(err)
	}
	var list []nbd.Range
	for _, e := range found {
		if n := len(list); n > 0 && list[n-1].Flags == e.Type {
			list[n-1].Len += e.Length
			continue
		}
		list = append(list, nbd.Range{Off: e.Offset, Len: e.Length, Flags: e.Type})
	}
	return list
}

func TestBlockStatusIsNbdinfos(t *testing.T) {
	image := filepath.Join(t.TempDir(), "a.qcow2")
	shell(t, `qemu-img create -q -f qcow2 "$1" 10G && qemu-img bitmap --add "$1" b0 && qemu-img bitmap --add -g 512 "$1" b1 &&
		qemu-io -f qcow2 -c "write 1M 64k" -c "write -z 5G 3M" -c "write 9G 100k" "$1" >/dev/null && qemu-img bitmap --disable "$1" b0 &&
		qemu-io -f qcow2 -c "write 3G 512" "$1" >/dev/null && qemu-img bitmap --disable "$1" b1`, image)
	for name, tt := range map[string]struct {
		server   *server
		contexts []string
	}{
		"sparse random": {nbdkit(t, "sparse-random", "20G", "seed=3", "runlength=10485760"),
			[]string{"base:allocation"}},
		"nbdkit memory": {nbdkit(t, "memory", "1M"), []string{"base:allocation"}},
		"qcow2 with bitmaps": {start(t, "qemu-nbd", "-t", "-e", "0", "-r", "-A", "-f", "qcow2", "-B", "b0", "-B", "b1",
			image),
			[]string{"base:allocation", "qemu:dirty-bitmap:b0", "qemu:dirty-bitmap:b1", "qemu:allocation-depth"}},
	} {
		t.Run(name, func(t *testing.T) {
			c := tt.server.dial(t, nbd.Options{MetaContexts: append(tt.contexts, "x:not there")})
			for _, name := range tt.contexts {
				want := nbdinfoMap(t, tt.server, name)
				if got := ranges(t, c, name); len(got) == 0 || !slices.Equal(got, want) {
					t.Errorf("%s:\n%v, nbdinfo:\n%v", name, got, want)
				}
			}
			if _, err := c.BlockStatus(t.Context(), "x:not there", 0, 1); !errors.Is(err, nbd.ErrNoContext) {
				t.Errorf("a context that is not there: %v", err)
			}
		})
	}
}

func shell(t testing.TB, script string, args ...string) {
	t.Helper()
	if out, err := exec.Command("sh", append([]string{"-c", script, "sh"}, args...)...).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

func TestServerErrors(t *testing.T) {
	for errno, want := range map[string]syscall.Errno{"EIO": syscall.EIO, "ENOSPC": syscall.ENOSPC,
		"EPERM": syscall.EPERM} {
		for _, replies := range []string{"--selinux-label=", "--no-sr"} {
			s := nbdkit(t, replies, "--filter=error", "memory", "1M", "error="+errno, "error-rate=100%")
			c := s.dial(t, nbd.Options{})
			for what, err := range map[string]error{
				"read":    c.Read(t.Context(), make([]byte, 4096), 0),
				"zeroes":  c.WriteZeroes(t.Context(), 0, 4096, true),
				"trim":    c.Trim(t.Context(), 0, 4096),
				"write":   second(c.WriteAt(make([]byte, 4096), 0)),
				"outside": c.Read(t.Context(), make([]byte, 4096), mib-1),
			} {
				if what == "outside" {
					want := syscall.EINVAL
					if !errors.Is(err, want) {
						t.Errorf("%s: %v, want %v", what, err, want)
					}
					continue
				}
				var refused *nbd.Error
				if !errors.As(err, &refused) || refused.Errno != want {
					t.Errorf("%s %s: %v, want %v", replies, what, err, want)
				}
			}
		}
	}
}

func second[T any](_ T, err error) error { return err }

func TestReadOnly(t *testing.T) {
	c := nbdkit(t, "-r", "memory", "1M").dial(t, nbd.Options{})
	if _, err := c.WriteAt([]byte{1}, 0); !errors.Is(err, syscall.EROFS) {
		t.Errorf("write to a read-only export: %v", err)
	}
}

func TestDialErrors(t *testing.T) {
	s := nbdkit(t, "--filter=exportname", "memory", "1M", "exportname=a", "exportname=b", "exportname-strict=true",
		"exportname-list=explicit")
	o := nbd.Options{Network: "unix", Address: s.socket, Export: "c"}
	if _, err := nbd.Dial(t.Context(), o); !errors.Is(err, nbd.ErrNoExport) {
		t.Errorf("an export that is not there: %v", err)
	}
	list, err := nbd.List(t.Context(), o)
	if err != nil || len(list) != 2 || list[0].Name != "a" || list[1].Name != "b" {
		t.Errorf("List = %v, %v", list, err)
	}
	o.Address += "x"
	if _, err := nbd.Dial(t.Context(), o); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no socket: %v", err)
	}
}

// When the server dies, every waiting caller learns of it, and so does every later one.
func TestServerKilled(t *testing.T) {
	s := nbdkit(t, "--filter=delay", "memory", "1M", "delay-read=1000")
	c := s.dial(t, nbd.Options{Window: 4})
	errs := make(chan error)
	for range 10 {
		go func() { errs <- c.Read(t.Context(), make([]byte, 4096), 0) }()
	}
	s.cmd.Process.Kill()
	for range 10 {
		if err := <-errs; !errors.Is(err, nbd.ErrDisconnected) {
			t.Errorf("read: %v, want %v", err, nbd.ErrDisconnected)
		}
	}
	if err := c.Flush(t.Context()); !errors.Is(err, nbd.ErrDisconnected) {
		t.Errorf("flush afterwards: %v, want %v", err, nbd.ErrDisconnected)
	}
}

// A caller who gives up is released at once; the others' requests and the connection go on.
func TestCancelOfOneRequest(t *testing.T) {
	s := nbdkit(t, "--filter=delay", "pattern", "1M", "delay-read=300ms")
	c := s.dial(t, nbd.Options{})
	ctx, cancel := context.WithCancel(t.Context())
	gone, stays := make(chan error), make(chan error)
	go func() { gone <- c.Read(ctx, make([]byte, 65536), 0) }()
	go func() { stays <- c.Read(t.Context(), make([]byte, 65536), 0) }()
	cancel()
	if err := <-gone; !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled read: %v", err)
	}
	if err := <-stays; err != nil {
		t.Errorf("the other read: %v", err)
	}
	if err := c.Read(t.Context(), make([]byte, 4096), 8192); err != nil {
		t.Errorf("a later read: %v", err)
	}
}

func TestRequestTimeout(t *testing.T) {
	s := nbdkit(t, "--filter=delay", "memory", "1M", "delay-read=1000")
	c := s.dial(t, nbd.Options{RequestTimeout: time.Second})
	if err := c.Read(t.Context(), make([]byte, 4096), 0); !errors.Is(err, nbd.ErrTimeout) {
		t.Errorf("read: %v, want %v", err, nbd.ErrTimeout)
	}
	if err := c.Flush(t.Context()); !errors.Is(err, nbd.ErrTimeout) {
		t.Errorf("flush afterwards: %v, want %v", err, nbd.ErrTimeout)
	}
}

// A server that accepts and says nothing, or has stopped reading, holds nobody for ever.
func TestSilentServer(t *testing.T) {
	s := nbdkit(t, "memory", "1M")
	if err := s.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	o := nbd.Options{Network: "unix", Address: s.socket, RequestTimeout: 100 * time.Millisecond}
	if _, err := nbd.Dial(t.Context(), o); !errors.Is(err, nbd.ErrTimeout) {
		t.Errorf("Dial: %v, want %v", err, nbd.ErrTimeout)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := nbd.Dial(ctx, o); !errors.Is(err, context.Canceled) {
		t.Errorf("Dial: %v, want %v", err, context.Canceled)
	}
}

func TestStoppedServerAndWrites(t *testing.T) {
	s := nbdkit(t, "memory", "64M")
	c := s.dial(t, nbd.Options{RequestTimeout: time.Second})
	if err := s.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	errs := make(chan error)
	for range 4 {
		go func() { errs <- second(c.WriteAt(make([]byte, 16*mib), 0)) }()
	}
	for range 4 {
		if err := <-errs; !errors.Is(err, nbd.ErrTimeout) && !errors.Is(err, nbd.ErrDisconnected) {
			t.Errorf("write: %v", err)
		}
	}
}

func TestClose(t *testing.T) {
	s := nbdkit(t, "--filter=delay", "memory", "1M", "delay-read=1000")
	c := s.dial(t, nbd.Options{})
	errs := make(chan error)
	go func() { errs <- c.Read(t.Context(), make([]byte, 4096), 0) }()
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-errs; !errors.Is(err, nbd.ErrClosed) {
		t.Errorf("read under way: %v, want %v", err, nbd.ErrClosed)
	}
	if err := c.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
	if strings.Contains(fmt.Sprint(c.Flush(t.Context())), "EOF") {
		t.Error("after Close the reason is that the client is closed")
	}
}
