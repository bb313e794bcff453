package rpc_test

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-vm/holdfast/internal/hypervisor/libvirt/rpc"
	"github.com/holdfast-vm/holdfast/test/vm/libvirtd"
)

const domainXML = `<domain type='qemu'><name>one</name><memory unit='MiB'>32</memory><vcpu>1</vcpu>
<os><type arch='x86_64' machine='q35'>hvm</type></os>
<devices><emulator>/usr/bin/qemu-system-x86_64</emulator>
<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel></devices></domain>`

// lab is a libvirtd, a connection and the methods of a test that end it on an error.
type lab struct {
	*testing.T
	*rpc.Client
	ctx context.Context
}

func newLab(t *testing.T) *lab {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	t.Cleanup(cancel)
	return &lab{t, libvirtd.New(t).Client(), ctx}
}

func (l *lab) ok(err error) {
	l.Helper()
	if err != nil {
		l.Fatal(err)
	}
}

func (l *lab) state(dom rpc.Domain) rpc.State {
	l.Helper()
	s, err := l.DomainState(l.ctx, dom)
	l.ok(err)
	return s
}

// A domain goes through its life, and every call answers as libvirt's own client has it.
func TestDomainLife(t *testing.T) {
	l := newLab(t)
	lib, err := l.LibVersion(l.ctx)
	if err != nil || lib < 7_006_000 {
		t.Fatalf("libvirt version %d, %v", lib, err)
	}
	if v, err := l.Version(l.ctx); err != nil || v < 6_000_000 {
		t.Fatalf("QEMU version %d, %v", v, err)
	}
	dom, err := l.DomainDefine(l.ctx, domainXML, rpc.DefineValidate)
	l.ok(err)
	if dom.Name != "one" || dom.ID != -1 {
		t.Fatalf("defined %+v", dom)
	}
	list, err := l.Domains(l.ctx)
	if err != nil || len(list) != 1 || list[0] != dom {
		t.Fatalf("domains %+v, %v", list, err)
	}
	for _, lookup := range []func() (rpc.Domain, error){
		func() (rpc.Domain, error) { return l.DomainByName(l.ctx, "one") },
		func() (rpc.Domain, error) { return l.DomainByUUID(l.ctx, dom.UUID) },
	} {
		if got, err := lookup(); err != nil || got != dom {
			t.Fatalf("looked up %+v, %v", got, err)
		}
	}
	events, stop, err := l.Subscribe(l.ctx, dom, rpc.Lifecycle)
	l.ok(err)
	dom, err = l.DomainCreate(l.ctx, dom, 0)
	l.ok(err)
	if s := l.state(dom); s.State != rpc.StateRunning {
		t.Fatalf("state %+v after start", s)
	}
	select {
	case ev := <-events:
		if ev.Kind != rpc.Lifecycle || ev.Domain.Name != "one" {
			t.Errorf("event %+v", ev)
		}
	case <-l.ctx.Done():
		t.Error("no event of the start")
	}
	stop()
	l.ok(l.DomainSuspend(l.ctx, dom))
	if s := l.state(dom); s != (rpc.State{State: rpc.StatePaused, Reason: rpc.PausedUser}) {
		t.Errorf("state %+v after suspend", s)
	}
	l.ok(l.DomainResume(l.ctx, dom))
	if xml, err := l.DomainXML(l.ctx, dom, rpc.XMLSecure|rpc.XMLMigratable); err != nil ||
		!strings.Contains(xml, "<name>one</name>") {
		t.Errorf("XML %.80s, %v", xml, err)
	}
	if text, err := l.MonitorCommand(l.ctx, dom, "info status", true); err != nil ||
		!strings.Contains(text, "running") {
		t.Errorf("info status: %q, %v", text, err)
	}
	if text, err := l.MonitorCommand(l.ctx, dom, `{"execute":"query-status"}`, false); err != nil || !strings.Contains(text, `"running":true`) {
		t.Errorf("query-status: %q, %v", text, err)
	}
	l.agentIsSilent(dom)
	if kind, _, err := l.JobStats(l.ctx, dom, 0); err != nil || kind != rpc.JobNone {
		t.Errorf("job %d, %v", kind, err)
	}
	l.ok(l.DomainDestroy(l.ctx, dom))
	if s := l.state(dom); s.State != rpc.StateOff {
		t.Errorf("state %+v after destroy", s)
	}
	l.ok(l.DomainUndefine(l.ctx, dom, rpc.UndefineCheckpoints|rpc.UndefineNVRAM))
	if _, err := l.DomainByName(l.ctx, "one"); !rpc.Is(err, rpc.NoDomain) {
		t.Errorf("undefined domain: %v", err)
	}
}

