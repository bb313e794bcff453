package qemu

import (
	"context"
	"os"
	"strings"
	"time"

	"github.com/holdfast-vm/holdfast/internal/qmp"
)

// ours begins the names of jobs, nodes and bitmaps that live no longer than a capture.
const ours = "hf-cap-"

// keyPrefix begins the names of the secrets of scratch images.
const keyPrefix = ours + "k-"

// commandTime bounds one monitor command. A healthy QEMU needs milliseconds, a transaction as long
// as the slowest request in flight.
const commandTime = 30 * time.Second

// monitor is what a capture needs of a QMP connection.
type monitor interface {
	Execute(ctx context.Context, command string, args, result any) error
	AddFD(ctx context.Context, f *os.File, label string) (int, error)
	Subscribe() *qmp.Subscription
	Version() qmp.Version
	PeerPID() int
}

type args map[string]any

// action is one member of a transaction.
type action struct {
	Type string `json:"type"`
	Data args   `json:"data"`
}

// run executes one command within commandTime.
func run(ctx context.Context, m monitor, command string, a args, result any) error {
	ctx, cancel := context.WithTimeout(ctx, commandTime)
	defer cancel()
	if a == nil {
		return m.Execute(ctx, command, nil, result)
	}
	return m.Execute(ctx, command, a, result)
}

// node is an entry of query-named-block-nodes.
type node struct {
	Name        string `json:"node-name"`
	Driver      string `json:"drv"`
	BackingFile string `json:"backing_file"`
	Layers      int    `json:"backing_file_depth"` // below it
	Image       struct {
		VirtualSize int64  `json:"virtual-size"`
		BackingFile string `json:"backing-filename"`
	}
	Bitmaps []bitmap `json:"dirty-bitmaps"`
}

// standsAlone reports whether what the node has not allocated is zeros, and the node knows what it
// has allocated.
func (n *node) standsAlone() bool {
	return n.Driver == "qcow2" && n.Layers == 0 && n.BackingFile == "" && n.Image.BackingFile == ""
}

type bitmap struct {
	Name         string
	Granularity  int64
	Count        int64 // bytes marked
	Recording    bool
	Busy         bool
	Persistent   bool
	Inconsistent bool
}

func (n *node) bitmap(name string) *bitmap {
	for i := range n.Bitmaps {
		if n.Bitmaps[i].Name == name {
			return &n.Bitmaps[i]
		}
	}
	return nil
}

// queryNodes returns all block nodes by name.
func queryNodes(ctx context.Context, m monitor) (map[string]*node, error) {
	var list []*node
	if err := run(ctx, m, "query-named-block-nodes", args{"flat": true}, &list); err != nil {
		return nil, err
	}
	nodes := make(map[string]*node, len(list))
	for _, n := range list {
		nodes[n.Name] = n
	}
	return nodes, nil
}

func addBitmap(name, node string, granule int64, persistent bool) action {
	return action{"block-dirty-bitmap-add",
		args{"node": node, "name": name, "granularity": granule, "persistent": persistent}}
}

func removeBitmap(ctx context.Context, m monitor, node, name string) error {
	return run(ctx, m, "block-dirty-bitmap-remove", args{"node": node, "name": name}, nil)
}

// job is an entry of query-jobs.
type job struct {
	ID       string
	Status   string
	Error    string
	Progress int64 `json:"current-progress"`
	Total    int64 `json:"total-progress"`
}

const concluded = "concluded"

// queryJobs returns our jobs.
func queryJobs(ctx context.Context, m monitor) (map[string]job, error) {
	var list []job
	if err := run(ctx, m, "query-jobs", nil, &list); err != nil {
		return nil, err
	}
	jobs := make(map[string]job)
	for _, j := range list {
		if strings.HasPrefix(j.ID, ours) {
			jobs[j.ID] = j
		}
	}
	return jobs, nil
}

// breaksSnapshot reports whether this QEMU can give up a backup instead of a guest's write when the
// scratch fails.
func breaksSnapshot(ctx context.Context, m monitor) (bool, error) {
	if !m.Version().AtLeast(9, 0) {
		return false, nil
	}
	var schema []struct {
		Name    string
		Meta    string `json:"meta-type"`
		ArgType string `json:"arg-type"`
		Members []struct{ Name string }
	}
	if err := run(ctx, m, "query-qmp-schema", nil, &schema); err != nil {
		return false, err
	}
	argType := ""
	for _, e := range schema {
		if e.Meta == "command" && e.Name == "blockdev-backup" {
			argType = e.ArgType
		}
	}
	for _, e := range schema {
		for _, member := range e.Members {
			if e.Name == argType && member.Name == "on-cbw-error" {
				return true, nil
			}
		}
	}
	return false, nil
}
