package qemu

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-vm/holdfast/internal/qmp"
)

const (
	sweepPause  = 5 * time.Millisecond // between two looks at a job that is being cancelled
	brokenNodes = 64                   // scratch nodes that are tried where QEMU cannot list them
)

// sweep removes all that captures put into QEMU for their own duration and returns what it did, in
// words.
func sweep(ctx context.Context, m monitor) ([]string, error) {
	done, err := sweepJobs(ctx, m)
	if err != nil {
		return done, err
	}
	more, err := sweepBitmaps(ctx, m, func(name string) bool { return strings.HasPrefix(name, ours) })
	return append(done, more...), err
}

// sweepJobs removes our jobs with their filters, exports, nodes and descriptors.
func sweepJobs(ctx context.Context, m monitor) ([]string, error) {
	var done []string
	for _, step := range []func(context.Context, monitor) ([]string, error){cancelJobs, dropExports, dropNodes,
		dropKeys, dropDescriptors} {
		more, err := step(ctx, m)
		done = append(done, more...)
		if err != nil {
			return done, err
		}
	}
	return done, nil
}

// cancelJobs cancels and dismisses our jobs until none is left.
func cancelJobs(ctx context.Context, m monitor) ([]string, error) {
	var done []string
	told := make(map[string]bool)
	for {
		jobs, err := queryJobs(ctx, m)
		if err != nil || len(jobs) == 0 {
			return done, err
		}
		for id, j := range jobs {
			if j.Status == concluded {
				err = run(ctx, m, "job-dismiss", args{"id": id}, nil)
				done = append(done, "removed job "+id)
			} else if !told[id] {
				told[id] = true
				err = run(ctx, m, "block-job-cancel", args{"device": id, "force": true}, nil)
			}
			if err != nil && !qmp.Refused(err) { // a refusal means that it just ended
				return done, fmt.Errorf("cancel job %s: %w", id, err)
			}
		}
		select {
		case <-time.After(sweepPause):
		case <-ctx.Done():
			return done, fmt.Errorf("cancel jobs: %w", ctx.Err())
		}
	}
}

func dropExports(ctx context.Context, m monitor) ([]string, error) {
	var list []struct{ ID string }
	err := run(ctx, m, "query-block-exports", nil, &list)
	if err != nil {
		return nil, err
	}
	var done []string
	for _, e := range list {
		if !strings.HasPrefix(e.ID, ours) {
			continue
		}
		if err := run(ctx, m, "block-export-del", args{"id": e.ID, "mode": "hard"}, nil); err != nil {
			return done, fmt.Errorf("remove export %s: %w", e.ID, err)
		}
		done = append(done, "removed export "+e.ID)
	}
	return done, nil
}

// dropNodes removes nodes. QEMU does not list any while an image among them is broken; such a one
// has one of few names.
func dropNodes(ctx context.Context, m monitor) ([]string, error) {
	var done []string
	nodes, err := queryNodes(ctx, m)
	if qmp.Refused(err) {
		for i := range brokenNodes {
			name := fmt.Sprint(ours, "s", i)
			if run(ctx, m, "blockdev-del", args{"node-name": name}, nil) == nil {
				done = append(done, "removed broken node "+name)
			}
		}
		nodes, err = queryNodes(ctx, m)
	}
	if err != nil {
		return done, err
	}
	for name := range nodes {
		if !strings.HasPrefix(name, ours) {
			continue
		}
		if err := run(ctx, m, "blockdev-del", args{"node-name": name}, nil); err != nil {
			return done, fmt.Errorf("remove node %s: %w", name, err)
		}
		done = append(done, "removed node "+name)
	}
	return done, nil
}

// dropKeys removes secrets of scratch images that a killed capture left.
func dropKeys(ctx context.Context, m monitor) ([]string, error) {
	var list []struct{ Name string }
	if err := run(ctx, m, "qom-list", args{"path": "/objects"}, &list); err != nil {
		return nil, err
	}
	var done []string
	for _, o := range list {
		if !strings.HasPrefix(o.Name, keyPrefix) {
			continue
		}
		if err := run(ctx, m, "object-del", args{"id": o.Name}, nil); err != nil {
			return done, fmt.Errorf("remove secret %s: %w", o.Name, err)
		}
		done = append(done, "removed secret "+o.Name)
	}
	return done, nil
}

func dropDescriptors(ctx context.Context, m monitor) ([]string, error) {
	var list []struct {
		ID  int `json:"fdset-id"`
		FDs []struct{ Opaque string }
	}
	err := run(ctx, m, "query-fdsets", nil, &list)
	if err != nil {
		return nil, err
	}
	for _, set := range list {
		if len(set.FDs) == 0 || set.FDs[0].Opaque != ours {
			continue
		}
		if err := run(ctx, m, "remove-fd", args{"fdset-id": set.ID}, nil); err != nil && !qmp.Refused(err) {
			return nil, fmt.Errorf("remove descriptor set %d: %w", set.ID, err)
		}
	}
	return nil, nil
}

// sweepBitmaps removes the bitmaps whose names match, from every node.
func sweepBitmaps(ctx context.Context, m monitor, match func(name string) bool) ([]string, error) {
	nodes, err := queryNodes(ctx, m)
	if err != nil {
		return nil, err
	}
	var done []string
	for name, n := range nodes {
		for _, b := range n.Bitmaps {
			if !match(b.Name) {
				continue
			}
			if err := removeBitmap(ctx, m, name, b.Name); err != nil {
				return done, fmt.Errorf("remove bitmap %s of node %s: %w", b.Name, name, err)
			}
			done = append(done, fmt.Sprintf("removed bitmap %s of node %s", b.Name, name))
		}
	}
	slices.Sort(done)
	return done, nil
}

// dropEpoch removes a bitmap from a node if both are there.
func dropEpoch(ctx context.Context, m monitor, nodeName, name string) error {
	nodes, err := queryNodes(ctx, m)
	if err != nil {
		return err
	}
	if n := nodes[nodeName]; n == nil || n.bitmap(name) == nil {
		return nil
	}
	return removeBitmap(ctx, m, nodeName, name)
}
