package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"time"

	"github.com/holdfast-vm/holdfast/internal/hypervisor"
	"github.com/holdfast-vm/holdfast/internal/qmp"
)

var (
	_ hypervisor.Hydrator = (*Host)(nil)
	_ hypervisor.Remover  = (*Host)(nil)
)

const (
	localPrefix  = "local-" // before the name of the node that a local image takes the place of
	nodeNameMax  = 31
	completePoll = 2 * time.Millisecond
)

func jobID(disk string) string { return "hydrate-" + disk }

// localNode names the node of a local image so that the node which the command line names is known
// by it.
func localNode(root, disk string) string {
	if strings.HasPrefix(root, "#") || len(localPrefix)+len(root) > nodeNameMax {
		root = disk
	}
	return localPrefix + root
}

// backed is a disk of a running machine that has, or had, its data from an export.
type backed struct {
	node   string // root
	qdev   string
	local  bool
	direct bool // the host's page cache is bypassed
	noSync bool // flushes are ignored
}

// reach returns the connection to the machine m, whatever it does, or [hypervisor.ErrNoMachine] if
// nobody listens or it is another.
func (h *Host) reach(ctx context.Context, m hypervisor.Machine) (*qmp.Client, error) {
	for {
		c, err := h.Client(ctx)
		if err == nil {
			err = isMachine(ctx, c, m)
		}
		switch {
		case err == nil:
			return c, nil
		case nobodyListens(err):
			return nil, fmt.Errorf("%w: %s does not run", hypervisor.ErrNoMachine, m.Name)
		case !errors.Is(err, qmp.ErrClosed) && !errors.Is(err, syscall.ECONNRESET):
			return nil, err
		}
		select { // it is ending
		case <-ctx.Done():
			return nil, err
		case <-time.After(startPause):
		}
	}
}

// isMachine returns ErrNoMachine if the QEMU of c is another machine than m.
func isMachine(ctx context.Context, c *qmp.Client, m hypervisor.Machine) error {
	var id struct{ UUID string }
	var name struct{ Name string }
	if err := c.Execute(ctx, "query-uuid", nil, &id); err != nil {
		return err
	}
	if err := c.Execute(ctx, "query-name", nil, &name); err != nil {
		return err
	}
	if m.UUID != "" && !strings.EqualFold(id.UUID, m.UUID) || name.Name != "" && name.Name != m.Name {
		return fmt.Errorf("%w: the one that runs there is %s with UUID %s", hypervisor.ErrNoMachine, name.Name, id.UUID)
	}
	return nil
}

// Hydrate implements [hypervisor.Hydrator].
func (h *Host) Hydrate(ctx context.Context, m hypervisor.Machine, t hypervisor.HydrationTarget, rate int64) error {
	ctx, cancel := context.WithTimeout(ctx, commandTime)
	defer cancel()
	if err := h.hydrate(ctx, m, t, rate); err != nil {
		return fmt.Errorf("copy disk %s of %s to %s: %w", t.Disk, m.Name, t.File, err)
	}
	return nil
}

func (h *Host) hydrate(ctx context.Context, m hypervisor.Machine, t hypervisor.HydrationTarget, rate int64) error {
	c, err := h.reach(ctx, m)
	if err != nil {
		return err
	}
	d, err := findBacked(ctx, c, t)
	if err != nil || d.local {
		return err
	}
	job, err := findJob(ctx, c, t.Disk)
	if err != nil {
		return err
	}
	if job != nil && job.Status != "concluded" {
		return job.goOn(ctx, c)
	}
	if err := clearCopy(ctx, c, job, localNode(d.node, t.Disk)); err != nil {
		return err
	}
	return d.mirror(ctx, c, t, rate)
}

