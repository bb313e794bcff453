package libvirt

import (
	"errors"
	"strings"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/hypervisor/libvirt/rpc"
)

// A copy that QEMU does not begin because of what one before has left says what helps.
func TestCopyThatFindsAFilter(t *testing.T) {
	refused := &rpc.Error{Message: "internal error: unable to execute QEMU command 'blockdev-mirror': " +
		"Need a root block node"}
	if err := whyNot(refused); !errors.Is(err, refused) || !strings.Contains(err.Error(), "shut down") {
		t.Errorf("what is said is %v", err)
	}
	other := &rpc.Error{Message: "permission denied"}
	if err := whyNot(other); err != error(other) {
		t.Errorf("what is said of another error is %v", err)
	}
}
