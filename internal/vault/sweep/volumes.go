package sweep

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/holdfast-vm/holdfast/internal/blob"
	"github.com/holdfast-vm/holdfast/internal/vault/log"
	"github.com/holdfast-vm/holdfast/internal/vault/state"
)

// roll closes the present volume if it is old or large, and has more than its first entry.
func (r *run) roll(ctx context.Context) error {
	var at log.Position
	due := func(s *state.State) bool {
		began, ok := s.Began(s.At().Volume)
		old := ok && r.Now().Sub(began) >= r.Policy.Roll
		return s.At().Number > 0 && (old || s.At().Number >= r.Policy.Entries)
	}
	if err := r.Journal.View(ctx, func(s *state.State) error {
		at, r.report.Rolled = s.At(), due(s)
		return nil
	}); err != nil || !r.report.Rolled || r.dry {
		return err
	}
	_, err := r.Journal.Append(ctx, func(_ context.Context, s *state.State) ([]log.Op, error) {
		if s.At().Volume != at.Volume {
			return nil, nil // somebody else has
		}
		return []log.Op{{Kind: log.End}}, nil
	})
	if err == nil {
		err = r.Journal.Read(ctx) // begins the next
	}
	if err != nil {
		return fmt.Errorf("roll the log: %w", err)
	}
	r.Log("volume %d of the log is closed", at.Volume.Number)
	return nil
}

// cut deletes the entries of volumes that are over for long enough, the oldest first, and then the
// checkpoints that only they needed.
func (r *run) cut(ctx context.Context) error {
	var head log.Position
	if err := r.Journal.Log(ctx, func(l *log.Log, _ *state.State) error {
		err := l.Confirm(ctx)
		head = l.Head().At
		return err
	}); err != nil || r.dry {
		return err
	}
	first, err := r.firstUncut(ctx, head.Volume)
	if err != nil {
		return fmt.Errorf("look for old volumes of the log: %w", err)
	}
	for ; first != head.Volume; first = first.Next() {
		if cut, err := r.cutOne(ctx, head, first); err != nil || !cut {
			if err != nil {
				return err
			}
			break
		}
	}
	r.seen.Cut = first.String()
	return r.sweepCheckpoints(ctx, first)
}

// firstUncut returns the oldest volume of the tenure that has more entries than its first, as far
// as is remembered, or that the present one follows without a gap.
func (r *run) firstUncut(ctx context.Context, now log.Volume) (log.Volume, error) {
	for v := now; ; v.Number-- {
		if v.Number == 0 || v.String() == r.seen.Cut {
			return v, nil
		}
		before := log.Volume{Tenure: v.Tenure, Number: v.Number - 1}
		empty, err := log.IsCut(ctx, r.Store, before)
		if err != nil || empty {
			return v, err
		}
	}
}

// errSwept reports a checkpoint that was swept: somebody has cut the volume, and gone on.
var errSwept = errors.New("the checkpoint was swept")

// errWaits reports a volume that a mirror still needs.
var errWaits = errors.New("a mirror has pinned an entry of it, or of one before")

// cutOne cuts a volume if it may go.
func (r *run) cutOne(ctx context.Context, head log.Position, v log.Volume) (bool, error) {
	var over time.Time
	known := false
	pinned := ^uint64(0)
	if err := r.Journal.View(ctx, func(s *state.State) error {
		over, known = s.Began(v.Next())
		pins, err := s.Pins(ctx)
		for _, p := range pins {
			pinned = min(pinned, p.At)
		}
		return err
	}); err != nil {
		return false, err
	}
	if known && r.Now().Sub(over) < r.Policy.Cut { // one that is not known is older than what is remembered
		return false, nil
	}
	err := log.CutVolume(ctx, r.Store, r.Keys.Log(), head, v, func(ctx context.Context, c log.Checkpoint) error {
		return r.compare(ctx, c, pinned)
	})
	switch {
	case errors.Is(err, errWaits):
		r.report.Waiting = true
		return false, nil
	case errors.Is(err, errSwept):
		return true, nil
	case errors.Is(err, log.ErrDamaged):
		r.report.Troubles = append(r.report.Troubles, err.Error())
		return false, nil
	case err != nil:
		return false, err
	}
	r.report.Cut++
	r.Log("volume %d of the log is cut", v.Number)
	return true, nil
}

// compare reads a checkpoint back and compares it with a second fold of its volume. Where another
// has begun to cut the volume he had compared.
func (r *run) compare(ctx context.Context, c log.Checkpoint, pinned uint64) error {
	loaded, err := state.Verify(ctx, r.Store, r.Keys, c)
	if errors.Is(err, blob.ErrNotExist) {
		absent, askErr := r.Store.Absent(ctx, log.CheckpointName(c))
		if askErr == nil && absent {
			return errSwept
		}
	}
	if err != nil {
		return err
	}
	st := state.New(r.Store, r.Keys, state.Options{})
	if pinned != ^uint64(0) {
		if _, err := st.Load(ctx, c); err != nil {
			return err
		}
		if pinned <= st.Count()+log.EveryEntries { // the volume goes on for so many entries at most
			return errWaits
		}
	}
	head, err := log.Refold(ctx, r.Store, r.Keys.Log(), st, c.At)
	if errors.Is(err, blob.ErrNotExist) || err == nil && head.Hash != loaded.Head {
		begun, askErr := log.IsBegunToCut(ctx, r.Store, c.At.Volume)
		if askErr != nil {
			return askErr
		}
		if begun {
			return nil
		}
	}
	if err != nil {
		return err
	}
	again, err := st.Digest(ctx)
	if err == nil && again != c {
		err = fmt.Errorf("%w: a second fold makes another checkpoint at %s", log.ErrDamaged, c.At)
	}
	return err
}

// sweepCheckpoints deletes the checkpoints before the one that the oldest volume begins with which
// is not cut: a second fold of it begins there.
func (r *run) sweepCheckpoints(ctx context.Context, oldest log.Volume) error {
	if oldest.Number == 0 {
		return nil
	}
	var st *state.State
	var first log.Checkpoint
	if err := r.Journal.Log(ctx, func(l *log.Log, s *state.State) (err error) {
		if err = l.Confirm(ctx); err == nil {
			first, err = l.BegunWith(ctx, oldest)
		}
		st = s.Clone()
		return err
	}); err != nil {
		return err
	}
	err := st.Sweep(ctx, first)
	if errors.Is(err, blob.ErrNotExist) {
		return nil // another has swept further
	}
	r.report.Swept = err == nil
	return err
}
