package libvirt_test

import (
	"errors"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/hypervisor"
)

// While libvirtd is restarted a machine that runs cannot be asked about: nobody says that there is
// none.
func TestMachineIsThereWhileLibvirtdRestarts(t *testing.T) {
	l := newLab(t)
	c := l.d.Client()
	dom, err := c.DomainDefine(l.ctx, `<domain type='qemu'><name>one</name><memory unit='MiB'>32</memory><vcpu>1</vcpu>
<os><type arch='x86_64' machine='q35'>hvm</type></os></domain>`, 0)
	l.ok(err)
	_, err = c.DomainCreate(l.ctx, dom, 0)
	l.ok(err)
	if _, err := l.host.Machine(l.ctx, "two"); !errors.Is(err, hypervisor.ErrNoMachine) {
		t.Errorf("a machine that is not there: %v", err)
	}
	stop, looked := make(chan struct{}), make(chan int)
	go func() {
		missed := 0
		defer func() { looked <- missed }()
		for {
			m, err := l.host.Machine(l.ctx, "one")
			switch {
			case errors.Is(err, hypervisor.ErrUnreachable):
				missed++
			case err != nil:
				t.Errorf("while libvirtd restarts: %v", err)
			case m.State != hypervisor.Running:
				t.Errorf("while libvirtd restarts the machine is %s", m.State)
			}
			select {
			case <-stop:
				return
			default:
			}
		}
	}()
	for range 3 {
		l.d.Restart()
	}
	close(stop)
	if missed := <-looked; missed == 0 {
		t.Error("it could always be asked: nothing was tested")
	}
}
