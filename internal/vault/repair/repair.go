// Package repair makes a vault's log anew out of what is left: packs, entries and checkpoints that
// still read.
//
// It is for a vault whose log does not open any more. What it makes is a new tenure of the log, so
// that whoever remembers an entry of the old one notices. Nobody else may work on the vault
// meanwhile; a repair that was cut off is begun again.
package repair

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"sort"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/holdfast-vm/holdfast/internal/blob"
	"github.com/holdfast-vm/holdfast/internal/point"
	"github.com/holdfast-vm/holdfast/internal/vault/chunk"
	"github.com/holdfast-vm/holdfast/internal/vault/log"
	"github.com/holdfast-vm/holdfast/internal/vault/pack"
	"github.com/holdfast-vm/holdfast/internal/vault/row"
	"github.com/holdfast-vm/holdfast/internal/vault/state"
)

// Vault is what is repaired.
type Vault struct {
	Store  blob.Store
	ID     [16]byte
	Keys   *state.Keys
	Secret *pack.Secret
	Packs  *pack.Reader
	Finds  func(*point.RecoveryPoint) []string // words by which a point is found
	Log    func(format string, args ...any)    // progress in words
}

// Report says what was found. Sizes are in bytes.
type Report struct {
	Whole       bool     `json:"whole"`        // the log was whole: only what is derived from it was made anew
	Entries     int      `json:"entries"`      // of the old log, that read
	LostEntries []string `json:"lost_entries"` // objects of the log that do not read
	Packs       int      `json:"packs"`
	LostPacks   []string `json:"lost_packs"` // that do not read
	Bytes       int64    `json:"bytes"`      // of packs
	Points      int      `json:"points"`
	Doubtful    []string `json:"doubtful,omitempty"` // points that may have been deleted: what would say so is gone
	Unknown     []string `json:"unknown"`            // what cannot be known, in words
}

// foundPack is a pack that reads.
type foundPack struct {
	object log.Object
	rows   []pack.Entry
}

// repairer is one run.
type repairer struct {
	*Vault
	report Report

	mu     sync.Mutex // guards what is gathered in parallel
	packs  []foundPack
	points map[state.ID]*foundPoint
	purged map[state.ID]bool
	holds  map[state.ID]state.Hold // by the hold's ID
	newest log.Tenure
}

// foundPoint is a point of which something says that it was.
type foundPoint struct {
	row      []byte
	time     int64
	until    int64 // of its retention
	finds    []string
	told     bool // the log tells of it: had it been purged, an entry may have said so
	deleted  bool
	deadline int64 // until which it can be brought back
}

// Plan gathers what is left, and says what Run would make of it.
func Plan(ctx context.Context, v *Vault) (Report, error) {
	r, err := gather(ctx, v)
	if err != nil {
		return Report{}, err
	}
	return r.report, nil
}

// Run makes the log anew. It returns the tenure's head.
func Run(ctx context.Context, v *Vault) (Report, log.Remembered, error) {
	r, err := gather(ctx, v)
	if err != nil {
		return Report{}, log.Remembered{}, err
	}
	head, err := r.write(ctx)
	if err != nil {
		return r.report, head, fmt.Errorf("write the vault's log anew: %w", err)
	}
	return r.report, head, nil
}

func gather(ctx context.Context, v *Vault) (*repairer, error) {
	r := &repairer{Vault: v, points: map[state.ID]*foundPoint{}, purged: map[state.ID]bool{},
		holds: map[state.ID]state.Hold{}}
	if r.Log == nil {
		r.Log = func(string, ...any) {}
	}
	for _, step := range []func(context.Context) error{r.fromState, r.fromEntries, r.fromPacks} {
		if err := step(ctx); err != nil {
			return nil, err
		}
	}
	for id := range r.purged {
		delete(r.points, id)
	}
	r.sum()
	return r, nil
}

// fromState takes what the newest checkpoint that reads says, and the entries after it as far as
// they chain.
func (r *repairer) fromState(ctx context.Context) error {
	st := state.New(r.Store, r.Keys, state.Options{})
	l, err := log.Open(ctx, r.Store, r.Keys.Log(), st, log.Options{NoReadAhead: true})
	if err == nil { // a checkpoint opens without the entry that it was made at
		err = l.Confirm(ctx)
	}
	if err != nil && !errors.Is(err, log.ErrDamaged) && !errors.Is(err, log.ErrNoLog) &&
		!errors.Is(err, blob.ErrNotExist) {
		return fmt.Errorf("read the log: %w", err)
	}
	r.report.Whole = err == nil
	r.newest = st.At().Volume.Tenure
	if err := r.pointsOf(ctx, st); err != nil {
		r.Log("the newest checkpoint does not read whole: %v", err)
	}
	return nil
}

func (r *repairer) pointsOf(ctx context.Context, st *state.State) error {
	err := st.Points(ctx, func(p state.Point) bool {
		r.points[p.ID] = &foundPoint{row: p.Manifest, time: p.Time, until: p.Until, finds: p.Finds, told: true}
		return true
	})
	if err != nil {
		return err
	}
	err = st.EachDeleted(ctx, func(id state.ID, until int64) bool {
		if p := r.points[id]; p != nil {
			p.deleted, p.deadline = true, until
		}
		return true
	})
	if err != nil {
		return err
	}
	return st.EachHold(ctx, func(h state.Hold) bool {
		r.holds[h.ID] = h
		return true
	})
}

