package libvirt

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/beevik/etree"

	"github.com/holdfast-vm/holdfast/internal/hypervisor"
	"github.com/holdfast-vm/holdfast/internal/hypervisor/libvirt/rpc"
)

// Define builds a machine from a point whose disks and files have been written, and starts it if
// asked. If it was defined but could not be started, both results are given.
func (h *Host) Define(ctx context.Context, r hypervisor.Rebuild) (hypervisor.Rebuilt, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	out, err := h.define(ctx, r)
	if err != nil {
		return out, fmt.Errorf("define %s at %s: %w", r.Name, h.uri, err)
	}
	return out, nil
}

func (h *Host) define(ctx context.Context, r hypervisor.Rebuild) (hypervisor.Rebuilt, error) {
	old, err := oldDefinition(r)
	if err != nil {
		return hypervisor.Rebuilt{}, err
	}
	c, err := h.Client(ctx)
	if err != nil {
		return hypervisor.Rebuilt{}, err
	}
	if err := vacant(ctx, c, r, old); err != nil {
		return hypervisor.Rebuilt{}, err
	}
	b := newBuilder(r, old)
	if b.libVersion, err = c.LibVersion(ctx); err != nil {
		return hypervisor.Rebuilt{}, err
	}
	if err := b.build(); err != nil {
		return hypervisor.Rebuilt{}, err
	}
	if err := b.checkSecrets(ctx, c); err != nil {
		return hypervisor.Rebuilt{}, err
	}
	if _, err := offered(ctx, c, b.dom); err != nil {
		return hypervisor.Rebuilt{}, err
	}
	b.warnings = append(b.warnings, missingNetworks(ctx, c, b.dom)...)
	xml, err := b.xml()
	if err != nil {
		return hypervisor.Rebuilt{}, err
	}
	drop, err := h.placeTPM(b.dom, r)
	if err != nil {
		return hypervisor.Rebuilt{}, err
	}
	dom, err := c.DomainDefine(ctx, xml, 0)
	if err != nil {
		return hypervisor.Rebuilt{}, errors.Join(err, drop())
	}
	out := hypervisor.Rebuilt{Name: dom.Name, UUID: formatUUID(dom.UUID), State: hypervisor.Off,
		Start: fmt.Sprintf("virsh -c '%s' start '%s'", h.uri, dom.Name), Warnings: b.warnings}
	if !r.Start {
		return out, nil
	}
	if err := start(ctx, c, dom, b); err != nil {
		return out, err
	}
	out.State, out.Start = hypervisor.Running, ""
	if r.Held {
		out.State = hypervisor.Paused
	}
	return out, nil
}

// start starts the machine. An isolated one does not run before its networks are gone.
func start(ctx context.Context, c *rpc.Client, dom rpc.Domain, b *builder) error {
	flags := uint32(0)
	if b.rebuild.Isolated || b.rebuild.Held {
		flags = rpc.StartPaused
	}
	if _, err := c.DomainCreate(ctx, dom, flags); err != nil {
		return fmt.Errorf("it is defined, but does not start: %w", err)
	}
	if b.rebuild.Isolated {
		if err := unplug(ctx, c, dom, b.dom); err != nil {
			return fmt.Errorf("it is defined and stands still: %w", err)
		}
	}
	if flags == 0 || b.rebuild.Held {
		return nil
	}
	if err := c.DomainResume(ctx, dom); err != nil {
		return fmt.Errorf("it is defined and stands still: %w", err)
	}
	return nil
}

// Release lets a machine run that was built to be held.
func (h *Host) Release(ctx context.Context, m hypervisor.Machine) error {
	c, dom, err := h.Domain(ctx, m.Name)
	var state rpc.State
	if err == nil {
		state, err = c.DomainState(ctx, dom)
	}
	if err == nil && state.State == rpc.StatePaused {
		err = c.DomainResume(ctx, dom)
	}
	if err != nil {
		return fmt.Errorf("let machine %s run: %w", m.Name, err)
	}
	return nil
}

// vacant refuses a name, or an identity to be kept, that is taken.
func vacant(ctx context.Context, c *rpc.Client, r hypervisor.Rebuild, old *etree.Element) error {
	_, err := c.DomainByName(ctx, r.Name)
	if err == nil {
		return fmt.Errorf("machine %s %w", r.Name, hypervisor.ErrExists)
	}
	if !rpc.Is(err, rpc.NoDomain) {
		return err
	}
	if !r.SameIdentity {
		return nil
	}
	uuid, err := parseUUID(text(old, "uuid"))
	if err != nil {
		return err
	}
	dom, err := c.DomainByUUID(ctx, uuid)
	if err == nil {
		return fmt.Errorf("machine %s with UUID %s %w", dom.Name, formatUUID(uuid), hypervisor.ErrExists)
	}
	if !rpc.Is(err, rpc.NoDomain) {
		return err
	}
	return nil
}

func missingNetworks(ctx context.Context, c *rpc.Client, dom *etree.Element) (warnings []string) {
	seen := map[string]bool{}
	for _, el := range dom.FindElements("devices/interface[@type='network']") {
		name := attr(el, "source", "network")
		if seen[name] {
			continue
		}
		seen[name] = true
		if _, err := c.NetworkByName(ctx, name); rpc.Is(err, rpc.NoNetwork) {
			warnings = append(warnings, fmt.Sprintf("network %s does not exist here: the machine does not start "+
				"without it", name))
		}
	}
	return warnings
}

// placeTPM puts the TPM state of the point where libvirt will look for that of the new machine.
// drop takes it away again.
func (h *Host) placeTPM(dom *etree.Element, r hypervisor.Rebuild) (drop func() error, err error) {
	none := func() error { return nil }
	dir := h.tpmStateDir(dom, text(dom, "uuid"))
	if dir == "" {
		return none, nil
	}
	files := map[string]string{}
	for key, path := range r.Files {
		if name, ok := strings.CutPrefix(key, "tpm/"); ok {
			if !filepath.IsLocal(name) {
				return nil, fmt.Errorf("TPM state of the point has a file named %q", name)
			}
			files[name] = path
		}
	}
	if len(files) == 0 {
		return none, nil
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o711); err != nil {
		return nil, fmt.Errorf("place TPM state: %w", err)
	}
	if err := os.Mkdir(dir, 0o711); errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("TPM state %s %w", dir, hypervisor.ErrExists)
	} else if err != nil {
		return nil, fmt.Errorf("place TPM state: %w", err)
	}
	drop = func() error { return os.RemoveAll(dir) }
	for name, path := range files {
		if err := copyFile(filepath.Join(dir, name), path); err != nil {
			return nil, errors.Join(fmt.Errorf("place TPM state: %w", err), drop())
		}
	}
	return drop, nil
}

func copyFile(to, from string) error {
	if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
		return err
	}
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		out.Close()
		return err
	}
	return errors.Join(out.Sync(), out.Close())
}
