package libvirt

import (
	"context"
	"fmt"
	"math"
	"net"
	"strconv"
	"strings"

	"github.com/beevik/etree"

	"github.com/holdfast-vm/holdfast/internal/hypervisor"
	"github.com/holdfast-vm/holdfast/internal/qmp"
)

// MachineOwner returns the user and group that libvirt runs machines as, -1 each if that is this
// process' own.
func (h *Host) MachineOwner(ctx context.Context) (uid, gid int, err error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	c, err := h.Client(ctx)
	if err != nil {
		return -1, -1, err
	}
	text, err := c.Capabilities(ctx)
	if err == nil {
		uid, gid, err = ownerIn(text)
	}
	if err != nil {
		return -1, -1, fmt.Errorf("ask %s as whom machines run: %w", h.uri, err)
	}
	return uid, gid, nil
}

// Software says what runs the machines.
func (h *Host) Software(ctx context.Context) (hypervisor.Software, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	out := hypervisor.Software{UID: -1, GID: -1, Process: h.daemon(ctx)}
	c, err := h.Client(ctx)
	if err != nil {
		return out, err
	}
	lib, err := c.LibVersion(ctx)
	if err != nil {
		return out, err
	}
	out.Libvirt = version(lib)
	if v, err := c.Version(ctx); err == nil { // libvirt without a QEMU has none
		out.QEMU = version(v)
	}
	text, err := c.Capabilities(ctx)
	if err == nil {
		out.Confined, err = confinedBy(text)
	}
	if err == nil {
		out.UID, out.GID, err = ownerIn(text)
	}
	return out, err
}

// version writes a number of libvirt's as a version.
func version(n uint64) string { return fmt.Sprintf("%d.%d.%d", n/1e6, n/1000%1000, n%1000) }

// daemon returns the process that made libvirtd's socket, 0 if it cannot be seen.
func (h *Host) daemon(ctx context.Context) int {
	var dialer net.Dialer
	for _, socket := range h.sockets {
		conn, err := dialer.DialContext(ctx, "unix", socket)
		if err != nil {
			continue
		}
		defer conn.Close()
		return qmp.PeerPID(conn.(*net.UnixConn))
	}
	return 0
}

// confinedBy returns the models by which libvirt confines machines, except for users and groups.
func confinedBy(capabilities string) (models []string, err error) {
	doc := etree.NewDocument()
	if err := doc.ReadFromString(capabilities); err != nil {
		return nil, err
	}
	for _, model := range doc.FindElements("capabilities/host/secmodel") {
		if name := text(model, "model"); name != "dac" && name != "none" && name != "" {
			models = append(models, name)
		}
	}
	return models, nil
}

// ownerIn finds the label of the form +UID:+GID that libvirt gives the files of a machine.
func ownerIn(capabilities string) (uid, gid int, err error) {
	doc := etree.NewDocument()
	if err := doc.ReadFromString(capabilities); err != nil {
		return -1, -1, err
	}
	for _, model := range doc.FindElements("capabilities/host/secmodel") {
		if text(model, "model") != "dac" {
			continue
		}
		user, group, _ := strings.Cut(text(model, "baselabel"), ":")
		uid, errU := parseOwner(user)
		gid, errG := parseOwner(group)
		if errU != nil || errG != nil {
			return -1, -1, fmt.Errorf("%q is no label of a user and a group", text(model, "baselabel"))
		}
		return uid, gid, nil
	}
	return -1, -1, nil
}

// parseOwner reads one number of such a label. The greatest is none: to the kernel it says that the
// owner is not to be changed.
func parseOwner(text string) (int, error) {
	n, err := strconv.ParseUint(strings.TrimPrefix(text, "+"), 10, 32)
	if err == nil && n == math.MaxUint32 {
		err = strconv.ErrRange
	}
	return int(n), err
}
