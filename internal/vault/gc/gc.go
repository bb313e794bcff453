// Package gc frees what purged points alone needed, and gives its room back.
//
// [Collect] goes from purged points to deleted objects in steps: it walks what each purge freed and
// sets the freed bits of rows; it chooses packs in which little lives, moves that elsewhere, and
// condemns them; it deletes what is condemned. Each step may be cut off anywhere and is finished by
// whoever comes next; several may collect at once, beside writers and readers, and nobody waits.
// Every entry is judged after all that stands before it, so the worst that comes of two who do the
// same is that one of them did it for nothing.
//
// No point is read but those that were purged and their neighbours.
package gc

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/holdfast-vm/holdfast/internal/blob"
	"github.com/holdfast-vm/holdfast/internal/vault/chunk"
	"github.com/holdfast-vm/holdfast/internal/vault/index"
	"github.com/holdfast-vm/holdfast/internal/vault/journal"
	"github.com/holdfast-vm/holdfast/internal/vault/log"
	"github.com/holdfast-vm/holdfast/internal/vault/mark"
	"github.com/holdfast-vm/holdfast/internal/vault/pack"
	"github.com/holdfast-vm/holdfast/internal/vault/row"
	"github.com/holdfast-vm/holdfast/internal/vault/state"
	"github.com/holdfast-vm/holdfast/internal/vault/tree"
)

// Vault is what a collection needs of a vault.
type Vault struct {
	ID      [16]byte
	Store   blob.Store
	Journal *journal.Journal
	Secret  *pack.Secret
	Packs   *pack.Reader
	Index   *index.Index
	Nodes   Nodes
	// Trees returns the trees of a point that lives, or was purged and not walked yet.
	Trees func(ctx context.Context, p *state.Point) ([]row.Tree, error)
	// Manifest returns the ID under which a pack holds the point's manifest, and whether one does.
	Manifest func(p *state.Point) (chunk.ID, bool)
}

// Nodes reads tree nodes, one by one and many at once; a content.Source does.
type Nodes interface {
	tree.Reader
	mark.Nodes
}

// Options tunes Collect. The zero value of each field is its default.
type Options struct {
	DryRun bool // change nothing: the report says what would be done
	Full   bool // mark what all points need, and free what nobody does whatever the bits say
	Policy Policy
	Memory int64                            // bytes of rows that are moved at once; 0 means 64 MiB
	Log    func(format string, args ...any) // progress in words; nil discards
	Now    func() time.Time                 // nil means time.Now; decides when, never whether
}

func (o Options) withDefaults() Options {
	o.Policy = o.Policy.withDefaults()
	if o.Memory == 0 {
		o.Memory = 64 << 20
	}
	if o.Log == nil {
		o.Log = func(string, ...any) {}
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return o
}

// Report says what a collection did, or with DryRun would do. Sizes are in bytes.
type Report struct {
	DryRun         bool     `json:"dry_run"`
	Points         int      `json:"points"`
	Packs          int      `json:"packs"`
	LiveBytes      int64    `json:"live_bytes"`     // of packs, as far as nothing said that they are free
	PurgedPoints   int      `json:"purged_points"`  // walked in this run, to the end
	PendingPurges  int      `json:"pending_purges"` // left to be walked
	FreedChunks    int64    `json:"freed_chunks"`   // rows of packs: chunks, nodes and manifests
	DeadPacks      int      `json:"dead_packs"`     // nothing in them lives
	ThinPacks      int      `json:"thin_packs"`     // rewritten, as little lives in them
	SmallPacks     int      `json:"small_packs"`    // rewritten, as many small ones make a large one
	RewrittenBytes int64    `json:"rewritten_bytes"`
	FreedBytes     int64    `json:"freed_bytes"`   // packs condemned, less what was rewritten
	DeletedPacks   int      `json:"deleted_packs"` // condemned ones, of earlier runs too
	WaitingPacks   int      `json:"waiting_packs"` // condemned, but a mirror copies what was there before
	WaitingBytes   int64    `json:"waiting_bytes"`
	WaitingFor     []string `json:"waiting_for,omitempty"` // which mirrors those are
	Full           bool     `json:"full"`
	Troubles       []string `json:"troubles,omitempty"` // what was left alone, and why
}

// collector is one run.
type collector struct {
	*Vault
	o        Options
	report   Report
	ids      *journal.IDs
	dry      map[log.ObjectID]*freeing // what a dry run would have freed
	spent    bool                      // the reserve was released
	mirrored bool                      // a mirror has a pin

	freedSize int // about how many bytes a freed entry takes
}

// Collect frees, rewrites and deletes what is due. It may be called at any time, by several at
// once, and be cut off at any call. Damage that it meets is reported in Troubles and left alone:
// then less is freed. Its errors are faults of access to the store, after which the same call may
// succeed.
func Collect(ctx context.Context, v *Vault, o Options) (Report, error) {
	c := &collector{Vault: v, o: o.withDefaults(), ids: v.Journal.NewIDs(), dry: map[log.ObjectID]*freeing{},
		freedSize: freedSize}
	c.report.DryRun = o.DryRun
	if err := c.run(ctx); err != nil {
		return c.report, fmt.Errorf("collect garbage: %w", err)
	}
	return c.report, nil
}

func (c *collector) run(ctx context.Context) error {
	defer c.putReserveBack(context.WithoutCancel(ctx))
	for _, step := range []func(context.Context) error{
		c.Journal.Read,
		c.deleteCondemned, // first, as that gives room
		c.walkPurges,
		c.full,
		c.condemn,
		c.deleteCondemned,
		c.sum,
	} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}

// append appends what judge says. A store that is full gives up its reserve for that.
func (c *collector) append(ctx context.Context, judge func(context.Context, *state.State) ([]log.Op, error)) error {
	_, err := c.Journal.Append(ctx, judge)
	if !errors.Is(err, blob.ErrNoSpace) || c.spent {
		return err
	}
	c.spent = true
	if err := ReleaseReserve(ctx, c.Store); err != nil {
		return err
	}
	_, err = c.Journal.Append(ctx, judge)
	return err
}

// scan calls f with the state as it was last read, for long: others append meanwhile.
func (c *collector) scan(ctx context.Context, f func(*state.State) error) error {
	var then *state.State
	if err := c.Journal.View(ctx, func(s *state.State) error {
		then = s.Clone()
		return nil
	}); err != nil {
		return err
	}
	return f(then)
}

// sum fills in the report what is there now.
func (c *collector) sum(ctx context.Context) error {
	return c.Journal.View(ctx, func(s *state.State) error {
		n := s.Counters()
		c.report.Points, c.report.Packs = int(n.Points), int(n.Packs)
		return s.Pending(ctx, func(state.Pending) bool {
			c.report.PendingPurges++
			return true
		})
	})
}

func (c *collector) trouble(format string, args ...any) {
	const most = 100
	if n := len(c.report.Troubles); n < most {
		c.report.Troubles = append(c.report.Troubles, fmt.Sprintf(format, args...))
	} else if n == most {
		c.report.Troubles = append(c.report.Troubles, "and more")
	}
}