// mirror opens the target and starts the job. Having copied everything it waits to be finalized:
// never does a machine move by itself.
func (d backed) mirror(ctx context.Context, c *qmp.Client, t hypervisor.HydrationTarget, rate int64) error {
	name := localNode(d.node, t.Disk)
	cache := map[string]any{"direct": d.direct, "no-flush": d.noSync}
	err := c.Execute(ctx, "blockdev-add", map[string]any{
		"driver": t.Format, "node-name": name, "discard": "unmap", "cache": cache,
		"file": map[string]any{"driver": "file", "filename": t.File, "discard": "unmap", "cache": cache},
	}, nil)
	if err != nil {
		return err
	}
	err = c.Execute(ctx, "blockdev-mirror", map[string]any{
		"job-id": jobID(t.Disk), "device": d.node, "target": name, "sync": "full", "copy-mode": "background",
		"speed":           rate,
		"on-source-error": "stop", "on-target-error": "stop", "auto-finalize": false, "auto-dismiss": false,
	}, nil)
	if err != nil {
		return errors.Join(err, c.Execute(ctx, "blockdev-del", map[string]any{"node-name": name}, nil))
	}
	return nil
}

// clearCopy removes what a copy that ended has left.
func clearCopy(ctx context.Context, c *qmp.Client, job *blockJob, node string) error {
	if job != nil {
		if err := c.Execute(ctx, "job-dismiss", map[string]any{"id": job.ID}, nil); err != nil {
			return err
		}
	}
	nodes, err := queryNodes(ctx, c)
	if err != nil {
		return err
	}
	for _, n := range nodes {
		if n.Name == node {
			return c.Execute(ctx, "blockdev-del", map[string]any{"node-name": node}, nil)
		}
	}
	return nil
}

// findBacked returns the disk that is on the overlay of t, or on t itself.
func findBacked(ctx context.Context, c *qmp.Client, t hypervisor.HydrationTarget) (backed, error) {
	list, err := queryBlock(ctx, c)
	if err != nil {
		return backed{}, err
	}
	for _, b := range list {
		if b.Inserted == nil || b.QDev == "" {
			continue
		}
		file := nodeFile(b.Inserted.File)
		if file != t.File && file != t.Overlay() {
			continue
		}
		cache := b.Inserted.Cache
		return backed{node: b.Inserted.NodeName, qdev: b.QDev, local: file == t.File, direct: cache.Direct,
			noSync: cache.NoFlush}, nil
	}
	return backed{}, fmt.Errorf("no disk is on %s", t.Overlay())
}

// nodeFile returns the path of an image as QEMU describes it: plain, or as the JSON of its nodes;
// "" if it has none.
func nodeFile(name string) string {
	text, ok := strings.CutPrefix(name, "json:")
	if !ok {
		return strings.TrimPrefix(name, "file:")
	}
	var node map[string]any
	if json.Unmarshal([]byte(text), &node) != nil {
		return ""
	}
	for node != nil {
		if path, ok := node["filename"].(string); ok {
			return path
		}
		node, _ = node["file"].(map[string]any)
	}
	return ""
}

// blockJob is an entry of query-block-jobs.
type blockJob struct {
	ID       string `json:"device"`
	Len      int64
	Offset   int64
	Ready    bool
	Paused   bool
	Status   string
	IOStatus string `json:"io-status"`
	Error    string
}

// findJob returns the copy of a disk, nil if there is none.
func findJob(ctx context.Context, c *qmp.Client, disk string) (*blockJob, error) {
	var jobs []blockJob
	if err := c.Execute(ctx, "query-block-jobs", nil, &jobs); err != nil {
		return nil, err
	}
	for _, j := range jobs {
		if j.ID == jobID(disk) {
			return &j, nil
		}
	}
	return nil, nil
}

func (j *blockJob) stopped() bool { return j.IOStatus != "" && j.IOStatus != "ok" }

// still reports whether a copy waits, be it for a moment or because it met an error before "cont"
// reset its I/O status.
func (j *blockJob) still() bool { return j.Status == "paused" || j.Status == "standby" }

// ended reports whether nothing is left to copy and nothing can be added: the guest's writes wait
// until it is finalized.
func (j *blockJob) ended() bool { return j.Status == "waiting" || j.Status == "pending" }

// goOn lets a copy continue that stopped on an error.
func (j *blockJob) goOn(ctx context.Context, c *qmp.Client) error {
	if !j.stopped() && !j.still() {
		return nil
	}
	err := c.Execute(ctx, "block-job-resume", map[string]any{"device": j.ID}, nil)
	if qmp.Refused(err) { // it stood still for another reason, for a moment
		return nil
	}
	return err
}

