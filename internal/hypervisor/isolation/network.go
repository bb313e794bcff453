package isolation

import (
	"fmt"
	"regexp"
	"strings"
)

var (
	infoType = regexp.MustCompile(`type=([A-Za-z0-9_-]+)`)
	// closedTypes are cards, and the ports of hubs inside QEMU.
	closedTypes = map[string]bool{"nic": true, "hubport": true}
)

// Backends returns the ways out in QEMU's own account of its networks, the answer to the monitor's
// "info network". down names the networks whose cards have their links cut, by ID.
func Backends(info string, down ...string) []string {
	var found []string
	cut := make(map[string]bool)
	for _, id := range down {
		cut[id] = true
	}
	for line := range strings.Lines(info) {
		name, _, _ := strings.Cut(strings.Trim(strings.TrimSpace(line), `\ `), ":")
		for _, m := range infoType.FindAllStringSubmatch(line, -1) {
			if !closedTypes[m[1]] && !cut[name] {
				found = append(found, fmt.Sprintf("network %s of type %s", name, m[1]))
			}
		}
	}
	return append(found, sharedHubs(info)...)
}

// sharedHubs returns the hubs that several ports are plugged into: whoever is on one can talk to
// the others.
func sharedHubs(info string) []string {
	var found []string
	hub, ports := "", 0
	end := func() {
		if ports > 1 {
			found = append(found, fmt.Sprintf("%s has %d ports", hub, ports))
		}
		ports = 0
	}
	for line := range strings.Lines(info) {
		switch {
		case strings.HasPrefix(line, "hub "):
			end()
			hub = strings.TrimSpace(line)
		case hub != "" && strings.HasPrefix(line, ` \`):
			ports++
		default:
			end()
			hub = ""
		}
	}
	end()
	return found
}
