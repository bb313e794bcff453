package libvirt

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"time"

	"github.com/beevik/etree"

	"github.com/holdfast-vm/holdfast/internal/capture"
	"github.com/holdfast-vm/holdfast/internal/hypervisor/libvirt/rpc"
	"github.com/holdfast-vm/holdfast/internal/hypervisor/pause"
)

// Reconcile removes what a killed capture left in the machine, and checkpoints of vault that are
// not named in keep.
func (c *Capturer) Reconcile(ctx context.Context, machine string, vault string, keep []string) ([]string, error) {
	client, dom, err := c.host.Domain(ctx, machine)
	if err != nil {
		return nil, err
	}
	st, err := openState(c.opts.StateDir, dom)
	if errors.Is(err, capture.ErrBusy) {
		return []string{"left alone: " + err.Error()}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reconcile %s: %w", machine, err)
	}
	done, err := recoverState(ctx, client, dom, st, vault, keep)
	if err == nil && vault != "" {
		var more []string
		more, err = dropUnknown(ctx, client, dom, vault, keep)
		done = append(done, more...)
	}
	st.close(err == nil)
	if err != nil {
		return done, fmt.Errorf("reconcile %s: %w", machine, err)
	}
	return done, nil
}

// recoverState undoes what the record notes, the machine's own running first. It does as much as it
// can. vault and keep are what is known of points.
func recoverState(ctx context.Context, c *rpc.Client, dom rpc.Domain, st *stateFile, vault string,
	keep []string) (done []string, err error) {
	r := st.record
	if r.Pause != nil {
		resumed, errResume := endPause(ctx, c, dom, *r.Pause)
		switch {
		case errors.Is(errResume, pause.ErrOthers):
			done = append(done, fmt.Sprintf("left it paused, for %v: `virsh resume %s` lets it go on", errResume,
				dom.Name))
		case errResume != nil:
			err = errors.Join(err, errResume)
		case resumed:
			done = append(done, "resumed the machine")
		}
	}
	if r.Job {
		aborted, errAbort := abortJob(ctx, c, dom, r.Scratch)
		err = errors.Join(err, errAbort)
		if aborted {
			done = append(done, "aborted a backup job")
		}
		closed, errClose := closeScratch(ctx, c, dom, r.Scratch)
		err = errors.Join(err, errClose)
		if closed {
			done = append(done, "closed scratch images that libvirt had forgotten")
		}
	}
	if r.Checkpoint != "" {
		did, errDrop := dropBegun(ctx, c, dom, r, vault, keep)
		err = errors.Join(err, errDrop)
		done = append(done, did...)
	}
	err = errors.Join(err, dropKeys(ctx, c, r.Scratch))
	for _, path := range r.Scratch {
		switch errRemove := os.Remove(path); {
		case errRemove == nil:
			done = append(done, "removed "+path)
		case !errors.Is(errRemove, fs.ErrNotExist):
			err = errors.Join(err, errRemove)
		}
	}
	if err != nil {
		return done, err
	}
	if st.unfinished() {
		err = st.note(func(r *record) { *r = record{Machine: dom.Name} })
	}
	return done, err
}

// dropBegun drops the checkpoint that an unfinished capture began, unless a point may count from
// it.
func dropBegun(ctx context.Context, c *rpc.Client, dom rpc.Domain, r record, vault string, keep []string) ([]string,
	error) {
	names, err := c.Checkpoints(ctx, dom)
	if err != nil || !slices.Contains(names, r.Checkpoint) || slices.Contains(keep, r.Checkpoint) {
		return nil, err
	}
	if !capture.MayDrop(r.Checkpoint, r.Read, vault, keep) {
		return []string{capture.Undecided(r.Checkpoint)}, nil
	}
	return []string{"deleted checkpoint " + r.Checkpoint}, dropCheckpoint(ctx, c, dom, r.Checkpoint)
}

func dropUnknown(ctx context.Context, c *rpc.Client, dom rpc.Domain, vault string, keep []string) (done []string,
	err error) {
	names, err := c.Checkpoints(ctx, dom)
	if err != nil {
		return nil, fmt.Errorf("list checkpoints: %w", err)
	}
	for _, name := range names {
		if !ofVault(name, vault) || slices.Contains(keep, name) {
			continue
		}
		if err := dropCheckpoint(ctx, c, dom, name); err != nil {
			return done, err
		}
		done = append(done, "deleted checkpoint "+name)
	}
	return done, nil
}

