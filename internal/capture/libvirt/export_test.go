package libvirt

import "github.com/holdfast-vm/holdfast/internal/hypervisor/libvirt/rpc"

// NoteSuspended leaves the state that a capture has which is killed while the machine is suspended.
func NoteSuspended(stateDir string, dom rpc.Domain) error {
	st, err := openState(stateDir, dom)
	if err != nil {
		return err
	}
	defer st.close(false)
	return st.note(func(r *record) { r.Suspended = true })
}
