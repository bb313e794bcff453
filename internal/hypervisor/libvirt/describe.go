package libvirt

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/beevik/etree"

	"github.com/holdfast-vm/holdfast/internal/hypervisor"
	"github.com/holdfast-vm/holdfast/internal/hypervisor/libvirt/rpc"
	"github.com/holdfast-vm/holdfast/internal/point"
)

// Describe returns what must be stored to build the machine again, and the small files that belong
// to it.
func (h *Host) Describe(ctx context.Context, m hypervisor.Machine) (hypervisor.Description, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	def, doc, warnings, err := h.definition(ctx, m.Name)
	if err != nil {
		return hypervisor.Description{}, fmt.Errorf("describe %s: %w", m.Name, err)
	}
	files, more := h.files(doc)
	return hypervisor.Description{Definition: def, Files: files, NotHeld: notHeld(doc),
		Warnings: append(warnings, more...)}, nil
}

func (h *Host) definition(ctx context.Context, name string) (def point.Definition, doc *etree.Element,
	warnings []string, err error) {
	c, dom, err := h.Domain(ctx, name)
	if err != nil {
		return def, nil, nil, err
	}
	def.Kind = point.ForLibvirt
	if def.InactiveXML, err = c.DomainXML(ctx, dom, rpc.XMLSecure|rpc.XMLInactive); err != nil {
		return def, nil, nil, err
	}
	if dom.ID >= 0 {
		if def.LiveXML, err = c.DomainXML(ctx, dom, rpc.XMLSecure); err != nil {
			return def, nil, nil, err
		}
		if def.MigratableXML, err = c.DomainXML(ctx, dom, rpc.XMLSecure|rpc.XMLMigratable); err != nil {
			return def, nil, nil, err
		}
	}
	newest := def.LiveXML
	if newest == "" {
		newest = def.InactiveXML
	}
	if doc, err = parse(newest); err != nil {
		return def, nil, nil, err
	}
	def.MachineType = attrAt(doc, "os/type", "machine")
	if def.Hypervisor, err = versions(ctx, c); err != nil {
		return def, nil, nil, err
	}
	def.Networks, warnings = networks(ctx, c, doc)
	return def, doc, append(warnings, hostBound(doc)...), nil
}

func versions(ctx context.Context, c *rpc.Client) (string, error) {
	qemu, err := c.Version(ctx)
	if err != nil {
		return "", err
	}
	lib, err := c.LibVersion(ctx)
	if err != nil {
		return "", err
	}
	dotted := func(v uint64) string { return fmt.Sprintf("%d.%d.%d", v/1_000_000, v/1000%1000, v%1000) }
	return "QEMU " + dotted(qemu) + ", libvirt " + dotted(lib), nil
}

// networks returns the definitions of the virtual networks that a machine is on.
func networks(ctx context.Context, c *rpc.Client, doc *etree.Element) (out map[string]string, warnings []string) {
	for _, el := range doc.FindElements("devices/interface[@type='network']") {
		name := attr(el, "source", "network")
		if _, ok := out[name]; ok || name == "" {
			continue
		}
		n, err := c.NetworkByName(ctx, name)
		if err == nil {
			var xml string
			if xml, err = c.NetworkXML(ctx, n); err == nil {
				if out == nil {
					out = map[string]string{}
				}
				out[name] = xml
			}
		}
		if err != nil {
			warnings = append(warnings, fmt.Sprintf("the definition of network %s is not in the point: %v", name, err))
		}
	}
	return out, warnings
}

// hostBound names what of a machine looks different on another host.
func hostBound(doc *etree.Element) (warnings []string) {
	if attr(doc, "cpu", "mode") == "host-passthrough" {
		warnings = append(warnings,
			"the CPU is the host's own (host-passthrough): on another model the guest may see another CPU")
	}
	return warnings
}

// files returns the small files of a machine: firmware variables, TPM state, kernel and initrd.
func (h *Host) files(doc *etree.Element) (out []point.File, warnings []string) {
	add := func(role, name, path string) {
		info, err := os.Stat(path)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return // not made before the first start
		case err == nil && !info.Mode().IsRegular():
			err = fmt.Errorf("%s is not a regular file", path)
		}
		if err != nil {
			warnings = append(warnings, fmt.Sprintf("%s is not in the point: %v", role, err))
			return
		}
		out = append(out, point.File{Role: role, Path: path, Name: name, Mode: uint32(info.Mode().Perm()),
			Size: info.Size()})
	}
	for role, path := range map[string]string{"nvram": nvramPath(doc), "kernel": text(doc, "os/kernel"),
		"initrd": text(doc, "os/initrd")} {
		if path != "" {
			add(role, filepath.Base(path), path)
		}
	}
	if dir := h.tpmStateDir(doc, text(doc, "uuid")); dir != "" {
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || d.Name() == ".lock" {
				return err
			}
			rel, err := filepath.Rel(dir, path)
			if err == nil {
				add("tpm", rel, path)
			}
			return err
		})
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			warnings = append(warnings, fmt.Sprintf("TPM state is not in the point: %v", err))
		}
	}
	return out, warnings
}

// nvramPath returns where a machine's firmware variables are; "" if it has none in a file of this
// host.
func nvramPath(doc *etree.Element) string {
	for _, at := range []struct{ path, key string }{{"os/nvram/source", "file"}, {"os/varstore", "path"}} {
		if path := attrAt(doc, at.path, at.key); path != "" {
			return path
		}
	}
	return text(doc, "os/nvram")
}

// tpmStateDir returns the directory of a machine's TPM states, which has one directory per TPM
// version; "" if it has no emulated TPM.
func (h *Host) tpmStateDir(doc *etree.Element, uuid string) string {
	backend := doc.FindElement("devices/tpm/backend[@type='emulator']")
	if backend == nil || uuid == "" {
		return ""
	}
	return filepath.Join(h.tpmDir, uuid)
}

func attrAt(el *etree.Element, path, key string) string {
	if c := el.FindElement(path); c != nil {
		return c.SelectAttrValue(key, "")
	}
	return ""
}
