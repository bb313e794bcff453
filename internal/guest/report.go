package guest

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"time"

	"github.com/holdfast-vm/holdfast/internal/hypervisor"
	"github.com/holdfast-vm/holdfast/internal/point"
)

const (
	reportTime  = 2 * time.Second // for all questions of a report together
	reportTries = time.Second     // for one of them
)

type info struct {
	Version  string `json:"version"`
	Commands []struct {
		Name    string `json:"name"`
		Enabled bool   `json:"enabled"`
	} `json:"supported_commands"`
}

func (i info) allows(command string) bool {
	for _, c := range i.Commands {
		if c.Name == command {
			return c.Enabled
		}
	}
	return false
}

type osInfo struct {
	ID     string `json:"id"`
	Name   string `json:"name"`
	Pretty string `json:"pretty-name"`
}

// windows is the ID that the agent gives to every Windows.
const windows = "mswindows"

// Report asks the agent what runs inside the machine. Each part is optional; it takes two seconds
// at most. The error says why not even one question was answered.
func Report(ctx context.Context, agent hypervisor.Agent) (*point.GuestReport, error) {
	ctx, cancel := context.WithTimeout(ctx, reportTime)
	defer cancel()
	r := &point.GuestReport{}
	var first error
	some := false
	ask := func(name string, result any) bool {
		ctx, cancel := context.WithTimeout(ctx, reportTries)
		defer cancel()
		data, err := agent.Command(ctx, name, nil)
		if err == nil {
			err = json.Unmarshal(data, result)
		}
		some = some || err == nil || answered(err)
		if first == nil {
			first = err
		}
		return err == nil
	}
	var i info
	if ask("guest-info", &i) {
		r.Agent = i.Version
	}
	var system osInfo
	if ask("guest-get-osinfo", &system) {
		r.OS = firstOf(system.Pretty, system.Name, system.ID)
	}
	var host struct {
		Name string `json:"host-name"`
	}
	if ask("guest-get-host-name", &host) {
		r.Hostname = host.Name
	}
	var nics []nic
	if ask("guest-network-get-interfaces", &nics) {
		r.Addresses = addresses(nics)
	}
	var mounts []mount
	if ask("guest-get-fsinfo", &mounts) {
		r.Mounts = mountpoints(mounts)
	}
	if !some {
		return nil, fmt.Errorf("ask the guest agent about its system: %w", first)
	}
	return r, nil
}

func firstOf(names ...string) string {
	for _, n := range names {
		if n != "" {
			return n
		}
	}
	return ""
}

type nic struct {
	Addresses []struct {
		Address string `json:"ip-address"`
	} `json:"ip-addresses"`
}

// addresses returns those by which others can reach the guest.
func addresses(nics []nic) []string {
	var out []string
	for _, n := range nics {
		for _, a := range n.Addresses {
			ip, err := netip.ParseAddr(a.Address)
			if err != nil || ip.IsLoopback() || ip.IsLinkLocalUnicast() {
				continue
			}
			out = append(out, a.Address)
		}
	}
	return out
}

type mount struct {
	Mountpoint string `json:"mountpoint"`
	Type       string `json:"type"`
}

func mountpoints(mounts []mount) []string {
	out := make([]string, 0, len(mounts))
	for _, m := range mounts {
		if m.Type == "" {
			out = append(out, m.Mountpoint)
			continue
		}
		out = append(out, m.Mountpoint+" ("+m.Type+")")
	}
	return out
}
