package libvirt_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-vm/holdfast/internal/hypervisor"
	"github.com/holdfast-vm/holdfast/internal/hypervisor/libvirt"
	"github.com/holdfast-vm/holdfast/internal/hypervisor/libvirt/rpc"
	"github.com/holdfast-vm/holdfast/internal/hypervisor/pause"
	"github.com/holdfast-vm/holdfast/internal/qcow2"
)

const exported = 4 << 20 // bytes of the disk

// instant is a machine whose disk is an overlay over an export.
type instant struct {
	*lab
	m       hypervisor.Machine
	t       hypervisor.HydrationTarget
	content []byte
	export  *exec.Cmd
}

func newInstant(t *testing.T) *instant {
	t.Helper()
	l := newLab(t)
	l.ctx = t.Context() // a copy may take its time on a busy machine
	i := &instant{lab: l, content: bytes.Repeat([]byte("holdfast"), exported/8)}
	l.file("source", string(i.content))
	i.t = hypervisor.HydrationTarget{Disk: "vda", File: filepath.Join(l.dir, "vda.raw"), Format: "raw", Size: exported}
	i.serve()
	backing := fmt.Sprintf(`json:{"driver":"raw","file":{"driver":"nbd","server":{"type":"unix","path":%q}}}`, i.socket())
	l.ok(qcow2.Create(i.t.Overlay(), exported, qcow2.CreateOptions{BackingFile: backing, BackingFormat: "raw"}))
	i.m = l.define(fmt.Sprintf(`<domain type='qemu'><name>one</name><memory unit='MiB'>32</memory><vcpu>1</vcpu>
<os><type arch='x86_64' machine='q35'>hvm</type></os><devices><emulator>/usr/bin/qemu-system-x86_64</emulator>
<disk type='file' device='disk'><driver name='qemu' type='qcow2' error_policy='stop' rerror_policy='stop'/><source file='%s'/>
<backingStore type='network'><format type='raw'/><source protocol='nbd'><host transport='unix' socket='%s'/></source><backingStore/></backingStore>
<target dev='vda' bus='virtio'/></disk></devices></domain>`, i.t.Overlay(), i.socket()))
	l.ok(l.host.Start(l.ctx, i.m, ""))
	return i
}

func (i *instant) socket() string { return filepath.Join(i.dir, "nbd") }

// serve exports the disk.
func (i *instant) serve() {
	i.Helper()
	os.Remove(i.socket())
	cmd := exec.Command("qemu-nbd", "-r", "-e", "4", "--persistent", "-t", "-f", "raw", "-k", i.socket(),
		filepath.Join(i.dir, "source"))
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	i.ok(cmd.Start())
	i.export = cmd
	i.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	i.await("the export", func() bool { _, err := os.Stat(i.socket()); return err == nil })
}

func (i *instant) endExport() {
	i.export.Process.Kill()
	i.export.Wait()
}

func (i *instant) await(what string, done func() bool) {
	i.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(2 * time.Minute); !done(); <-tick.C {
		if time.Now().After(end) {
			i.Fatalf("waited in vain for %s", what)
		}
	}
}

// hydrate copies the disk and returns when all of it has been copied once. A copy that meets the
// connection that is gone ends, and is begun anew.
func (i *instant) hydrate() {
	i.Helper()
	i.await("the copy", func() bool {
		now := i.hydration()
		if !now.Running {
			i.ok(os.WriteFile(i.t.File, nil, 0o600))
			i.ok(os.Truncate(i.t.File, exported))
			i.ok(i.host.Hydrate(i.ctx, i.m, i.t, 0))
		}
		return now.Ready
	})
}

func (i *instant) hydration() hypervisor.Hydration {
	i.Helper()
	now, err := i.host.Hydration(i.ctx, i.m, i.t)
	i.ok(err)
	return now
}

// write has the machine write to its disk, or try to.
func (i *instant) write(at, n int) {
	i.Helper()
	c := i.d.Client()
	dom, err := c.DomainByName(i.ctx, i.m.Name)
	i.ok(err)
	_, err = c.MonitorCommand(i.ctx, dom, fmt.Sprintf(`qemu-io -d /machine/peripheral/virtio-disk0/virtio-backend "write -P 7 %d %d"`, at, n), true)
	i.ok(err)
}

func (i *instant) requireState(want hypervisor.State) {
	i.Helper()
	m, err := i.host.Machine(i.ctx, i.m.Name)
	if err != nil || m.State != want {
		i.Errorf("the machine is %s, want %s (%v)", m.State, want, err)
	}
}

func (i *instant) settlement() hypervisor.Settlement {
	return hypervisor.Settlement{Targets: []hypervisor.HydrationTarget{i.t}, StorageDir: i.dir}
}

func (i *instant) requireSettled(want bool) {
	i.Helper()
	if settled, err := i.host.Settled(i.ctx, i.m, i.settlement()); err != nil || settled["vda"] != want {
		i.Errorf("settled %v, %v", settled, err)
	}
	if now := i.hydration(); now.Local != want {
		i.Errorf("the copy is %+v", now)
	}
}

// requireMoved fails unless the machine runs on its own disk, and that holds what was exported and
// written.
func (i *instant) requireMoved() {
	i.Helper()
	i.requireState(hypervisor.Running)
	i.requireSettled(true)
	i.ok(i.host.Remove(i.ctx, i.m))
	if got, err := os.ReadFile(i.t.File); err != nil || !bytes.Equal(got, i.content) {
		i.Errorf("the disk is not what was exported and written (%v)", err)
	}
}

