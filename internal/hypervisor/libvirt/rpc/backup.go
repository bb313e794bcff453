package rpc

import "context"

// BackupReuseExternal makes libvirt write into target files that exist.
const BackupReuseExternal = 1

// BackupBegin starts a backup job, and a checkpoint at the same instant unless checkpoint is "".
func (c *Client) BackupBegin(ctx context.Context, dom Domain, backup, checkpoint string, flags uint32) error {
	var e encoder
	e.domain(dom)
	e.str(backup)
	e.optional(checkpoint)
	e.u32(flags)
	return c.void(ctx, procBackupBegin, e.b)
}

// BackupXML returns the backup that runs; none is an Error of code [NoBackup].
func (c *Client) BackupXML(ctx context.Context, dom Domain) (string, error) {
	return c.text(ctx, procBackupXML, domainFlags(dom, 0))
}

// Flags of CheckpointCreate, CheckpointDelete and CheckpointXML.
const (
	CheckpointRedefine         = 1
	CheckpointRedefineValidate = 4

	CheckpointChildren     = 1
	CheckpointMetadataOnly = 2

	CheckpointXMLNoDomain = 2
	CheckpointXMLSize     = 4
)

// CheckpointCreate makes a checkpoint, or with CheckpointRedefine tells libvirt of one it has
// forgotten. It returns its name.
func (c *Client) CheckpointCreate(ctx context.Context, dom Domain, xml string, flags uint32) (string, error) {
	var e encoder
	e.domain(dom)
	e.str(xml)
	e.u32(flags)
	return c.text(ctx, procCheckpointCreate, e.b)
}

// Checkpoints returns the names of a domain's checkpoints.
func (c *Client) Checkpoints(ctx context.Context, dom Domain) ([]string, error) {
	var e encoder
	e.domain(dom)
	e.i32(1)
	e.u32(0)
	d, err := c.remote(ctx, procListCheckpoints, e.b)
	if err != nil {
		return nil, err
	}
	var out []string
	for range d.count(28) {
		out = append(out, d.str())
		if d.domain(); d.err != nil {
			return nil, d.err
		}
	}
	return out, d.err
}

// CheckpointXML describes a checkpoint; with CheckpointXMLSize each disk has the bytes that changed
// since.
func (c *Client) CheckpointXML(ctx context.Context, dom Domain, name string, flags uint32) (string, error) {
	return c.text(ctx, procCheckpointXML, checkpointFlags(dom, name, flags))
}

// CheckpointDelete drops a checkpoint and its bitmaps; with CheckpointMetadataOnly libvirt merely
// forgets it.
func (c *Client) CheckpointDelete(ctx context.Context, dom Domain, name string, flags uint32) error {
	return c.void(ctx, procCheckpointDelete, checkpointFlags(dom, name, flags))
}

func checkpointFlags(dom Domain, name string, flags uint32) []byte {
	var e encoder
	e.checkpoint(dom, name)
	e.u32(flags)
	return e.b
}

// Kinds of job results, the first value of JobStats.
const (
	JobNone      = 0
	JobBounded   = 1
	JobUnbounded = 2
	JobDone      = 3
	JobFailed    = 4
	JobCancelled = 5
)

// Flags of JobStats.
const (
	StatsCompleted     = 1 // of the last job that ended
	StatsKeepCompleted = 2
)

// OperationBackup is the value of the parameter "operation" of a backup job.
const OperationBackup = 9

// JobStats returns the state of the job that runs, or of the last that ended, and its numbers.
func (c *Client) JobStats(ctx context.Context, dom Domain, flags uint32) (kind int32, stats Params, err error) {
	d, err := c.remote(ctx, procJobStats, domainFlags(dom, flags))
	if err != nil {
		return 0, nil, err
	}
	kind, stats = d.i32(), d.params()
	return kind, stats, d.err
}

// AbortJob ends the job that runs.
func (c *Client) AbortJob(ctx context.Context, dom Domain) error {
	var e encoder
	e.domain(dom)
	return c.void(ctx, procAbortJob, e.b)
}

// AbortJobFlags ends the job that runs.
func (c *Client) AbortJobFlags(ctx context.Context, dom Domain, flags uint32) error {
	return c.void(ctx, procAbortJobFlags, domainFlags(dom, flags))
}
