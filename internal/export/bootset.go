package export

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/holdfast-vm/holdfast/internal/extent"
	"github.com/holdfast-vm/holdfast/internal/point"
	"github.com/holdfast-vm/holdfast/internal/vault"
	"github.com/holdfast-vm/holdfast/internal/vault/chunk"
)

const (
	bootSetVersion = 1
	// maxBootBytes is how much of a disk a boot set holds at most: what reads more is not a boot,
	// but a copy.
	maxBootBytes = 4 << 30
	// maxBootExtents keeps a note well below what a vault takes.
	maxBootExtents = 64 << 10
	// bootBatch is how many bytes of a boot set are brought at once, in the order of the store; a
	// boot that is ahead waits for no more.
	bootBatch = 16 << 20
)

// bootNote is the body of a note of kind vault.NoteBootSet, as JSON.
type bootNote struct {
	Version int     `json:"version"`
	Disk    string  `json:"disk"`
	Extents bootSet `json:"extents"` // in the order in which they were read first
}

// bootSet is what a machine read of a disk when it booted: whole chunks, in order.
type bootSet []extent.Extent

// recorder notes which chunks are read first. It ends by itself.
type recorder struct {
	keep  time.Duration
	ended func(bootSet)
	chunk int64

	mu      sync.Mutex
	timer   *time.Timer // runs from the first read on
	seen    map[int64]bool
	set     bootSet
	stopped bool
}

// recordUnit is the unit of a record in bytes: it does not depend on the vault's chunks, so that
// points of other vaults can use it.
const recordUnit = chunk.DefaultSize

func newRecorder(keep time.Duration, ended func(bootSet)) *recorder {
	return &recorder{keep: keep, ended: ended, chunk: recordUnit, seen: make(map[int64]bool)}
}

func (r *recorder) note(off, n int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.stopped {
		return
	}
	if r.timer == nil {
		r.timer = time.AfterFunc(r.keep, r.finish)
	}
	for at := off / r.chunk; at*r.chunk < off+n; at++ {
		if r.seen[at] {
			continue
		}
		r.seen[at] = true
		e := extent.Extent{Off: at * r.chunk, Len: r.chunk}
		if k := len(r.set); k > 0 && r.set[k-1].End() == e.Off {
			r.set[k-1].Len += e.Len
		} else {
			r.set = append(r.set, e)
		}
	}
	if int64(len(r.seen))*r.chunk > maxBootBytes || len(r.set) > maxBootExtents {
		r.stopped, r.seen, r.set = true, nil, nil
		r.timer.Stop()
	}
}

// finish ends the record and hands it over, once.
func (r *recorder) finish() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.stopped {
		return
	}
	r.stopped, r.seen = true, nil
	if r.timer != nil {
		r.timer.Stop()
	}
	if len(r.set) > 0 {
		r.ended(r.set)
	}
}

// keepBootSet stores what a boot read with the point, unless that has such a record of the disk.
func (s *Server) keepBootSet(r Request, set bootSet) {
	ctx := context.WithoutCancel(s.life)
	if _, err := s.bootSetOf(ctx, r.Point.ID, r.Disk); !errors.Is(err, vault.ErrNoNote) {
		return // there is one, or nobody can tell
	}
	body, err := json.Marshal(bootNote{bootSetVersion, r.Disk, set})
	if err == nil {
		_, err = s.v.AddNote(ctx, r.Point.ID, vault.NoteBootSet, body)
	}
	if err != nil {
		s.opts.Log.WarnContext(ctx, "keep what the boot read", "point", r.Point.ID.Short(), "disk", r.Disk, "err", err)
	}
}

// bootSetOf returns the record of a disk that was stored with a point, or vault.ErrNoNote.
func (s *Server) bootSetOf(ctx context.Context, id point.ID, disk string) (bootSet, error) {
	notes, err := s.v.Notes(ctx, id, vault.NoteBootSet)
	if err != nil && !errors.Is(err, vault.ErrCorrupt) {
		return nil, err
	}
	for _, n := range slices.Backward(notes) {
		if set, err := parseBootSet(n.Body, disk); err == nil {
			return set, nil
		}
	}
	return nil, fmt.Errorf("%w: no boot of disk %s of point %s was recorded", vault.ErrNoNote, disk, id.Short())
}

// parseBootSet reads a note. Its extents lie somewhere: that they lie within a disk is for the
// caller to see.
func parseBootSet(body []byte, disk string) (bootSet, error) {
	var n bootNote
	if err := json.Unmarshal(body, &n); err != nil {
		return nil, fmt.Errorf("read boot set: %w", err)
	}
	if n.Version != bootSetVersion || n.Disk != disk {
		return nil, fmt.Errorf("boot set of version %d, disk %q", n.Version, n.Disk)
	}
	for _, e := range n.Extents {
		if e.Off < 0 || e.Len <= 0 || e.Len > maxBootBytes || e.Off > 1<<62 {
			return nil, fmt.Errorf("boot set with the extent %d+%d", e.Off, e.Len)
		}
	}
	return n.Extents, nil
}

// maxForebears is how many points back a boot set is looked for before all points are.
const maxForebears = 16

// findBootSet returns the boot set of a disk of a point, or else of the nearest earlier point of
// the machine that has one.
func (s *Server) findBootSet(ctx context.Context, p *point.RecoveryPoint, disk string) (bootSet, error) {
	set, err := s.bootSetOf(ctx, p.ID, disk)
	for at, hops := p, 0; errors.Is(err, vault.ErrNoNote) && at.Parent != "" && hops < maxForebears; hops++ {
		if at, err = s.v.Point(ctx, string(at.Parent)); err != nil {
			err = vault.ErrNoNote // it was deleted: the line is broken
			break
		}
		set, err = s.bootSetOf(ctx, at.ID, disk)
	}
	if !errors.Is(err, vault.ErrNoNote) {
		return set, err
	}
	points, err := s.v.Summaries(ctx, func(q *point.RecoveryPoint) bool {
		return q.VM == p.VM && q.MachineUUID == p.MachineUUID && q.Time.Before(p.Time)
	})
	if err != nil {
		return nil, err
	}
	for _, q := range slices.Backward(points) {
		if set, err := s.bootSetOf(ctx, q.ID, disk); !errors.Is(err, vault.ErrNoNote) {
			return set, err
		}
	}
	return nil, vault.ErrNoNote
}

// prefetchBoot brings what an earlier boot read into the cache. Half of that is there for the boots
// of all disks.
func (s *Server) prefetchBoot(r Request, d *Disk) {
	set, err := s.findBootSet(s.life, r.Point, r.Disk)
	if err != nil {
		if !errors.Is(err, vault.ErrNoNote) && s.life.Err() == nil {
			s.opts.Log.WarnContext(s.life, "look for a recorded boot", "point", r.Point.ID.Short(), "disk", r.Disk,
				"err", err)
		}
		return
	}
	var ids []chunk.ID
	flush := func() {
		d.bring(ids)
		ids = ids[:0]
	}
	for _, e := range set {
		for at := e.Off / d.chunk; at*d.chunk < min(e.End(), d.size) && s.bootRoom.Load() > 0 &&
			s.life.Err() == nil; at++ {
			id, err := d.disk.Chunk(s.life, at)
			if err != nil {
				return
			}
			if id.IsHole() {
				continue
			}
			ids = append(ids, id)
			s.bootRoom.Add(-d.chunk)
			if int64(len(ids))*d.chunk >= bootBatch {
				flush()
			}
		}
	}
	flush()
}
