package libvirt

import (
	"errors"
	"fmt"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/hypervisor/libvirt/rpc"
)

// A copy is begun past what the one before has left above its disk, and past no other error.
func TestCopyPastFilter(t *testing.T) {
	filter := fmt.Errorf("block copy: %w", &rpc.Error{Message: "internal error: unable to execute QEMU command " +
		"'blockdev-mirror': Need a root block node"})
	other := &rpc.Error{Message: "permission denied"}
	for _, tt := range []struct {
		name  string
		says  []error
		want  error
		tries int
	}{
		{"nothing in the way", []error{nil}, nil, 1},
		{"the filter goes away", []error{filter, filter, nil}, nil, 3},
		{"another error after it", []error{filter, other}, other, 2},
		{"another error", []error{other, nil}, other, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tries := 0
			err := pastFilter(t.Context(), func() error {
				tries++
				return tt.says[tries-1]
			})
			if !errors.Is(err, tt.want) || tries != tt.tries {
				t.Errorf("%v after %d tries, want %v after %d", err, tries, tt.want, tt.tries)
			}
		})
	}
}
