package qemu

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/holdfast-vm/holdfast/internal/guest"
	"github.com/holdfast-vm/holdfast/internal/hypervisor"
	"github.com/holdfast-vm/holdfast/internal/qmp"
)

// Scheme begins the URIs of this package.
const Scheme = hypervisor.PlainScheme

// commandTime bounds what QEMU answers at once when it is well: some commands, on a host that may
// be very busy.
const commandTime = 60 * time.Second

// Host is one plain QEMU process, or the place where one will be.
type Host struct {
	uri    string
	socket string // QMP
	agent  string // guest agent; "" means what QEMU's own command line names

	mu     sync.Mutex
	client *qmp.Client // nil until first used
}

var _ hypervisor.Host = (*Host)(nil)

// New returns the host that uri names. It connects when it is first used.
func New(uri string) (*Host, error) {
	rest, ok := strings.CutPrefix(uri, Scheme)
	if !ok {
		return nil, fmt.Errorf("host %q: not a %sPATH[,qga=PATH] address", uri, Scheme)
	}
	socket, agent, _ := strings.Cut(rest, ",qga=")
	if socket == "" || strings.HasSuffix(rest, ",qga=") {
		return nil, fmt.Errorf("host %q: the path of a socket is missing", uri)
	}
	h := &Host{uri: uri, socket: socket, agent: agent}
	for _, p := range []*string{&h.socket, &h.agent} {
		if *p == "" {
			continue
		}
		abs, err := filepath.Abs(*p)
		if err != nil {
			return nil, fmt.Errorf("host %q: %w", uri, err)
		}
		*p = abs
	}
	return h, nil
}

// URI is how the user named the host.
func (h *Host) URI() string { return h.uri }

// Client returns the connection to the monitor, made anew if the last one has ended. It stays the
// host's: do not close it.
func (h *Host) Client(ctx context.Context) (*qmp.Client, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.client != nil {
		select {
		case <-h.client.Done():
		default:
			return h.client, nil
		}
	}
	c, err := qmp.Dial(ctx, h.socket)
	if err != nil {
		return nil, err
	}
	h.client = c
	return c, nil
}

// Close ends the connection. The host can be used again and then connects again.
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

// OpenAgent opens the machine's guest agent: at the path that the URI names, else at the one QEMU's
// command line names.
func (h *Host) OpenAgent(ctx context.Context, m hypervisor.Machine) (hypervisor.Agent, error) {
	path := h.agent
	if path == "" {
		path = h.agentSocket(ctx)
	}
	if path == "" {
		return nil, fmt.Errorf("machine %s: %w: its command line has no unix socket for org.qemu.guest_agent.0", m.Name,
			hypervisor.ErrNoAgent)
	}
	a, err := guest.DialUnix(ctx, path)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
		return nil, fmt.Errorf("machine %s: %w: %v", m.Name, hypervisor.ErrNoAgent, err)
	}
	if err != nil {
		return nil, fmt.Errorf("machine %s: %w", m.Name, err)
	}
	return a, nil
}

// agentSocket returns where QEMU listens for the agent's client, by its command line; "" if
// nowhere.
func (h *Host) agentSocket(ctx context.Context) string {
	c, err := h.Client(ctx)
	if err != nil {
		return ""
	}
	p, err := readProcess(c.PeerPID())
	if err != nil {
		return ""
	}
	cl := parseCommandLine(p.args)
	path := cl.agentSocket()
	if path == "" {
		return ""
	}
	return p.resolve(path)
}

// Software says what runs the machine.
func (h *Host) Software(ctx context.Context) (hypervisor.Software, error) {
	ctx, cancel := context.WithTimeout(ctx, commandTime)
	defer cancel()
	c, err := h.Client(ctx)
	if err != nil {
		return hypervisor.Software{}, err
	}
	v := c.Version()
	return hypervisor.Software{QEMU: fmt.Sprintf("%d.%d.%d", v.Major, v.Minor, v.Micro), Process: c.PeerPID(),
		UID: -1, GID: -1}, nil
}
