package protect

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/holdfast-vm/holdfast/internal/hypervisor"
	"github.com/holdfast-vm/holdfast/internal/point"
)

// Find returns the machine that ref names, by UUID or by name, and the host it is on. If none or
// several are found it returns hypervisor.ErrNoMachine or ErrAmbiguous. Every host must answer,
// since another machine of that name may be on the one that does not.
func Find(ctx context.Context, hosts []hypervisor.Host, ref string) (hypervisor.Host, hypervisor.Machine, error) {
	type found struct {
		host    hypervisor.Host
		machine hypervisor.Machine
	}
	var byName, byUUID []found
	for _, h := range hosts {
		machines, err := h.Machines(ctx)
		if err != nil {
			return nil, hypervisor.Machine{}, fmt.Errorf("list the machines of %s: %w: %w", h.URI(),
				hypervisor.ErrUnreachable, err)
		}
		for _, m := range machines {
			if m.Name == ref {
				byName = append(byName, found{h, m})
			}
			if m.UUID != "" && strings.EqualFold(m.UUID, ref) {
				byUUID = append(byUUID, found{h, m})
			}
		}
	}
	list := byUUID
	if len(list) == 0 {
		list = byName
	}
	switch len(list) {
	case 0:
		return nil, hypervisor.Machine{}, fmt.Errorf("%w: %q on %s", hypervisor.ErrNoMachine, ref, hostNames(hosts))
	case 1:
		return list[0].host, list[0].machine, nil
	}
	var names []string
	for _, f := range list {
		names = append(names, fmt.Sprintf("%s (UUID %s, on %s)", f.machine.Name, orNone(f.machine.UUID), f.host.URI()))
	}
	return nil, hypervisor.Machine{}, fmt.Errorf("%w: %s", hypervisor.ErrAmbiguous, strings.Join(names, "; "))
}

func hostNames(hosts []hypervisor.Host) string {
	var names []string
	for _, h := range hosts {
		names = append(names, h.URI())
	}
	return strings.Join(names, ", ")
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}

// reconcile brings a machine back in order after a run that was killed: it thaws its guest and
// removes jobs, nodes, scratch files, and the bitmaps of our vault that are not in keep. It returns
// what it did, in words, also on error.
func reconcile(ctx context.Context, deps Deps, m hypervisor.Machine, keep []string) ([]string, error) {
	var did []string
	var thawErr error
	if deps.Leftovers != nil {
		var thawed []string
		thawed, thawErr = deps.Leftovers(ctx, m)
		did = append(did, thawed...)
		if thawErr != nil {
			thawErr = fmt.Errorf("thaw the guest that a killed run left: %w", thawErr)
		}
	}
	vaultID := ""
	if deps.Vault != nil {
		vaultID = deps.Vault.ShortID()
	}
	removed, err := deps.Capturer.Reconcile(ctx, m.Name, vaultID, keep)
	did = append(did, removed...)
	if err != nil {
		err = fmt.Errorf("clean up after a killed run: %w", err)
	}
	return did, errors.Join(thawErr, err)
}

// CleanUp reconciles a machine that no backup is working on; it returns capture.ErrBusy if one is.
// Records of changes stay if the next point counts from them, unless release is set; nothing is
// known of them where Deps.Vault is nil. It returns what it did, in words, also on error.
func CleanUp(ctx context.Context, deps Deps, m hypervisor.Machine, release bool) ([]string, error) {
	unlock, err := lockMachine(deps.StateDir, m)
	if err != nil {
		return nil, err
	}
	defer unlock()
	var keep []string
	if deps.Vault != nil && !release {
		points, err := pointsOf(ctx, deps.Vault, m)
		if err != nil {
			return nil, err
		}
		keep = recordsOf(points, m).all()
	}
	return reconcile(ctx, deps, m, keep)
}

// Last returns the newest of points, oldest first, that is a backup of m, or nil. Snapshots are
// none.
func Last(points []*point.RecoveryPoint, m hypervisor.Machine) *point.RecoveryPoint {
	return lineageOf(points, m).last
}
