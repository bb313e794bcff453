package diskimage

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	programs "github.com/holdfast-vm/holdfast/internal/child"
	"github.com/holdfast-vm/holdfast/internal/extent"
	"github.com/holdfast-vm/holdfast/internal/nbd"
)

const (
	allocation  = "base:allocation"
	dirtyBitmap = "qemu:dirty-bitmap:"
	openLimit   = 30 * time.Second // for qemu-nbd to open an image
)

// child is an image behind a qemu-nbd process.
type child struct {
	*nbd.Client
	server *process
	bitmap string
}

// openChild has qemu-nbd open the image.
func openChild(ctx context.Context, path, format, bitmap string) (source, error) {
	return startChild(ctx, []string{"-f", format, "--", path}, bitmap, format, nil)
}

// startChild starts qemu-nbd for the image that args name. The server inherits a socket that
// listens already, and the secret if there is one, and ends with its only client.
func startChild(ctx context.Context, image []string, bitmap, format string, secret []byte) (source, error) {
	dir, err := os.MkdirTemp("", "hf")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir) // the connection outlives the name
	args := []string{"-r"}
	contexts := []string{allocation}
	if bitmap != "" {
		args = append(args, "-B", bitmap)
		contexts = append(contexts, dirtyBitmap+bitmap)
	}
	socket := filepath.Join(dir, "s")
	server, err := serve(socket, secret, append(args, image...)...)
	if err != nil {
		return nil, fmt.Errorf("read %s through qemu-nbd: %w", format, err)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, openLimit, fmt.Errorf("qemu-nbd does not answer within %v", openLimit))
	defer cancel()
	client, err := nbd.Dial(ctx, nbd.Options{Network: "unix", Address: socket, MetaContexts: contexts})
	if err != nil {
		server.kill()
		return nil, server.explain(err)
	}
	c := &child{Client: client, server: server, bitmap: bitmap}
	if bitmap != "" && !c.HasContext(dirtyBitmap+bitmap) {
		return nil, errors.Join(fmt.Errorf("%w: %q", ErrNoBitmap, bitmap), c.Close())
	}
	return c, nil
}

func (c *child) size() int64 { return c.Size() }

func (c *child) ReadAt(p []byte, off int64) (int, error) {
	n, err := c.Client.ReadAt(p, off)
	if errors.Is(err, nbd.ErrDisconnected) {
		err = c.server.explain(err)
	}
	return n, err
}

func (c *child) extents(ctx context.Context) (extent.Set, error) {
	return c.collect(ctx, allocation, func(flags uint64) bool { return flags&nbd.AllocationZero == 0 })
}

func (c *child) dirty(ctx context.Context) (extent.Set, error) {
	if c.bitmap == "" {
		return nil, ErrNoBitmap
	}
	return c.collect(ctx, dirtyBitmap+c.bitmap, func(flags uint64) bool { return flags&1 != 0 })
}

func (c *child) collect(ctx context.Context, metaContext string, want func(flags uint64) bool) (extent.Set, error) {
	var set extent.Set
	for r, err := range c.Extents(ctx, metaContext) {
		if err != nil {
			return nil, err
		}
		if want(r.Flags) {
			set = set.Append(extent.Extent{Off: r.Off, Len: r.Len})
		}
	}
	return set, nil
}

func (c *child) Close() error {
	err := c.Client.Close()
	c.server.kill()
	return err
}

// process is a qemu-nbd that dies with us.
type process struct {
	cmd    *programs.Cmd
	stderr tail
	ended  chan struct{}
}

// serve starts qemu-nbd on a socket made here. It reads the secret from a pipe.
func serve(socket string, secret []byte, args ...string) (*process, error) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return nil, err
	}
	defer l.Close()
	f, err := l.File()
	if err != nil {
		return nil, err
	}
	defer f.Close()
	l.SetUnlinkOnClose(false)
	binary, err := programs.Find("qemu-nbd")
	if err != nil {
		return nil, err
	}
	// A server takes over a listening socket only if LISTEN_PID is its own, which a shell knows
	// before it becomes the server.
	p := &process{ended: make(chan struct{})}
	p.cmd = programs.Command("/bin/sh", append([]string{"-c", `LISTEN_FDS=1 LISTEN_PID=$$ exec "$0" "$@"`, binary}, args...)...)
	p.cmd.Env = append(p.cmd.Env, "LC_ALL=C")
	p.cmd.ExtraFiles, p.cmd.Stderr = []*os.File{f}, &p.stderr
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if len(secret) > 0 {
		fd, sent, err := programs.Hand(p.cmd, secret)
		if err != nil {
			return nil, err
		}
		defer sent()
		p.cmd.Args = slices.Insert(p.cmd.Args, 4, "--object", fmt.Sprintf("secret,id=%s,file=/dev/fd/%d", keyID, fd))
	}
	started := make(chan error)
	go p.run(started)
	return p, <-started
}

// run starts the process and waits for its end on one thread: the kernel sends the death signal
// when the thread that forked ends.
func (p *process) run(started chan<- error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer close(p.ended)
	err := p.cmd.Start()
	started <- err
	if err == nil {
		p.cmd.Wait()
	}
}

// kill ends the process and waits for its end.
func (p *process) kill() {
	p.cmd.Process.Kill()
	<-p.ended
}

// explain adds the process's last words to err, and says what they mean where callers decide by it.
// Only once the process is ending.
func (p *process) explain(err error) error {
	p.kill()
	words := p.stderr.String()
	if words == "" {
		return fmt.Errorf("qemu-nbd: %w", err)
	}
	for said, sentinel := range map[string]error{
		`Failed to get .*lock`: ErrInUse, `Bitmap '.*' is not found`: ErrNoBitmap, `Bitmap '.*' is inconsistent`: ErrBitmapInconsistent,
		`key-secret' is required`: ErrEncrypted, `Invalid password`: ErrSecret,
		`Permission denied`: os.ErrPermission, `Unknown (block )?driver`: ErrFormat, `No such file or directory`: os.ErrNotExist,
	} {
		if regexp.MustCompile(said).MatchString(words) {
			return fmt.Errorf("%w: qemu-nbd: %s", sentinel, words)
		}
	}
	return fmt.Errorf("%w: qemu-nbd: %s", ErrDamaged, words)
}

// tail keeps the last KiBs written to it.
type tail struct {
	mu sync.Mutex
	b  []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = append(t.b, p...)
	t.b = t.b[max(0, len(t.b)-4096):]
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.Join(strings.Fields(string(t.b)), " ")
}

// refuseBacking returns ErrFormat if the image refers to another file. It opens none but the image.
func refuseBacking(ctx context.Context, path, format string) error {
	var stderr bytes.Buffer
	cmd := programs.CommandContext(ctx, "qemu-img", "info", "--output=json", "-f", format, "--", path)
	cmd.Env, cmd.Stderr = append(cmd.Env, "LC_ALL=C"), &stderr
	out, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("%w: qemu-img info: %w: %s", ErrDamaged, err, strings.TrimSpace(stderr.String()))
	}
	var info struct {
		Backing string `json:"backing-filename"`
	}
	if err := json.Unmarshal(out, &info); err != nil {
		return fmt.Errorf("qemu-img info: %w", err)
	}
	if info.Backing != "" {
		return refers(format, info.Backing)
	}
	return nil
}