// abortJob ends the backup job that writes to one of our files, if it runs, and waits for its end.
func abortJob(ctx context.Context, c *rpc.Client, dom rpc.Domain, ours []string) (bool, error) {
	aborted := false
	for {
		text, err := c.BackupXML(ctx, dom)
		if rpc.Is(err, rpc.NoBackup) || rpc.Is(err, rpc.OperationInvalid) {
			return aborted, nil // none, or the machine is off
		}
		if err != nil {
			return aborted, fmt.Errorf("look for the backup job: %w", err)
		}
		if !writesTo(text, ours) {
			return aborted, nil
		}
		if !aborted {
			err := c.AbortJob(ctx, dom)
			// invalid while it is ending, or libvirtd has just been started
			if err != nil && !rpc.Is(err, rpc.OperationInvalid) {
				return false, fmt.Errorf("abort the backup job: %w", err)
			}
			aborted = err == nil
		}
		select {
		case <-ctx.Done():
			return aborted, fmt.Errorf("wait for the end of the backup job: %w", ctx.Err())
		case <-time.After(pollEvery / 10):
		}
	}
}

// writesTo reports whether a backup's XML names one of the files.
func writesTo(text string, files []string) bool {
	doc := etree.NewDocument()
	if doc.ReadFromString(text) != nil {
		return false
	}
	for _, path := range []string{"//target", "//scratch"} {
		for _, el := range doc.FindElements(path) {
			if slices.Contains(files, el.SelectAttrValue("file", "")) {
				return true
			}
		}
	}
	return false
}

// dropCheckpoint deletes a checkpoint and its bitmaps. Where libvirt cannot, because a bitmap is
// missing or inconsistent, libvirt is made to forget it, and what is left of the bitmaps is removed
// from QEMU.
func dropCheckpoint(ctx context.Context, c *rpc.Client, dom rpc.Domain, name string) error {
	err := c.CheckpointDelete(ctx, dom, name, 0)
	if err == nil || rpc.Is(err, rpc.NoCheckpoint) {
		return nil
	}
	if errForget := c.CheckpointDelete(ctx, dom, name, rpc.CheckpointMetadataOnly); errForget != nil &&
		!rpc.Is(errForget, rpc.NoCheckpoint) {
		return fmt.Errorf("delete checkpoint %s: %w", name, errors.Join(err, errForget))
	}
	return dropBitmap(ctx, c, dom, name)
}

// dropBitmap removes all bitmaps of a name from a running QEMU. It is a last resort: libvirt marks
// the machine as tainted.
func dropBitmap(ctx context.Context, c *rpc.Client, dom rpc.Domain, name string) error {
	st, err := c.DomainState(ctx, dom)
	if err != nil {
		return fmt.Errorf("remove bitmap %s: %w", name, err)
	}
	if !active(st) {
		return nil
	}
	text, err := c.MonitorCommand(ctx, dom, `{"execute":"query-named-block-nodes","arguments":{"flat":true}}`, false)
	if err != nil {
		return fmt.Errorf("look for bitmap %s: %w", name, err)
	}
	nodes, err := nodesWith(text, name)
	if err != nil {
		return fmt.Errorf("look for bitmap %s: %w", name, err)
	}
	for _, node := range nodes {
		args := map[string]string{"node": node, "name": name}
		if err := monitor(ctx, c, dom, "block-dirty-bitmap-remove", args); err != nil {
			return fmt.Errorf("remove bitmap %s of node %s: %w", name, node, err)
		}
	}
	return nil
}

// nodesWith returns the block nodes in a reply of query-named-block-nodes that carry a bitmap of
// that name.
func nodesWith(text, bitmap string) ([]string, error) {
	var reply struct {
		Return []struct {
			Node    string `json:"node-name"`
			Bitmaps []struct {
				Name string `json:"name"`
			} `json:"dirty-bitmaps"`
		} `json:"return"`
	}
	if err := json.Unmarshal([]byte(text), &reply); err != nil {
		return nil, err
	}
	var out []string
	for _, n := range reply.Return {
		for _, b := range n.Bitmaps {
			if b.Name == bitmap {
				out = append(out, n.Node)
			}
		}
	}
	return out, nil
}
