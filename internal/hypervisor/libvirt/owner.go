package libvirt

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/beevik/etree"
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
		user, group, ok := strings.Cut(text(model, "baselabel"), ":")
		uid, errU := strconv.Atoi(strings.TrimPrefix(user, "+"))
		gid, errG := strconv.Atoi(strings.TrimPrefix(group, "+"))
		if !ok || errU != nil || errG != nil {
			return -1, -1, fmt.Errorf("%q is no label of a user and a group", text(model, "baselabel"))
		}
		return uid, gid, nil
	}
	return -1, -1, nil
}
