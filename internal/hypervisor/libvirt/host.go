// Package libvirt is a hypervisor.Host over libvirtd, spoken to with the client in its child rpc.
//
// A [Host] connects when it is first used and again after libvirtd was restarted. It never waits
// for libvirtd without a limit. It reads and writes libvirt's files of firmware variables and TPM
// state itself, so it must run on libvirtd's host, as a user that may do that.
package libvirt

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/holdfast-vm/holdfast/internal/hypervisor"
	"github.com/holdfast-vm/holdfast/internal/hypervisor/libvirt/rpc"
)

// callTimeout bounds what one method waits for libvirtd in all, where the caller's context does
// not.
const callTimeout = 5 * time.Minute

var _ hypervisor.Host = (*Host)(nil)

// Host is the machines of one libvirtd. Its methods are safe for concurrent use.
type Host struct {
	uri     string
	driver  string   // qemu:///system or qemu:///session
	sockets []string // the first that exists is taken
	tpmDir  string   // TPM state, a directory per UUID

	mu     sync.Mutex // guards client
	client *rpc.Client
}

// New returns the host that uri names: qemu:///system, qemu:///session, or
// qemu+unix:///system?socket=PATH, where a socket was given. A session's socket= may be followed by
// config=DIR, libvirt's configuration directory of that user.
func New(uri string) (*Host, error) {
	u, err := url.Parse(uri)
	if err != nil {
		return nil, fmt.Errorf("libvirt URI: %w", err)
	}
	if u.Scheme != "qemu" && u.Scheme != "qemu+unix" || u.Host != "" || u.Path != "/system" && u.Path != "/session" {
		return nil, fmt.Errorf("libvirt URI %q is not of this host: it must be qemu:///system, qemu:///session or "+
			"qemu+unix:///system?socket=PATH", uri)
	}
	h := &Host{uri: uri, driver: "qemu://" + u.Path}
	query := u.Query()
	var run string
	if u.Path == "/system" {
		run, h.tpmDir = "/run/libvirt", "/var/lib/libvirt/swtpm"
	} else {
		config := query.Get("config")
		if config == "" {
			config = filepath.Join(userDir("XDG_CONFIG_HOME", ".config"), "libvirt")
		}
		run = filepath.Join(userDir("XDG_RUNTIME_DIR", ".cache"), "libvirt")
		h.tpmDir = filepath.Join(config, "qemu/swtpm")
	}
	h.sockets = []string{filepath.Join(run, "libvirt-sock"), filepath.Join(run, "virtqemud-sock")}
	if s := query.Get("socket"); s != "" {
		h.sockets = []string{s}
	}
	return h, nil
}

func userDir(env, fallback string) string {
	if dir := os.Getenv(env); dir != "" {
		return dir
	}
	home, _ := os.UserHomeDir()
	return filepath.Join(home, fallback)
}

// URI is how the user named the host.
func (h *Host) URI() string { return h.uri }

// Close ends the connection. The host connects again if it is used again.
func (h *Host) Close() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.client == nil {
		return nil
	}
	err := h.client.Close()
	h.client = nil
	return err
}

// away is an error of connecting, which is a [hypervisor.ErrUnreachable] without saying so twice.
type away struct{ error }

func (a away) Unwrap() error        { return a.error }
func (a away) Is(target error) bool { return target == hypervisor.ErrUnreachable }

// Client returns the connection to libvirtd, a new one if the last has ended. An error is
// [hypervisor.ErrUnreachable].
func (h *Host) Client(ctx context.Context) (*rpc.Client, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.client != nil {
		select {
		case <-h.client.Closed():
			h.client.Close()
			h.client = nil
		default:
			return h.client, nil
		}
	}
	c, err := h.dial(ctx)
	if err != nil {
		return nil, away{err}
	}
	h.client = c
	return c, nil
}

func (h *Host) dial(ctx context.Context) (c *rpc.Client, err error) {
	for _, socket := range h.sockets {
		c, err = rpc.Dial(ctx, socket, h.driver)
		if !errors.Is(err, fs.ErrNotExist) {
			return c, err
		}
	}
	if len(h.sockets) > 1 {
		return nil, fmt.Errorf("connect to libvirtd, which is not installed or not running: %s: %w",
			strings.Join(h.sockets, ", "), fs.ErrNotExist)
	}
	return nil, err
}

// Domain looks a machine up by its name, or returns hypervisor.ErrNoMachine.
func (h *Host) Domain(ctx context.Context, name string) (*rpc.Client, rpc.Domain, error) {
	c, err := h.Client(ctx)
	if err != nil {
		return nil, rpc.Domain{}, err
	}
	dom, err := c.DomainByName(ctx, name)
	if rpc.Is(err, rpc.NoDomain) {
		return nil, rpc.Domain{}, fmt.Errorf("%w: %s at %s", hypervisor.ErrNoMachine, name, h.uri)
	}
	if err != nil {
		return nil, rpc.Domain{}, fmt.Errorf("look up %s: %w", name, err)
	}
	return c, dom, nil
}