func (l *lab) agentIsSilent(dom rpc.Domain) {
	l.Helper()
	l.ok(l.SetAgentTimeout(l.ctx, dom, time.Second))
	if _, err := l.AgentCommand(l.ctx, dom, `{"execute":"guest-ping"}`, time.Second); !rpc.Is(err, rpc.AgentUnresponsive) {
		l.Errorf("ping without agent: %v", err)
	}
	if _, err := l.FSFreeze(l.ctx, dom, nil); !rpc.Is(err, rpc.AgentUnresponsive) {
		l.Errorf("freeze without agent: %v", err)
	}
	if _, err := l.FSThaw(l.ctx, dom); !rpc.Is(err, rpc.AgentUnresponsive) {
		l.Errorf("thaw without agent: %v", err)
	}
}

// Capabilities and networks answer, and what is missing has its own code.
func TestHostCalls(t *testing.T) {
	l := newLab(t)
	if xml, err := l.DomainCapabilities(l.ctx, "", "x86_64", "q35", "qemu"); err != nil ||
		!strings.Contains(xml, "<domainCapabilities>") {
		t.Errorf("capabilities %.80q, %v", xml, err)
	}
	if _, err := l.DomainCapabilities(l.ctx, "", "x86_64", "pc-none-1.0", "qemu"); err == nil {
		t.Error("capabilities of a machine type that does not exist")
	}
	if nets, err := l.Networks(l.ctx); err != nil || len(nets) != 0 {
		t.Errorf("networks %v, %v", nets, err)
	}
	if _, err := l.NetworkByName(l.ctx, "none"); !rpc.Is(err, rpc.NoNetwork) {
		t.Errorf("missing network: %v", err)
	}
}

// Calls of many goroutines over one connection each get their own answer.
func TestConcurrentCalls(t *testing.T) {
	l := newLab(t)
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			if i%2 == 0 {
				if _, err := l.LibVersion(l.ctx); err != nil {
					t.Error(err)
				}
				return
			}
			name := strings.Repeat("x", i)
			_, err := l.DomainByName(l.ctx, name)
			if !rpc.Is(err, rpc.NoDomain) || !strings.Contains(err.Error(), "'"+name+"'") {
				t.Errorf("look up %s: %v", name, err)
			}
		})
	}
	wg.Wait()
}

// A daemon that never answers holds a call no longer than its context, and Close ends the others.
func TestSilentDaemon(t *testing.T) {
	sock := filepath.Join(t.TempDir(), "s")
	ln, err := net.Listen("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		nc, err := ln.Accept()
		if err != nil {
			return
		}
		defer nc.Close()
		nc.Read(make([]byte, 28))
		cancel()
		nc.Read(make([]byte, 1)) // until the client goes
	}()
	if _, err := rpc.Dial(ctx, sock, libvirtd.Driver); !errors.Is(err, context.Canceled) {
		t.Errorf("dial a silent daemon: %v", err)
	}
	if _, err := rpc.Dial(t.Context(), filepath.Join(t.TempDir(), "none"), libvirtd.Driver); !errors.Is(err,
		fs.ErrNotExist) {
		t.Errorf("dial no daemon: %v", err)
	}
}