// A copy that has copied everything moves the machine without the export.
func TestMoveNeedsNoExport(t *testing.T) {
	i := newInstant(t)
	i.hydrate()
	i.endExport()
	i.write(2<<20, 1<<16)
	copy(i.content[2<<20:], bytes.Repeat([]byte{7}, 1<<16))
	i.ok(i.host.FinishHydration(i.ctx, i.m, i.settlement()))
	i.ok(i.host.FinishHydration(i.ctx, i.m, i.settlement())) // does nothing again
	i.requireMoved()
}

// Without the export a machine whose copy lacks something goes on where it was. With a new export
// it is copied anew and moves.
func TestMoveWithoutExport(t *testing.T) {
	i := newInstant(t)
	i.hydrate()
	i.endExport()
	i.write(3<<20+4096, 4096) // what is around it would have to come from the export
	i.await("the end of the copy that fails", func() bool { return !i.hydration().Running })
	if err := i.host.FinishHydration(i.ctx, i.m, i.settlement()); err == nil ||
		errors.Is(err, hypervisor.ErrStandsStill) {
		t.Errorf("without the export: %v", err)
	}
	// its firmware may have read the disk, and waits for the export
	if paused, err := i.host.Continue(i.ctx, i.m); err != nil || paused {
		t.Errorf("the machine stands still: %v, %v", paused, err)
	}
	i.requireSettled(false)
	i.serve()
	_, err := i.host.Continue(i.ctx, i.m)
	i.ok(err)
	i.hydrate()
	i.ok(i.host.FinishHydration(i.ctx, i.m, i.settlement()))
	i.requireMoved()
}

// A machine goes on after its move if the one who moved it has stopped it, be it an earlier process
// that was killed; and only then.
func TestMoveOfHeldMachine(t *testing.T) {
	i := newInstant(t)
	i.hydrate()
	c := i.d.Client()
	dom, err := c.DomainByName(i.ctx, i.m.Name)
	i.ok(err)
	earlier := libvirt.Mark(dom)
	i.ok(c.DomainSuspend(i.ctx, dom))
	held := earlier.Standing()
	old := held
	old.Ran -= int64(time.Second) // the machine has run since, and an administrator has paused it
	i.ok(i.host.GoOn(i.ctx, i.m, old))
	i.requireState(hypervisor.Paused)
	i.ok(i.host.GoOn(i.ctx, i.m, held))
	i.requireState(hypervisor.Running)

	var noted []pause.Mark
	s := i.settlement()
	s.Note = func(m pause.Mark) error { noted = append(noted, m); return nil }
	s.StayPaused = true
	i.ok(i.host.FinishHydration(i.ctx, i.m, s))
	i.requireState(hypervisor.Paused)
	if len(noted) != 2 || noted[0].Stopped || !noted[1].Stopped || noted[1].Domain != dom.ID || noted[1].Ran == 0 {
		t.Fatalf("noted %+v", noted)
	}
	s.StayPaused = false
	s.Held = &old
	i.ok(i.host.FinishHydration(i.ctx, i.m, s)) // the next process
	i.requireState(hypervisor.Paused)
	s.Held = &noted[1]
	i.ok(i.host.FinishHydration(i.ctx, i.m, s))
	i.requireMoved()
	if len(noted) != 2 {
		t.Errorf("of a machine that stood still already %+v was noted", noted)
	}
}

// A machine that is not to be stopped before that is noted is not stopped.
func TestMoveThatCanNotBeNoted(t *testing.T) {
	i := newInstant(t)
	i.hydrate()
	full := errors.New("no space left")
	s := i.settlement()
	for n := range 2 {
		calls := 0
		s.Note = func(pause.Mark) error {
			if calls++; calls > n {
				return full
			}
			return nil
		}
		if err := i.host.FinishHydration(i.ctx, i.m, s); !errors.Is(err, full) {
			t.Errorf("note %d fails: %v", n, err)
		}
		i.requireState(hypervisor.Running)
		i.requireSettled(false)
	}
	s.Note = nil
	i.ok(i.host.FinishHydration(i.ctx, i.m, s))
	i.requireMoved()
}

// A machine that was paused stays so; one that stopped because of its disk does not count as
// paused; one that died is not moved to a target that may lack what it wrote.
func TestMoveOfStillMachine(t *testing.T) {
	i := newInstant(t)
	i.hydrate()
	c := i.d.Client()
	dom, err := c.DomainByName(i.ctx, i.m.Name)
	i.ok(err)
	i.ok(c.DomainSuspend(i.ctx, dom))
	if paused, err := i.host.Continue(i.ctx, i.m); err != nil || !paused {
		t.Errorf("of a machine that was suspended it is said: %v, %v", paused, err)
	}
	offline := i.settlement()
	offline.Off = true
	if err := i.host.FinishHydration(i.ctx, i.m, offline); err == nil {
		t.Error("a machine that is on was taken for one that is off")
	}
	i.ok(c.DomainDestroy(context.WithoutCancel(i.ctx), dom))
	if err := i.host.FinishHydration(i.ctx, i.m, i.settlement()); !errors.Is(err, hypervisor.ErrOff) {
		t.Errorf("the move of a dead machine: %v", err)
	}
	i.requireSettled(false)
	i.ok(i.host.Start(i.ctx, i.m, ""))
	i.hydrate()
	dom, err = c.DomainByName(i.ctx, i.m.Name)
	i.ok(err)
	i.ok(c.DomainSuspend(i.ctx, dom))
	i.ok(i.host.FinishHydration(i.ctx, i.m, i.settlement()))
	i.requireState(hypervisor.Paused)
	if state, err := c.DomainState(i.ctx, dom); err != nil ||
		state != (rpc.State{State: rpc.StatePaused, Reason: rpc.PausedUser}) {
		t.Errorf("the machine is %+v, %v", state, err)
	}
	i.ok(c.DomainResume(i.ctx, dom))
	i.requireMoved()
}
