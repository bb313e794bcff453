package cli

import (
	"fmt"
	"strings"

	capturelibvirt "github.com/holdfast-vm/holdfast/internal/capture/libvirt"
	captureqemu "github.com/holdfast-vm/holdfast/internal/capture/qemu"
	"github.com/holdfast-vm/holdfast/internal/hypervisor/libvirt"
	"github.com/holdfast-vm/holdfast/internal/hypervisor/qemu"
)

// openHost returns the host that uri names, by its scheme. It connects when it is first used.
func openHost(uri, stateDir string) (host, error) {
	switch {
	case strings.HasPrefix(uri, qemu.Scheme):
		h, err := qemu.New(uri)
		if err != nil {
			return host{}, err
		}
		return host{h, captureqemu.New(h, captureqemu.Options{StateDir: stateDir})}, nil
	case strings.HasPrefix(uri, "qemu:"), strings.HasPrefix(uri, "qemu+"):
		h, err := libvirt.New(uri)
		if err != nil {
			return host{}, err
		}
		return host{h, capturelibvirt.New(h,
			capturelibvirt.Options{StateDir: stateDir, Watch: []string{"/proc/self/exe", watchName}})}, nil
	}
	return host{}, withHint(fmt.Errorf("%q is not the URI of a host", uri),
		"use a libvirt URI such as qemu:///system, or qmp:SOCKET[,qga=SOCKET] for a plain QEMU process")
}
