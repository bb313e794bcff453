package rpc

import "context"

// StoragePool is libvirt's handle of a storage pool.
type StoragePool struct {
	Name string
	UUID [16]byte
}

// StoragePoolByName looks a storage pool up; a missing one is an Error of code [NoStoragePool].
func (c *Client) StoragePoolByName(ctx context.Context, name string) (StoragePool, error) {
	var e encoder
	e.str(name)
	d, err := c.remote(ctx, procStoragePoolByName, e.b)
	if err != nil {
		return StoragePool{}, err
	}
	return StoragePool{Name: d.str(), UUID: d.uuid()}, d.end()
}

// StoragePoolXML returns a storage pool's definition.
func (c *Client) StoragePoolXML(ctx context.Context, p StoragePool) (string, error) {
	return c.text(ctx, procStoragePoolXML, poolFlags(p))
}

// StoragePoolRefresh has libvirt look again which volumes a pool has. A pool that is not active is
// an Error of code [OperationInvalid].
func (c *Client) StoragePoolRefresh(ctx context.Context, p StoragePool) error {
	return c.void(ctx, procStoragePoolRefresh, poolFlags(p))
}

func poolFlags(p StoragePool) []byte {
	var e encoder
	e.str(p.Name)
	e.fixed(p.UUID[:])
	e.u32(0)
	return e.b
}