// fromEntries takes what every entry says that reads by itself, in their order, chained or not.
func (r *repairer) fromEntries(ctx context.Context) error {
	return log.Salvage(ctx, r.Store, r.Keys.Log(), func(e *log.Entry) bool {
		r.report.Entries++
		if e.At.Volume.Tenure.Compare(r.newest) > 0 {
			r.newest = e.At.Volume.Tenure
		}
		for i := range e.Ops {
			r.op(&e.Ops[i])
		}
		return true
	}, func(name string) { r.report.LostEntries = append(r.report.LostEntries, name) })
}

func (r *repairer) op(op *log.Op) {
	w := state.Witness(op)
	for i := range w.Points {
		p := &w.Points[i]
		if r.points[p.ID] == nil {
			r.points[p.ID] = &foundPoint{row: p.Manifest, time: p.Time, until: p.Until, finds: p.Finds, told: true}
		}
	}
	for _, id := range w.Purged {
		r.purged[id] = true
	}
	for _, id := range w.Deleted {
		if p := r.points[id]; p != nil {
			p.deleted, p.deadline = true, w.Until
		}
	}
	for _, id := range w.Undeleted {
		if p := r.points[id]; p != nil {
			p.deleted = false
		}
	}
	for _, h := range w.Held {
		r.holds[h.ID] = h
	}
	for _, h := range w.Released {
		delete(r.holds, h.ID)
	}
}

// atOnce is how many packs are looked at together.
const atOnce = 8

// fromPacks takes every pack that reads, and the manifests in them.
func (r *repairer) fromPacks(ctx context.Context) error {
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(atOnce)
	for name, err := range blob.Names(ctx, r.Store, "pack/", "") {
		if err != nil {
			return errors.Join(fmt.Errorf("list packs: %w", err), g.Wait())
		}
		o, ok := log.ParsePackName(name)
		if !ok {
			continue
		}
		g.Go(func() error { return r.look(gctx, name, o.ID) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	sort.Slice(r.packs, func(i, j int) bool {
		return string(r.packs[i].object.ID[:]) < string(r.packs[j].object.ID[:])
	})
	return nil
}

func (r *repairer) look(ctx context.Context, name string, id log.ObjectID) error {
	o, rows, err := r.Secret.Look(ctx, r.Store, r.ID, id)
	if errors.Is(err, pack.ErrCorrupt) || errors.Is(err, blob.ErrNotExist) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.report.LostPacks = append(r.report.LostPacks, name)
		return nil
	}
	if err != nil {
		return fmt.Errorf("read %s: %w", name, err)
	}
	for i := range rows {
		if rows[i].Kind == pack.Manifest {
			if err := r.manifest(ctx, o, uint32(i), &rows[i]); err != nil {
				r.Log("a manifest in %s does not read: %v", name, err)
			}
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.packs = append(r.packs, foundPack{o, rows})
	r.report.Bytes += int64(o.Size)
	return nil
}

// manifest takes the point of a manifest of which nothing else tells.
func (r *repairer) manifest(ctx context.Context, o log.Object, slot uint32, e *pack.Entry) error {
	sealed := make([]byte, e.Stored)
	if err := r.Packs.ReadSealed(ctx, o, sealed, int64(e.Offset)); err != nil {
		return err
	}
	encoded, err := r.Packs.Unseal(e, sealed)
	if err != nil {
		return err
	}
	plain := make([]byte, e.Plain)
	if err := chunk.NewCodec(chunk.Fast).Decode(plain, encoded, e.Encoding); err != nil {
		return err
	}
	m, err := row.DecodeManifest(plain)
	if err != nil {
		return err
	}
	id, err := stateID(m.Point.ID)
	if err != nil {
		return err
	}
	found := row.Row{Point: row.Summary(&m.Point), Trees: m.Trees,
		Manifest: row.Place{Pack: o.ID, Slot: slot, Entry: *e}}
	raw, err := found.Encode()
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.points[id] == nil && !r.purged[id] {
		r.points[id] = &foundPoint{row: raw, time: m.Point.Time.UnixMilli(), finds: r.Finds(&m.Point)}
		r.report.Doubtful = append(r.report.Doubtful, string(m.Point.ID))
	}
	return nil
}

// sum says what is known and what is not.
func (r *repairer) sum() {
	r.report.Packs, r.report.Points = len(r.packs), len(r.points)
	sort.Strings(r.report.Doubtful)
	sort.Strings(r.report.LostPacks)
	add := func(format string, args ...any) {
		r.report.Unknown = append(r.report.Unknown, fmt.Sprintf(format, args...))
	}
	if n := len(r.report.Doubtful); n > 0 {
		add("whether %d points that only their manifests tell of had been deleted: they are there again", n)
	}
	if len(r.report.LostEntries) > 0 || r.report.Entries == 0 {
		add("what entries said that do not read: points that stored nothing, deletions, holds, locks and who did what")
	}
	if len(r.report.LostPacks) > 0 {
		add("what lay in packs that do not read: `vault check` says which disks that hits")
	}
}

// newSession returns the session of the entries that are written.
func newSession() (s log.Session) {
	rand.Read(s[:])
	return s
}
