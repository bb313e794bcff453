package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/holdfast-vm/holdfast/internal/disks"
)

const poolHelp = `The pool is a directory with images, --pool DIR, or a storage pool of libvirt that is
one, --pool libvirt:NAME, asked for at --connect.`

// poolFlag lets a command name the pool.
func (a *app) poolFlag(cmd *cobra.Command) {
	cmd.PersistentFlags().StringVar(&a.pool, "pool", "",
		"`directory` of managed disks, or libvirt:NAME (HOLDFAST_POOL)")
}

// poolSpec returns the pool that was asked for, or "".
func (a *app) poolSpec() string {
	if a.pool != "" {
		return a.pool
	}
	return a.env.Getenv("HOLDFAST_POOL")
}

// pooled is a pool of managed disks with the hosts that were asked about them.
type pooled struct {
	*disks.Pool
	app   *app
	hosts map[string]host // by URI
}

// withPool runs do with the pool that was asked for.
func (a *app) withPool(ctx context.Context, do func(p *pooled) error) error {
	if a.poolSpec() == "" {
		return withHint(usagef("no pool of disks was given"), "give --pool DIR or set HOLDFAST_POOL")
	}
	p := &pooled{app: a, hosts: map[string]host{}}
	defer p.close()
	if err := p.open(ctx, a.poolSpec()); err != nil {
		return fmt.Errorf("open disk pool %s: %w", a.poolSpec(), err)
	}
	return do(p)
}

func (p *pooled) close() {
	for _, h := range p.hosts {
		h.Close()
	}
}

func (p *pooled) open(ctx context.Context, spec string) error {
	dir, options := spec, disks.Options{Open: p.diskHost, Now: p.app.env.Now}
	var err error
	if name, ok := strings.CutPrefix(spec, "libvirt:"); ok {
		keeper, err := p.keeper()
		if err != nil {
			return err
		}
		if dir, err = keeper.PoolDir(ctx, name); err != nil {
			return err
		}
		options.Changed = func(ctx context.Context) error { return keeper.RefreshPool(ctx, name) }
	}
	p.Pool, err = disks.OpenPool(dir, options)
	return err
}

// poolKeeper is a host that keeps storage pools.
type poolKeeper interface {
	PoolDir(ctx context.Context, name string) (string, error)
	RefreshPool(ctx context.Context, name string) error
}

// keeper returns the first of the hosts that were asked for that keeps storage pools.
func (p *pooled) keeper() (poolKeeper, error) {
	for _, uri := range p.app.connections() {
		h, err := p.host(uri)
		if err != nil {
			return nil, err
		}
		if k, ok := h.Host.(poolKeeper); ok {
			return k, nil
		}
	}
	return nil, withHint(errors.New("no libvirt was given"), "name it with --connect, such as qemu:///system")
}

// host returns a host by its URI, opened once.
func (p *pooled) host(uri string) (host, error) {
	if h, ok := p.hosts[uri]; ok {
		return h, nil
	}
	opened, err := p.app.openHosts([]string{uri})
	if err != nil {
		return host{}, err
	}
	p.hosts[uri] = opened[0]
	return opened[0], nil
}

// diskHost returns a host that can give disks to its machines.
func (p *pooled) diskHost(uri string) (disks.Host, error) {
	h, err := p.host(uri)
	if err != nil {
		return nil, err
	}
	able, ok := h.Host.(disks.Host)
	if !ok {
		return nil, fmt.Errorf("host %s cannot give disks to its machines", uri)
	}
	return able, nil
}
