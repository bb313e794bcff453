package vault

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/holdfast-vm/holdfast/internal/point"
	"github.com/holdfast-vm/holdfast/internal/vault/log"
	"github.com/holdfast-vm/holdfast/internal/vault/row"
	"github.com/holdfast-vm/holdfast/internal/vault/state"
)

// Words by which points are found in the state, without a look at any other.
const (
	findVM      = "vm/"      // name of the machine, of points that are no snapshots
	findMachine = "machine/" // its UUID, likewise
	findDisk    = "disk/"    // ID of a managed disk
	findName    = "name/"    // of a snapshot
	findCopy    = "copy/"    // vault and ID of the point that it is a copy of
	findSnapVM  = "snapshot-vm/"
	findSnapMac = "snapshot-machine/"
)

// findsOf returns the words by which a point is found.
func findsOf(p *point.RecoveryPoint) []string {
	var out []string
	add := func(kind, word string) {
		if word != "" {
			out = append(out, (kind + word)[:min(len(kind+word), 255)])
		}
	}
	if !p.IsSnapshot() {
		add(findVM, p.VM)
		add(findMachine, p.MachineUUID)
	} else {
		add(findName, p.Name)
		add(findSnapVM, p.VM)
		add(findSnapMac, p.MachineUUID)
	}
	for _, d := range p.Disks {
		add(findDisk, d.ManagedID)
	}
	if o := p.CopiedFrom; o != nil {
		add(findCopy, o.Vault+"/"+string(o.Point))
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// stored is a point as the state has it.
type stored struct {
	state.Point
	row *row.Row
}

func isID(s string) bool { return len(s) == 32 && strings.Trim(s, "0123456789abcdef") == "" }

// stateID returns the state's form of a point's ID.
func stateID(id point.ID) (out state.ID, err error) {
	if !isID(string(id)) {
		return out, fmt.Errorf("%w: %q is no ID of one", ErrNoPoint, string(id))
	}
	_, err = hex.Decode(out[:], []byte(id))
	return out, err
}

func pointID(id state.ID) point.ID { return point.ID(hex.EncodeToString(id[:])) }

// living is the error of a point that does not live, or is deleted.
func (v *Vault) living(ctx context.Context, st *state.State, id point.ID) (p state.Point, err error) {
	sid, err := stateID(id)
	if err != nil {
		return p, err
	}
	p, ok, err := st.Point(ctx, sid)
	if err != nil {
		return p, err
	}
	if !ok {
		return p, fmt.Errorf("%w: %s", ErrNoPoint, id)
	}
	if _, deleted, err := st.Deleted(ctx, sid); err != nil {
		return p, err
	} else if deleted {
		return p, fmt.Errorf("%w: %s", ErrDeleted, id)
	}
	return p, nil
}

// requirePoint returns ErrNoPoint, or ErrDeleted, unless the point is there.
func (v *Vault) requirePoint(ctx context.Context, id point.ID) error {
	return v.view(ctx, func(st *state.State) error {
		_, err := v.living(ctx, st, id)
		return err
	})
}

// manifest returns all of a point.
func (v *Vault) manifest(ctx context.Context, p *stored) (*point.RecoveryPoint, error) {
	m, err := v.content.Manifest(ctx, p.row, v.goodPack)
	if err != nil {
		return nil, fmt.Errorf("read point %s: %w", p.row.Point.ID, err)
	}
	return &m.Point, nil
}

// goodPack returns a pack that is good as the state was last read.
func (v *Vault) goodPack(ctx context.Context, id log.ObjectID) (o log.Object, ok bool, err error) {
	err = v.journal.View(ctx, func(st *state.State) (err error) {
		o, ok, err = st.Good(ctx, id)
		return err
	})
	return o, ok, err
}

// storedOf decodes what the state has of a point.
func storedOf(p state.Point) (*stored, error) {
	r, err := row.Decode(p.Manifest)
	if err != nil {
		return nil, fmt.Errorf("point %s: %w: %w", pointID(p.ID), ErrCorrupt, err)
	}
	return &stored{p, r}, nil
}

// summary returns a point without its definition. That of a row that is short takes reading the
// manifest.
func (v *Vault) summary(ctx context.Context, p *stored) (*point.RecoveryPoint, error) {
	if !p.row.Short {
		return &p.row.Point, nil
	}
	whole, err := v.manifest(ctx, p)
	if err != nil {
		return nil, err
	}
	s := row.Summary(whole)
	return &s, nil
}

// gather returns the points for which want reports true, deleted ones left out, in no order.
func (v *Vault) gather(ctx context.Context, want func(*point.RecoveryPoint) bool) (out []*stored, err error) {
	var found []*stored
	err = v.view(ctx, func(st *state.State) error {
		deleted, err := deletedOf(ctx, st)
		if err != nil {
			return err
		}
		var bad error
		err = st.Points(ctx, func(p state.Point) bool {
			if _, is := deleted[p.ID]; is {
				return true
			}
			var s *stored
			if s, bad = storedOf(p); bad == nil && (s.row.Short || want == nil || want(&s.row.Point)) {
				found = append(found, s)
			}
			return bad == nil
		})
		return errors.Join(err, bad)
	})
	if err != nil {
		return nil, err
	}
	for _, s := range found {
		if s.row.Short { // only the whole tells whether it is wanted
			sum, err := v.summary(ctx, s)
			if err != nil {
				return nil, err
			}
			if want != nil && !want(sum) {
				continue
			}
			s.row.Point = *sum
		}
		out = append(out, s)
	}
	return out, nil
}

func deletedOf(ctx context.Context, st *state.State) (map[state.ID]int64, error) {
	out := map[state.ID]int64{}
	err := st.EachDeleted(ctx, func(id state.ID, until int64) bool {
		out[id] = until
		return true
	})
	return out, err
}

func sortStored(all []*stored) {
	slices.SortFunc(all, func(a, b *stored) int { return point.ByTime(&a.row.Point, &b.row.Point) })
}

// Summaries returns the points that match, all if match is nil, oldest first, without their
// definitions, but for the kinds of these. Points that were deleted and can be brought back are not
// among them. It takes one look at the state; match is called once for every point, in no order,
// and may not keep what it is given.
func (v *Vault) Summaries(ctx context.Context, match func(summary *point.RecoveryPoint) bool) (
	[]*point.RecoveryPoint, error,
) {
	all, err := v.gather(ctx, match)
	if err != nil {
		return nil, err
	}
	sortStored(all)
	out := make([]*point.RecoveryPoint, len(all))
	for i, s := range all {
		out[i] = &s.row.Point
	}
	return out, nil
}

// Points returns all points, oldest first, with their definitions: Summaries is for who needs none.
func (v *Vault) Points(ctx context.Context) ([]*point.RecoveryPoint, error) {
	var points []*point.RecoveryPoint
	for p, err := range v.EachPoint(ctx, nil) {
		if err != nil {
			return nil, err
		}
		points = append(points, p)
	}
	return points, nil
}

// readAhead is how many manifests are read at once: most of the time of a small read is waiting.
const readAhead = 16

// EachPoint yields the points whose summaries match, oldest first, and keeps few of them in memory.
// One whose manifest cannot be read is yielded as an error, and the others go on. Points that are
// purged meanwhile are left out.
func (v *Vault) EachPoint(ctx context.Context, match func(summary *point.RecoveryPoint) bool) iter.Seq2[
	*point.RecoveryPoint, error,
] {
	return func(yield func(*point.RecoveryPoint, error) bool) {
		all, err := v.gather(ctx, match)
		if err != nil {
			yield(nil, err)
			return
		}
		sortStored(all)
		for batch := range slices.Chunk(all, 16*readAhead) {
			got, errs := make([]*point.RecoveryPoint, len(batch)), make([]error, len(batch))
			var g errgroup.Group
			g.SetLimit(readAhead)
			for i, s := range batch {
				g.Go(func() error { got[i], errs[i] = v.manifest(ctx, s); return nil })
			}
			_ = g.Wait() // errors are in errs
			for i := range batch {
				if errs[i] != nil && errors.Is(v.requirePoint(ctx, batch[i].row.Point.ID), ErrNoPoint) {
					continue
				}
				if !yield(got[i], errs[i]) {
					return
				}
			}
		}
	}
}

// Recent returns the newest points, up to n, that a word finds: without a look at others. By says
// which, as OfVM and its like do. The newest is the first.
func (v *Vault) Recent(ctx context.Context, by By, n int) ([]*point.RecoveryPoint, error) {
	var found []*stored
	err := v.view(ctx, func(st *state.State) error {
		var ids []state.ID
		if err := st.Found(ctx, by.word, func(id state.ID, _ int64) bool {
			ids = append(ids, id)
			return true
		}); err != nil {
			return err
		}
		for _, id := range ids {
			if len(found) == n {
				break
			}
			s, err := v.storedLiving(ctx, st, pointID(id))
			if errors.Is(err, ErrNoPoint) {
				continue
			}
			if err != nil {
				return err
			}
			found = append(found, s)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	out := make([]*point.RecoveryPoint, 0, len(found))
	for _, s := range found {
		p, err := v.summary(ctx, s)
		if err != nil {
			return nil, err
		}
		out = append(out, p)
	}
	return out, nil
}

func (v *Vault) storedLiving(ctx context.Context, st *state.State, id point.ID) (*stored, error) {
	p, err := v.living(ctx, st, id)
	if err != nil {
		return nil, err
	}
	return storedOf(p)
}

// By is what points are found by.
type By struct{ word string }

// OfVM finds the points of a machine by its name, snapshots left out.
func OfVM(name string) By { return byWord(findVM, name) }

// OfMachine finds the points of a machine by its UUID, snapshots left out.
func OfMachine(uuid string) By { return byWord(findMachine, uuid) }

// SnapshotsOfVM finds the snapshots of a machine's disks by its name.
func SnapshotsOfVM(name string) By { return byWord(findSnapVM, name) }

// SnapshotsOfMachine finds the snapshots of a machine's disks by its UUID.
func SnapshotsOfMachine(uuid string) By { return byWord(findSnapMac, uuid) }

// OfManagedDisk finds the points that hold a managed disk, by its ID.
func OfManagedDisk(id string) By { return byWord(findDisk, id) }

// Named finds snapshots by their name.
func Named(name string) By { return byWord(findName, name) }

func byWord(kind, word string) By { return By{(kind + word)[:min(len(kind+word), 255)]} }

// Point returns the point named by ref: an ID, an unambiguous prefix of one, or NAME@latest. It
// returns ErrNoPoint or ErrAmbiguous.
func (v *Vault) Point(ctx context.Context, ref string) (*point.RecoveryPoint, error) {
	s, err := v.find(ctx, ref)
	if err != nil {
		return nil, err
	}
	return v.manifest(ctx, s)
}

func (v *Vault) find(ctx context.Context, ref string) (*stored, error) {
	if vm, ok := strings.CutSuffix(ref, "@latest"); ok {
		return v.latest(ctx, vm)
	}
	if ref == "" || len(ref) > 32 || strings.Trim(ref, "0123456789abcdef") != "" {
		return nil, fmt.Errorf("%w: %q is neither the beginning of an ID nor NAME@latest", ErrNoPoint, ref)
	}
	var s *stored
	err := v.view(ctx, func(st *state.State) (err error) {
		id := point.ID(ref)
		if !isID(ref) {
			if id, err = v.complete(ctx, st, ref); err != nil {
				return err
			}
		}
		s, err = v.storedLiving(ctx, st, id)
		return err
	})
	return s, err
}

// complete returns the only ID that begins with ref.
func (v *Vault) complete(ctx context.Context, st *state.State, ref string) (point.ID, error) {
	var all, deleted []point.ID
	gone, err := deletedOf(ctx, st)
	if err != nil {
		return "", err
	}
	prefix, err := hex.DecodeString(ref[:len(ref)/2*2])
	if err != nil {
		return "", err
	}
	err = st.PointsWith(ctx, prefix, func(p state.Point) bool {
		id := pointID(p.ID)
		if _, is := gone[p.ID]; !strings.HasPrefix(string(id), ref) {
			return true
		} else if is {
			deleted = append(deleted, id)
		} else {
			all = append(all, id)
		}
		return true
	})
	switch {
	case err != nil:
		return "", err
	case len(all) == 1:
		return all[0], nil
	case len(all) == 0 && len(deleted) == 1:
		return "", fmt.Errorf("%w: %s", ErrDeleted, deleted[0])
	case len(all) == 0:
		return "", fmt.Errorf("%w: none begins with %q", ErrNoPoint, ref)
	}
	var names []string
	for _, id := range all {
		names = append(names, string(id[:12]))
	}
	return "", fmt.Errorf("%w: %q may be %s", ErrAmbiguous, ref, strings.Join(names, ", "))
}

// latest returns the newest point of a machine, snapshots of its disks left out.
func (v *Vault) latest(ctx context.Context, vm string) (*stored, error) {
	var s *stored
	err := v.view(ctx, func(st *state.State) error {
		var bad error
		err := st.Found(ctx, OfVM(vm).word, func(id state.ID, _ int64) bool {
			s, bad = v.storedLiving(ctx, st, pointID(id))
			if errors.Is(bad, ErrNoPoint) {
				bad = nil
				return true
			}
			return false
		})
		return errors.Join(err, bad)
	})
	if err == nil && s == nil {
		err = fmt.Errorf("%w: %q has none", ErrNoPoint, vm)
	}
	return s, err
}

// pointByID returns the point with exactly this ID, or ErrNoPoint.
func (v *Vault) pointByID(ctx context.Context, id point.ID) (*point.RecoveryPoint, error) {
	if _, err := stateID(id); err != nil {
		return nil, err
	}
	return v.Point(ctx, string(id))
}
