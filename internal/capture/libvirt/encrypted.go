package libvirt

import (
	"context"
	"errors"
	"fmt"

	"github.com/beevik/etree"

	"github.com/holdfast-vm/holdfast/internal/hypervisor/libvirt/rpc"
	"github.com/holdfast-vm/holdfast/internal/luks"
	"github.com/holdfast-vm/holdfast/internal/qcow2"
)

// key is what the scratch image of an encrypted disk is encrypted with, for as long as the capture
// lasts. It is in this process, in libvirtd, which neither stores it nor tells it, and in QEMU.
type key struct {
	volume *luks.Volume
	secret string // UUID in libvirtd
}

// encryptScratch makes the key for the scratch image of a disk that is encrypted where it lies.
func (s *capturing) encryptScratch(ctx context.Context, d *disk) error {
	if d.key = nil; d.Encrypted == "" {
		return nil
	}
	volume, value, err := luks.NewEphemeral()
	if err != nil {
		return err
	}
	doc := etree.NewDocument()
	root := doc.CreateElement("secret")
	root.CreateAttr("ephemeral", "yes")
	root.CreateAttr("private", "yes")
	usage := root.CreateElement("usage")
	usage.CreateAttr("type", "volume")
	usage.CreateElement("volume").SetText(d.scratch)
	secret, err := s.client.SecretDefine(ctx, render(doc))
	if err == nil {
		err = s.client.SecretSetValue(ctx, secret, value)
	}
	if err != nil {
		return fmt.Errorf("have libvirt know the key of the scratch image of disk %s: %w", d.Name, err)
	}
	u := secret.UUID
	d.key = &key{volume, fmt.Sprintf("%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:])}
	return nil
}

// keyed returns the scratch images that libvirtd has keys of.
func (s *capturing) keyed() (paths []string) {
	for _, d := range s.disks {
		if d.key != nil {
			paths = append(paths, d.scratch)
		}
	}
	return paths
}

// keyBytes is what the header of an encrypted scratch image takes.
func (s *capturing) keyBytes(d *disk) int64 {
	if d.Encrypted == "" {
		return 0
	}
	return luks.HeaderSize + 2*s.cluster()
}

// create makes a scratch image.
func (d *disk) create(cluster int64) error {
	o := qcow2.CreateOptions{ClusterSize: int(cluster)}
	if d.key != nil {
		o.Encryption = d.key.volume
	}
	return qcow2.Create(d.scratch, d.Size, o)
}

// describeKey says in a job's XML how a scratch image is opened.
func (d *disk) describeKey(el *etree.Element) {
	if d.key == nil {
		return
	}
	encryption := el.CreateElement("encryption")
	encryption.CreateAttr("format", "luks")
	secret := encryption.CreateElement("secret")
	secret.CreateAttr("type", "passphrase")
	secret.CreateAttr("uuid", d.key.secret)
}

// dropKeys has libvirtd forget the keys of scratch images.
func dropKeys(ctx context.Context, c *rpc.Client, scratch []string) error {
	var errs []error
	for _, path := range scratch {
		secret, err := c.SecretByUsage(ctx, rpc.UsageVolume, path)
		if err == nil {
			err = c.SecretUndefine(ctx, secret)
		}
		if err != nil && !rpc.Is(err, rpc.NoSecret) {
			errs = append(errs, fmt.Errorf("have libvirt forget the key of %s: %w", path, err))
		}
	}
	return errors.Join(errs...)
}
