package libvirt

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/holdfast-vm/holdfast/internal/hypervisor/libvirt/rpc"
)

// closeTime is how long QEMU may take to close an image after libvirt has said that the job is
// over.
const closeTime = 2 * time.Second

// closeScratch has QEMU close scratch images that no job uses any more. A libvirtd that is killed
// between having an image opened and noting it forgets it, and QEMU would keep it, and the space of
// the removed file, for the rest of its life. It is a last resort, taken only when some process is
// seen to hold one of the files: libvirt marks the machine as tainted.
func closeScratch(ctx context.Context, c *rpc.Client, dom rpc.Domain, files []string) (bool, error) {
	for until := time.Now().Add(closeTime); heldOpen(files); {
		if time.Now().After(until) {
			return dropNodes(ctx, c, dom, files)
		}
		select {
		case <-ctx.Done():
			return false, fmt.Errorf("wait for QEMU to close the scratch images: %w", ctx.Err())
		case <-time.After(pollEvery / 10):
		}
	}
	return false, nil
}

// heldOpen reports whether a process other than this one has one of the files open, as far as we
// may look.
func heldOpen(files []string) bool {
	fds, _ := filepath.Glob("/proc/[0-9]*/fd/[0-9]*") // the pattern is well-formed
	own := "/proc/" + strconv.Itoa(os.Getpid()) + "/"
	return slices.ContainsFunc(fds, func(fd string) bool {
		if strings.HasPrefix(fd, own) {
			return false
		}
		path, err := os.Readlink(fd)
		return err == nil && slices.Contains(files, strings.TrimSuffix(path, " (deleted)"))
	})
}

// dropNodes removes the block nodes of a running QEMU that stand on the files.
func dropNodes(ctx context.Context, c *rpc.Client, dom rpc.Domain, files []string) (bool, error) {
	st, err := c.DomainState(ctx, dom)
	if err != nil {
		return false, fmt.Errorf("look for scratch images that QEMU has open: %w", err)
	}
	if !active(st) {
		return false, nil
	}
	for dropped := false; ; dropped = true {
		text, err := c.MonitorCommand(ctx, dom, `{"execute":"query-named-block-nodes","arguments":{"flat":true}}`, false)
		if err != nil {
			return dropped, fmt.Errorf("look for scratch images that QEMU has open: %w", err)
		}
		nodes, err := nodesOn(text, files)
		if err != nil {
			return dropped, fmt.Errorf("look for scratch images that QEMU has open: %w", err)
		}
		if len(nodes) == 0 {
			return dropped, nil
		}
		// Only the first: a node may take those below it along.
		if err := monitor(ctx, c, dom, "blockdev-del", map[string]string{"node-name": nodes[0]}); err != nil {
			return dropped, fmt.Errorf("close a scratch image, node %s: %w", nodes[0], err)
		}
	}
}

// nodesOn returns the block nodes in a reply of query-named-block-nodes that stand on the files,
// formats before the files below them.
func nodesOn(text string, files []string) (out []string, err error) {
	var reply struct {
		Return []struct {
			Node   string `json:"node-name"`
			Driver string `json:"drv"`
			File   string `json:"file"`
		} `json:"return"`
	}
	if err := json.Unmarshal([]byte(text), &reply); err != nil {
		return nil, err
	}
	for _, ofFile := range []bool{false, true} {
		for _, n := range reply.Return {
			if slices.Contains(files, n.File) && (n.Driver == "file") == ofFile {
				out = append(out, n.Node)
			}
		}
	}
	return out, nil
}

// monitor runs a QMP command that returns nothing of interest.
func monitor(ctx context.Context, c *rpc.Client, dom rpc.Domain, command string, args any) error {
	text, err := json.Marshal(map[string]any{"execute": command, "arguments": args})
	if err != nil {
		return err
	}
	reply, err := c.MonitorCommand(ctx, dom, string(text), false)
	if err == nil && strings.Contains(reply, `"error"`) {
		err = fmt.Errorf("%.200s", reply)
	}
	return err
}