func (j *blockJob) err() error {
	switch {
	case j.Error != "":
		return errors.New(j.Error)
	case j.IOStatus == "nospace":
		return hypervisor.ErrNoRoom
	case j.stopped():
		return errors.New("the copy met an I/O error and waits")
	}
	return nil
}

// Hydration implements [hypervisor.Hydrator].
func (h *Host) Hydration(ctx context.Context, m hypervisor.Machine, t hypervisor.HydrationTarget) (hypervisor.Hydration,
	error) {
	ctx, cancel := context.WithTimeout(ctx, commandTime)
	defer cancel()
	out, err := h.hydration(ctx, m, t)
	if err != nil {
		return out, fmt.Errorf("look at the copy of disk %s of %s: %w", t.Disk, m.Name, err)
	}
	return out, nil
}

func (h *Host) hydration(ctx context.Context, m hypervisor.Machine, t hypervisor.HydrationTarget) (hypervisor.Hydration,
	error) {
	c, err := h.reach(ctx, m)
	if err != nil {
		return hypervisor.Hydration{}, err
	}
	d, err := findBacked(ctx, c, t)
	if err != nil || d.local {
		return hypervisor.Hydration{Local: d.local}, err
	}
	job, err := findJob(ctx, c, t.Disk)
	if err != nil || job == nil {
		return hypervisor.Hydration{}, err
	}
	if job.still() && !job.stopped() { // what stopped it shows again if it is still there
		if err := job.goOn(ctx, c); err != nil {
			return hypervisor.Hydration{}, err
		}
	}
	dirty, err := dirtyBytes(ctx, c, t.Overlay())
	if err != nil {
		return hypervisor.Hydration{}, err
	}
	runs := job.Status != "concluded"
	return hypervisor.Hydration{
		Running: runs, Ready: runs && (job.Ready || job.ended()), Done: job.Offset,
		Total: max(job.Len, job.Offset+dirty), Err: job.err(),
	}, nil
}

// dirtyBytes returns how much of an image its copy has still to see. A job counts what is written
// only when it looks next, a tenth of a second later.
func dirtyBytes(ctx context.Context, c *qmp.Client, file string) (n int64, err error) {
	nodes, err := queryNodes(ctx, c)
	for _, node := range nodes {
		if nodeFile(node.File) != file {
			continue
		}
		for _, b := range node.Bitmaps {
			if b.Name == "" { // those of jobs have none
				n += b.Count
			}
		}
	}
	return n, err
}

// HydrationRate implements [hypervisor.Hydrator].
func (h *Host) HydrationRate(ctx context.Context, m hypervisor.Machine, t hypervisor.HydrationTarget,
	rate int64) error {
	ctx, cancel := context.WithTimeout(ctx, commandTime)
	defer cancel()
	c, err := h.reach(ctx, m)
	var job *blockJob
	if err == nil {
		job, err = findJob(ctx, c, t.Disk)
	}
	if err == nil && job != nil && !job.ended() && job.Status != "concluded" {
		err = c.Execute(ctx, "block-job-set-speed", map[string]any{"device": job.ID, "speed": rate}, nil)
	}
	if err != nil {
		return fmt.Errorf("limit the copy of disk %s of %s: %w", t.Disk, m.Name, err)
	}
	return nil
}

// awaitJob returns the copy of a disk when it has ended, nil if there is none.
func awaitJob(ctx context.Context, c *qmp.Client, disk string) (*blockJob, error) {
	for {
		job, err := findJob(ctx, c, disk)
		if err != nil || job == nil || job.Status == "concluded" {
			return job, err
		}
		select {
		case <-ctx.Done():
			return job, fmt.Errorf("the copy does not end: %w", ctx.Err())
		case <-time.After(completePoll):
		}
	}
}

// Continue implements [hypervisor.Hydrator].
func (h *Host) Continue(ctx context.Context, m hypervisor.Machine) (paused bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, commandTime)
	defer cancel()
	c, err := h.reach(ctx, m)
	var status struct{ Status string }
	if err == nil {
		err = c.Execute(ctx, "query-status", nil, &status)
	}
	if err == nil && status.Status == "io-error" {
		status.Status = "running"
		err = c.Execute(ctx, "cont", nil, nil)
	}
	if err != nil {
		return false, fmt.Errorf("let %s continue: %w", m.Name, err)
	}
	return state(status.Status) == hypervisor.Paused, nil
}
