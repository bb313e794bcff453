package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/holdfast-vm/holdfast/internal/capture"
	"github.com/holdfast-vm/holdfast/internal/guest"
	"github.com/holdfast-vm/holdfast/internal/hypervisor"
	"github.com/holdfast-vm/holdfast/internal/protect"
	"github.com/holdfast-vm/holdfast/internal/vault"
)

// host is a connection to a hypervisor with the capturer for its kind.
type host struct {
	hypervisor.Host
	capturer capture.Capturer
}

// openHosts opens the hosts that were asked for. On error none is left open.
func (a *app) openHosts(uris []string) ([]host, error) {
	stateDir, err := a.stateDir()
	if err != nil {
		return nil, err
	}
	var hosts []host
	for _, uri := range uris {
		h, err := openHost(uri, stateDir)
		if err != nil {
			closeHosts(hosts)
			return nil, fmt.Errorf("connect to %s: %w", uri, err)
		}
		hosts = append(hosts, h)
	}
	return hosts, nil
}

func closeHosts(hosts []host) {
	for _, h := range hosts {
		h.Close()
	}
}

// find returns the one machine of hosts that ref names.
func find(ctx context.Context, hosts []host, ref string) (host, hypervisor.Machine, error) {
	var plain []hypervisor.Host
	for _, h := range hosts {
		plain = append(plain, h.Host)
	}
	chosen, m, err := protect.Find(ctx, plain, ref)
	if err != nil {
		return host{}, m, err
	}
	for _, h := range hosts {
		if h.Host == chosen {
			return h, m, nil
		}
	}
	return host{}, m, errors.New("the machine's host was closed")
}

// stateDir is where locks and notes of running work are kept: the same for all processes that may
// meet on a machine.
func (a *app) stateDir() (string, error) {
	if dir := a.env.Getenv(guest.StateEnv); dir != "" {
		return filepath.Abs(dir)
	}
	return guest.StateDir(), nil
}

// scratchSpace returns where machines may write out what is to be read.
func (a *app) scratchSpace() (capture.Scratch, error) {
	s := capture.Scratch{Dir: a.scratch}
	if s.Dir == "" {
		s.Dir = a.env.Getenv("HOLDFAST_SCRATCH")
	}
	if s.Dir == "" {
		s.Dir = "/var/tmp/holdfast"
		if os.Geteuid() != 0 {
			s.Dir += "-" + strconv.Itoa(os.Geteuid())
		}
	}
	var err error
	if s.Dir, err = filepath.Abs(s.Dir); err != nil {
		return s, err
	}
	if a.scratchLimit != "" {
		if s.Limit, err = parseSize(a.scratchLimit); err != nil {
			return s, usagef("--scratch-limit: %v", err)
		}
	}
	return s, nil
}

// deps puts together what protect works with; v may be nil.
func (a *app) deps(h host, v *vault.Vault, m *meter) (protect.Deps, error) {
	dir, err := a.stateDir()
	if err != nil {
		return protect.Deps{}, err
	}
	d := protect.Deps{
		Vault: v, Host: h.Host, Capturer: h.capturer, StateDir: dir, Version: Version, Now: a.env.Now,
		Log: a.remark, Progress: m.Update,
	}
	a.guestDeps(&d, h, dir)
	return d, nil
}

// parseTags reads --tag k=v.
func parseTags(list []string) (map[string]string, error) {
	if len(list) == 0 {
		return nil, nil
	}
	tags := map[string]string{}
	for _, s := range list {
		k, v, ok := strings.Cut(s, "=")
		if !ok || k == "" {
			return nil, usagef("--tag: %q is not KEY=VALUE", s)
		}
		tags[k] = v
	}
	return tags, nil
}
