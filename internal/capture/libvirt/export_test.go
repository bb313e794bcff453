package libvirt

import (
	"github.com/holdfast-vm/holdfast/internal/hypervisor/libvirt/rpc"
	"github.com/holdfast-vm/holdfast/internal/hypervisor/pause"
)

// NotePause leaves the state that a capture has which is killed while the machine is suspended, or
// about to be.
func NotePause(stateDir string, dom rpc.Domain, m pause.Mark) error {
	st, err := openState(stateDir, dom)
	if err != nil {
		return err
	}
	defer st.close(false)
	return st.note(func(r *record) { r.Pause = &m })
}
