package torture

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"github.com/holdfast-vm/holdfast/internal/point"
	"github.com/holdfast-vm/holdfast/test/vm/program"
)

// monitor runs a QMP command.
func (l *lab) monitor(command string, arguments, result any) error {
	if l.daemon == nil {
		return l.vm.Monitor(command, arguments, result)
	}
	request := map[string]any{"execute": command}
	if arguments != nil {
		request["arguments"] = arguments
	}
	line, err := json.Marshal(request)
	if err != nil {
		return err
	}
	out, err := l.virsh("qemu-monitor-command", l.vm.UUID, string(line))
	if err != nil {
		return err
	}
	reply := struct{ Return any }{result}
	return json.Unmarshal([]byte(out), &reply)
}

func (l *lab) mustMonitor(command string, arguments, result any) {
	l.t.Helper()
	if err := l.monitor(command, arguments, result); err != nil {
		l.t.Fatal(err)
	}
}

// node is what QEMU says of a block node.
type node struct {
	Name    string `json:"node-name"`
	Driver  string `json:"drv"`
	File    string
	Bitmaps []struct {
		Name         string
		Recording    bool
		Busy         bool
		Inconsistent bool
	} `json:"dirty-bitmaps"`
}

func (l *lab) nodes() []node {
	l.t.Helper()
	var all []node
	l.mustMonitor("query-named-block-nodes", map[string]any{"flat": true}, &all)
	return all
}

// bitmaps returns the names of our bitmaps, by the name of the disk.
func (l *lab) bitmaps() map[string][]string {
	l.t.Helper()
	found := map[string][]string{}
	for _, n := range l.nodes() {
		for _, b := range n.Bitmaps {
			if strings.HasPrefix(b.Name, "hf") {
				found[l.diskOf(n)] = append(found[l.diskOf(n)], b.Name)
			}
		}
	}
	return found
}

func (l *lab) diskOf(n node) string {
	for _, d := range l.vm.Disks {
		if d.Path == n.File && n.Driver == d.Format {
			return d.Name
		}
	}
	return "node " + n.Name
}

// clean fails the test if Holdfast left anything behind, in the machine or on the host. Records of
// changes may only be those that the last point counts from.
func (l *lab) clean() {
	l.t.Helper()
	var left []string
	look := func() bool {
		left = l.leftOnHost()
		return len(left) == 0
	}
	if !program.Eventually(look) { // a guard that has lost its holdfast ends by itself
		l.t.Fatalf("left on the host: %q", left)
	}
	if left := l.leftInMachine(); len(left) > 0 {
		l.t.Fatalf("left in the machine: %q", left)
	}
	want := l.lastBitmaps()
	for disk, names := range l.bitmaps() {
		if len(names) > 1 || names[0] != want[disk] {
			l.t.Fatalf("disk %s has the bitmaps %q, the last point counts from %q", disk, names, want[disk])
		}
	}
	l.writesGoOn(2)
}

// lastBitmaps returns what the last point counts from, by disk.
func (l *lab) lastBitmaps() map[string]string {
	l.t.Helper()
	want := map[string]string{}
	if all := l.points(); len(all) > 0 {
		for _, d := range l.show(all[len(all)-1].ID).Disks {
			want[d.Name] = d.Bitmap
		}
	}
	return want
}

func (l *lab) show(id point.ID) point.RecoveryPoint {
	l.t.Helper()
	return decode[point.RecoveryPoint](l.t, l.must("point", "show", string(id), "--json"))
}

func (l *lab) leftOnHost() []string {
	left := slices.Collect(maps.Values(l.processes()))
	for _, dir := range []string{l.state, l.scratch} {
		filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			// Locks and what was found out about a QEMU binary stay.
			if err == nil && !d.IsDir() && filepath.Base(filepath.Dir(path)) != "locks" && !strings.HasPrefix(d.Name(),
				"pull-") {
				left = append(left, path)
			}
			return nil
		})
	}
	return left
}

func (l *lab) leftInMachine() []string {
	l.t.Helper()
	var left []string
	for _, query := range []string{"query-jobs", "query-block-jobs", "query-block-exports", "query-fdsets"} {
		var all []any
		l.mustMonitor(query, nil, &all)
		for _, one := range all {
			if text := fmt.Sprint(query, ": ", one); !strings.Contains(text, "opaque:serial0-source") { // libvirt's own
				left = append(left, text)
			}
		}
	}
	for _, n := range l.nodes() {
		if strings.HasPrefix(n.Name, "hf") ||
			slices.Contains([]string{"backup-top", "copy-before-write", "snapshot-access", "nbd"}, n.Driver) ||
			strings.HasPrefix(n.File, l.scratch) {
			left = append(left, fmt.Sprintf("node %s (%s) %s", n.Name, n.Driver, n.File))
		}
	}
	var status struct{ Status string }
	if l.mustMonitor("query-status", nil, &status); status.Status != "running" {
		left = append(left, "the machine is "+status.Status)
	}
	if l.daemon != nil {
		left = append(left, l.leftInLibvirt()...)
	}
	return left
}

// leftInLibvirt returns checkpoints that the last point does not count from.
func (l *lab) leftInLibvirt() []string {
	l.t.Helper()
	out, err := l.virsh("checkpoint-list", l.vm.UUID, "--name")
	if err != nil {
		l.t.Fatal(err)
	}
	want := slices.Collect(maps.Values(l.lastBitmaps()))
	return slices.DeleteFunc(strings.Fields(out), func(name string) bool { return slices.Contains(want, name) })
}
