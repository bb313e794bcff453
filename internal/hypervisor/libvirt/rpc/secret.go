package rpc

import "context"

const (
	procSecretByUUID   = 141
	procSecretDefine   = 142
	procSecretSetValue = 144
	procSecretValue    = 145
	procSecretUndefine = 146
	procSecretByUsage  = 147
)

// UsageVolume is the kind of secrets that open images.
const UsageVolume = 1

// Secret is something that libvirtd keeps for machines, such as what opens an encrypted image.
type Secret struct {
	UUID      [16]byte
	UsageType int32
	UsageID   string
}

// SecretByUUID looks a secret up; a missing one is an Error of code [NoSecret].
func (c *Client) SecretByUUID(ctx context.Context, uuid [16]byte) (Secret, error) {
	var e encoder
	e.fixed(uuid[:])
	return c.secretOf(ctx, procSecretByUUID, e.b)
}

// SecretByUsage looks a secret up by what it is for.
func (c *Client) SecretByUsage(ctx context.Context, kind int32, id string) (Secret, error) {
	var e encoder
	e.i32(kind)
	e.str(id)
	return c.secretOf(ctx, procSecretByUsage, e.b)
}

// SecretDefine makes a secret without a value.
func (c *Client) SecretDefine(ctx context.Context, xml string) (Secret, error) {
	var e encoder
	e.str(xml)
	e.u32(0)
	return c.secretOf(ctx, procSecretDefine, e.b)
}

// SecretSetValue gives a secret its value.
func (c *Client) SecretSetValue(ctx context.Context, s Secret, value []byte) error {
	var e encoder
	e.secret(s)
	e.str(string(value))
	e.u32(0)
	return c.void(ctx, procSecretSetValue, e.b)
}

// SecretValue returns the value of a secret. libvirtd gives that of a private one to nobody.
func (c *Client) SecretValue(ctx context.Context, s Secret) ([]byte, error) {
	var e encoder
	e.secret(s)
	e.u32(0)
	text, err := c.text(ctx, procSecretValue, e.b)
	return []byte(text), err
}

// SecretUndefine removes a secret and its value.
func (c *Client) SecretUndefine(ctx context.Context, s Secret) error {
	var e encoder
	e.secret(s)
	return c.void(ctx, procSecretUndefine, e.b)
}

func (c *Client) secretOf(ctx context.Context, proc int32, args []byte) (Secret, error) {
	d, err := c.remote(ctx, proc, args)
	if err != nil {
		return Secret{}, err
	}
	s := Secret{UUID: d.uuid(), UsageType: d.i32(), UsageID: d.str()}
	return s, d.end()
}

func (e *encoder) secret(s Secret) {
	e.fixed(s.UUID[:])
	e.i32(s.UsageType)
	e.str(s.UsageID)
}
