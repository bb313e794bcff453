package rpc

import "context"

// Networks lists all virtual networks, active or not.
func (c *Client) Networks(ctx context.Context) ([]Network, error) {
	var e encoder
	e.i32(1)
	e.u32(0)
	d, err := c.remote(ctx, procListNetworks, e.b)
	if err != nil {
		return nil, err
	}
	var out []Network
	for range d.count(20) {
		out = append(out, d.network())
		if d.err != nil {
			return nil, d.err
		}
	}
	return out, d.err
}

// NetworkByName looks a network up; a missing one is an Error of code [NoNetwork].
func (c *Client) NetworkByName(ctx context.Context, name string) (Network, error) {
	var e encoder
	e.str(name)
	d, err := c.remote(ctx, procNetworkByName, e.b)
	if err != nil {
		return Network{}, err
	}
	return d.network(), d.end()
}

// NetworkXML returns a network's definition.
func (c *Client) NetworkXML(ctx context.Context, n Network) (string, error) {
	var e encoder
	e.network(n)
	e.u32(0)
	return c.text(ctx, procNetworkXML, e.b)
}
