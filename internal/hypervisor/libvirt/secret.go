package libvirt

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/beevik/etree"

	"github.com/holdfast-vm/holdfast/internal/hypervisor"
	"github.com/holdfast-vm/holdfast/internal/hypervisor/libvirt/rpc"
)

var _ hypervisor.KeyHolder = (*Host)(nil)

// DiskKey returns the secret that libvirtd keeps for a disk's image. That of a private secret it
// tells nobody.
func (h *Host) DiskKey(ctx context.Context, m hypervisor.Machine, disk string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	key, err := h.diskKey(ctx, m.Name, disk)
	if err != nil {
		return nil, fmt.Errorf("secret of disk %s of %s: %w", disk, m.Name, err)
	}
	return key, nil
}

func (h *Host) diskKey(ctx context.Context, name, disk string) ([]byte, error) {
	c, dom, err := h.Domain(ctx, name)
	if err != nil {
		return nil, err
	}
	text, err := c.DomainXML(ctx, dom, 0)
	if err != nil {
		return nil, err
	}
	doc, err := parse(text)
	if err != nil {
		return nil, err
	}
	ref := secretOf(diskElement(doc, disk))
	if ref == nil {
		return nil, fmt.Errorf("%w: its definition names none", hypervisor.ErrNoKey)
	}
	secret, err := lookUp(ctx, c, ref)
	if err != nil {
		return nil, err
	}
	key, err := c.SecretValue(ctx, secret)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", hypervisor.ErrNoKey, err)
	}
	return key, nil
}

// secretOf returns the element that names the secret of a disk's image, nil if there is none.
func secretOf(disk *etree.Element) *etree.Element {
	if disk == nil {
		return nil
	}
	for _, path := range []string{"source/encryption/secret", "encryption/secret"} {
		if el := disk.FindElement(path); el != nil {
			return el
		}
	}
	return nil
}

// lookUp returns the secret that an element names.
func lookUp(ctx context.Context, c *rpc.Client, ref *etree.Element) (rpc.Secret, error) {
	var secret rpc.Secret
	text := ref.SelectAttrValue("uuid", "")
	uuid, err := parseUUID(text)
	if text == "" {
		secret, err = c.SecretByUsage(ctx, rpc.UsageVolume, ref.SelectAttrValue("usage", ""))
	} else if err == nil {
		secret, err = c.SecretByUUID(ctx, uuid)
	}
	if rpc.Is(err, rpc.NoSecret) {
		err = fmt.Errorf("%w: %w", hypervisor.ErrNoKey, err)
	}
	return secret, err
}

// checkSecrets compares the secrets of encrypted disks with what libvirtd has, as far as it tells:
// the machine would not start with another.
func (b *builder) checkSecrets(ctx context.Context, c *rpc.Client) error {
	for _, k := range b.secrets {
		want, err := os.ReadFile(k.file)
		if err != nil {
			return fmt.Errorf("secret of disk %s: %w", k.disk, err)
		}
		secret, err := lookUp(ctx, c, k.ref)
		if errors.Is(err, hypervisor.ErrNoKey) {
			b.warn("libvirt has no secret %s: define it (virsh secret-define, secret-set-value) before the machine "+
				"is started",
				k.ref.SelectAttrValue("uuid", k.ref.SelectAttrValue("usage", "")))
			continue
		}
		if err != nil {
			return fmt.Errorf("secret of disk %s: %w", k.disk, err)
		}
		if have, err := c.SecretValue(ctx, secret); err == nil && !bytes.Equal(have, want) {
			return fmt.Errorf("disk %s would be encrypted with another secret than that of libvirt which opens it (%s)",
				k.disk, formatUUID(secret.UUID))
		}
	}
	return nil
}
