package protect

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/holdfast-vm/holdfast/internal/capture"
	"github.com/holdfast-vm/holdfast/internal/hypervisor"
	"github.com/holdfast-vm/holdfast/internal/point"
)

// cleanupTime bounds the work that must still be done for a machine when the caller has given up.
const cleanupTime = 30 * time.Second

// run is one backup of one machine.
type run struct {
	Deps
	req        Request
	disks      []hypervisor.Disk // what is backed up
	lineage    lineage
	records    records // of changes, that points of the machine count from
	intake     *intake
	quiescence *quiescence
	files      []point.File // of the machine, without their content
	kept       []memoryFile // content read at the instant
	begun      time.Time
	result     *point.RecoveryPoint
}

// Backup takes one recovery point of a machine and returns it once the vault holds it for good.
//
// Errors that callers decide by: capture.ErrBusy, [ErrConsistency], [ErrNoDisks],
// capture.ErrScratch, blob.ErrNoSpace. On any error no point was made and the machine's changes are
// still recorded for the next run.
func Backup(ctx context.Context, deps Deps, req Request) (*point.RecoveryPoint, error) {
	deps.defaults()
	req.defaults()
	r := &run{Deps: deps, req: req, begun: deps.Now()}
	unlock, err := r.lock(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	session, err := r.Vault.Begin(ctx, sessionOf(req))
	if err != nil {
		return nil, err
	}
	defer session.Abort()
	if err := r.prepare(ctx); err != nil {
		return nil, err
	}
	if err := r.lineage.keep(ctx, session); err != nil {
		return nil, err
	}
	r.intake = newIntake(session, r.lineage, r.Progress)
	if err := r.take(ctx); err != nil {
		return nil, err
	}
	return r.result, nil
}

// sessionOf names what is stored, for who goes on with a session that died.
func sessionOf(req Request) string {
	kind := "machine/"
	if req.Snapshot != nil {
		kind = "snapshot/"
	}
	if req.Machine.UUID != "" {
		return kind + req.Machine.UUID
	}
	return kind + req.Machine.Name
}

// take takes the point in the way that the machine needs.
func (r *run) take(ctx context.Context) error {
	if len(r.disks) == 0 {
		return r.definitionAlone(ctx)
	}
	err := r.live(ctx)
	if errors.Is(err, capture.ErrOff) {
		err = r.offline(ctx)
	}
	return err
}

// definitionAlone takes the point of a machine without disks. No write of its guest is in it, so it
// is of any consistency that is asked for.
func (r *run) definitionAlone(ctx context.Context) error {
	p := r.result
	p.Time, p.Disks = r.Now().UTC(), []point.Disk{}
	p.Consistency, p.ConsistencyReason = r.req.Consistency, reasonNoDisks
	p.Rung, p.RungReason = point.NoDisks, "the machine has no disks"
	p.Warnings = append(p.Warnings, "the machine has no disks: the point has its definition and files alone")
	r.keepFiles()
	return r.commit(ctx)
}

// prepare cleans up after a killed run and finds out what there is to do. It changes nothing in the
// vault.
func (r *run) prepare(ctx context.Context) error {
	m := r.req.Machine
	points, err := pointsOf(ctx, r.Vault, m)
	if err != nil {
		return err
	}
	r.records = recordsOf(points, m)
	if err := r.reconcile(ctx); err != nil {
		return err
	}
	if r.req.Snapshot != nil {
		return r.prepareSnapshot(points)
	}
	r.lineage = lineageOf(points, m)
	if r.disks, err = chooseDisks(m, r.req.Exclude); err != nil {
		return err
	}
	about, err := r.Host.Describe(ctx, m)
	if err != nil {
		return fmt.Errorf("describe the machine: %w", err)
	}
	r.files = about.Files
	r.result = &point.RecoveryPoint{
		ID: point.NewID(), VM: m.Name, MachineUUID: m.UUID, Tags: r.req.Tags, Definition: about.Definition,
		Holdfast: r.Version, ExcludedDisks: excluded(m, r.disks), NotHeld: about.NotHeld,
		Warnings: append(about.Warnings, r.lineage.changes(r.disks, excluded(m, r.disks))...),
	}
	if r.lineage.last != nil {
		r.result.Parent = r.lineage.last.ID
	}
	return nil
}

// reconcile removes what a killed run left in the machine.
func (r *run) reconcile(ctx context.Context) error {
	did, err := reconcile(ctx, r.Deps, r.req.Machine, r.records.all())
	for _, d := range did {
		r.Log("%s: %s", r.req.Machine.Name, d)
	}
	return err
}

// live captures a machine whose process is there; else it returns capture.ErrOff.
func (r *run) live(ctx context.Context) error {
	var err error
	if r.quiescence, err = r.openQuiescence(ctx); err != nil {
		return err
	}
	defer r.quiescence.close()
	if dir := r.req.Scratch.Dir; dir != "" {
		if err := os.MkdirAll(dir, 0o711); err != nil { // the hypervisor's user must get through
			return fmt.Errorf("make the scratch directory: %w", err)
		}
	}
	taken, err := r.Capturer.Capture(ctx, r.req.Machine.Name, r.plan(), r.hooks(), r.sink)
	if err != nil {
		if errors.Is(err, ErrConsistency) {
			return err
		}
		return errors.Join(r.quiescence.failure(), err)
	}
	return r.conclude(ctx, taken, r.seal(ctx, taken))
}

// conclude lets go of the older epoch if the point was sealed, else of the new one. The caller may
// have given up; the machine is left in order all the same. What fails here is done by the next
// run.
func (r *run) conclude(ctx context.Context, taken *capture.Result, sealed error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
	defer cancel()
	if sealed != nil {
		if err := taken.DropNew(ctx); err != nil {
			r.Log("undo the capture: %v (the next run does it)", err)
		}
		return sealed
	}
	if err := taken.DropOlder(ctx); err != nil {
		r.Log("drop the older record of changes: %v (the next run does it)", err)
	}
	return nil
}

func (r *run) plan() capture.Plan {
	plan := capture.Plan{
		Machine: r.req.Machine.Name, Vault: r.Vault.ShortID(), Epoch: point.NewID().Short(),
		Granule: int64(r.Vault.ChunkSize()),
		Scratch: r.req.Scratch, AllowPull: true, Log: r.Log,
		Progress: func(done, total int64) { r.Progress(StageCopy, done, total) },
		Keep:     r.records.besides(r.req.Snapshot != nil, diskNames(r.disks)),
		NoEpoch:  r.req.Snapshot != nil && !r.req.Snapshot.Track,
	}
	for _, d := range r.disks {
		dp := capture.DiskPlan{Name: d.Name}
		if last := r.lineage.disk(d.Name); last != nil && !r.req.FullRead {
			dp.LastBitmap, dp.LastSize = last.Bitmap, last.Size
		}
		plan.Disks = append(plan.Disks, dp)
	}
	return plan
}

func (r *run) hooks() capture.Hooks {
	return capture.Hooks{Quiesce: r.quiescence.quiesce, Thaw: r.quiescence.thaw, Frozen: func(context.Context) error {
		r.keepFiles()
		return nil
	}}
}

// sink stores one batch. It refuses to go on with a point that may not be made.
func (r *run) sink(ctx context.Context, read capture.Read) error {
	if err := r.quiescence.failure(); err != nil {
		return err
	}
	return r.intake.put(ctx, read)
}

// seal completes the point and commits it to the vault.
func (r *run) seal(ctx context.Context, taken *capture.Result) error {
	if err := r.quiescence.failure(); err != nil {
		return err
	}
	p := r.result
	p.Time = taken.Instant.UTC()
	reached := r.quiescence.reached()
	p.Consistency, p.ConsistencyReason, p.FrozenSeconds = reached.Level, reached.Reason, reached.Held.Seconds()
	if r.quiescence.guest != nil {
		p.Definition.Guest = r.quiescence.guest.Guest()
	}
	for _, d := range r.disks {
		i := slices.IndexFunc(taken.Disks, func(c capture.DiskResult) bool { return c.Name == d.Name })
		if i < 0 {
			return fmt.Errorf("disk %s is missing in what was captured", d.Name)
		}
		c := taken.Disks[i]
		disk := r.intake.disk(d, c.Size)
		disk.Read, disk.Tracked, disk.Reason, disk.Bitmap = c.Read, c.Tracked, c.Reason, c.Bitmap
		p.Disks = append(p.Disks, r.asked(r.manage(disk)))
	}
	p.Rung, p.RungReason = r.rung(taken)
	return r.commit(ctx)
}

// asked says of a disk that was read whole because that was asked for just this.
func (r *run) asked(d point.Disk) point.Disk {
	if r.req.FullRead && !d.Tracked {
		d.Reason = capture.WholeAsked
	}
	return d
}

// rung says how the blocks were read. A capture that had to read every disk whole although the
// vault knows them is a compare.
func (r *run) rung(taken *capture.Result) (point.Rung, string) {
	reason := ""
	for _, d := range taken.Disks {
		if d.Tracked || r.lineage.disk(d.Name) == nil {
			return taken.Rung, taken.Reason
		}
		if reason == "" {
			reason = fmt.Sprintf("%s: %s", d.Name, d.Reason)
		}
	}
	if r.req.FullRead {
		reason = capture.WholeAsked
	}
	return point.Compare, fmt.Sprintf("%s (read by %s)", reason, taken.Rung)
}

// commit stores the machine's small files and the point itself.
func (r *run) commit(ctx context.Context) error {
	if err := r.storeFiles(ctx); err != nil {
		return err
	}
	r.result.Took = r.Now().Sub(r.begun).Seconds()
	return r.intake.session.Commit(ctx, r.result)
}

// chooseDisks returns the disks of m that are not left out: none only if it has none.
func chooseDisks(m hypervisor.Machine, exclude []string) ([]hypervisor.Disk, error) {
	for _, name := range exclude {
		if !slices.ContainsFunc(m.Disks, func(d hypervisor.Disk) bool { return d.Name == name }) {
			return nil, fmt.Errorf("leave out disk %s: the machine has only %v", name, diskNames(m.Disks))
		}
	}
	var out []hypervisor.Disk
	for _, d := range m.Disks {
		if !slices.Contains(exclude, d.Name) {
			out = append(out, d)
		}
	}
	if len(out) == 0 && len(m.Disks) > 0 {
		return nil, ErrNoDisks
	}
	return out, nil
}

// excluded returns the names of the disks of m that are not among chosen.
func excluded(m hypervisor.Machine, chosen []hypervisor.Disk) []string {
	var out []string
	for _, name := range diskNames(m.Disks) {
		if !slices.Contains(diskNames(chosen), name) {
			out = append(out, name)
		}
	}
	return out
}

func diskNames(disks []hypervisor.Disk) []string {
	var out []string
	for _, d := range disks {
		out = append(out, d.Name)
	}
	return out
}
