package vault

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/holdfast-vm/holdfast/internal/blob"
	"github.com/holdfast-vm/holdfast/internal/extent"
	"github.com/holdfast-vm/holdfast/internal/point"
	"github.com/holdfast-vm/holdfast/internal/vault/chunk"
	"github.com/holdfast-vm/holdfast/internal/vault/journal"
	"github.com/holdfast-vm/holdfast/internal/vault/log"
	"github.com/holdfast-vm/holdfast/internal/vault/state"
)

// Damage is one fault that Check found.
type Damage struct {
	Object string `json:"object"` // name in the store; "" where it is in no object
	What   string `json:"what"`   // in words
}

// Hit is a part of a point that cannot be read.
type Hit struct {
	Point  point.ID   `json:"point"`
	VM     string     `json:"vm"`
	Disk   string     `json:"disk"`
	Ranges extent.Set `json:"ranges"` // bytes of the disk
}

// CheckOptions tunes Check.
type CheckOptions struct {
	ReadData bool                    // read and verify every stored byte, not only the structure
	Progress func(done, total int64) // bytes; nil discards
}

// CheckReport says what Check found. The vault is whole when Damage is empty.
type CheckReport struct {
	Points   int      `json:"points"`
	Packs    int      `json:"packs"`
	Chunks   int64    `json:"chunks"`
	Bytes    int64    `json:"bytes"` // stored, in packs
	ReadData bool     `json:"read_data"`
	Damage   []Damage `json:"damage"`
	Hits     []Hit    `json:"hits"`
	Warnings []string `json:"warnings,omitempty"` // what was found and is no loss
}

// Check looks at everything in the vault: keys, the log and what it folds to, points, trees, tables
// of packs and whether all that a point needs is in a pack; with ReadData also every stored byte.
// It says what is damaged and which ranges of which disks of which points that hits, and enters
// into the log which packs are damaged: later sessions store what these hold anew, so that the next
// full read of a disk heals what it still has.
func (v *Vault) Check(ctx context.Context, o CheckOptions) (CheckReport, error) {
	c := &checker{v: v, o: o, bad: map[chunk.ID]bool{}, badPacks: map[log.ObjectID]bool{},
		suspects: map[log.ObjectID]bool{}}
	c.report.ReadData = o.ReadData
	c.report.Damage, c.report.Hits = []Damage{}, []Hit{}
	for _, step := range []func(context.Context) error{c.keys, c.log, c.packs, c.points, c.notes, c.hits, c.remember} {
		if err := step(ctx); err != nil {
			return c.report, fmt.Errorf("check vault: %w", err)
		}
	}
	slices.SortFunc(c.report.Damage, func(a, b Damage) int {
		return strings.Compare(a.Object+"\x00"+a.What, b.Object+"\x00"+b.What)
	})
	return c.report, nil
}

// logPrefix is what the names of the log's entries begin with.
const logPrefix = "log/"

// checker is a Check under way.
type checker struct {
	v      *Vault
	o      CheckOptions
	report CheckReport
	living []*surveyed
	count  uint64 // of the entry as of which they live

	readers sync.Pool // of *packReader

	mu       sync.Mutex        // guards report and what follows, while packs are checked
	done     int64             // bytes of packs
	bad      map[chunk.ID]bool // chunks, nodes and manifests of which a copy is missing or damaged
	badPacks map[log.ObjectID]bool
	suspects map[log.ObjectID]bool // those of badPacks that are missing, or not as their entries tell
}

func (c *checker) damage(object, format string, args ...any) {
	c.report.Damage = append(c.report.Damage, Damage{Object: object, What: fmt.Sprintf(format, args...)})
}

func (c *checker) warn(format string, args ...any) {
	c.report.Warnings = append(c.report.Warnings, fmt.Sprintf(format, args...))
}

func (c *checker) keys(ctx context.Context) error {
	slots, err := c.v.slots(ctx)
	for _, b := range slots.bad {
		c.damage(slotIn(b), "%s: it opens nothing any more; remove it and add the key again", b)
	}
	return err
}

// slotIn returns the name of a key slot in what is said of it.
func slotIn(s string) string {
	for _, word := range strings.Fields(s) {
		if word = strings.Trim(word, ":,;"); strings.HasPrefix(word, keysPrefix) {
			return word
		}
	}
	return ""
}

// log checks that every entry that is still there is the one that the one after it names, that what
// the present volume begins with can be read whole, and that a second fold comes to the same state.
func (c *checker) log(ctx context.Context) error {
	if err := c.v.journal.Read(ctx); err != nil {
		return err
	}
	var head log.Remembered
	var begun log.Checkpoint
	var named bool
	var st *state.State
	err := c.v.journal.Log(ctx, func(l *log.Log, now *state.State) (err error) {
		head, st = l.Head(), now.Clone()
		begun, named, err = l.Begun(ctx)
		return err
	})
	if err != nil {
		return c.logFault(err)
	}
	err = log.History(ctx, c.v.store, c.v.stKeys.Log(), head, log.Position{}, func(log.Past) bool { return true })
	if err := c.logFault(err); err != nil {
		return err
	}
	if err := c.beyond(ctx); err != nil {
		return err
	}
	if named {
		if _, err := state.Verify(ctx, c.v.store, c.v.stKeys, begun); err != nil {
			if err := c.logFault(fmt.Errorf("what volume %s begins with: %w", head.At.Volume, err)); err != nil {
				return err
			}
		}
	}
	return c.refold(ctx, st, head)
}

// beyond reports entries that stand after one that is missing: nobody reads them any more.
func (c *checker) beyond(ctx context.Context) error {
	var names []string
	var head string
	readOn := func() error {
		return c.v.journal.Log(ctx, func(l *log.Log, _ *state.State) error {
			head = log.EntryName(l.Head().At)
			return nil
		})
	}
	if err := readOn(); err != nil {
		return err
	}
	for name, err := range blob.Names(ctx, c.v.store, logPrefix, head) {
		if err != nil {
			return fmt.Errorf("list the log: %w", err)
		}
		names = append(names, name)
	}
	err := c.v.journal.Read(ctx) // what was appended meanwhile is in order
	if err == nil {
		err = readOn()
	}
	for _, name := range names {
		if err == nil && name > head {
			c.damage(name, "it stands in the log after an entry that is missing")
		}
	}
	return err
}

// refold folds the present volume again, and compares.
func (c *checker) refold(ctx context.Context, st *state.State, head log.Remembered) error {
	again := state.New(c.v.store, c.v.stKeys, state.Options{})
	at, err := log.Refold(ctx, c.v.store, c.v.stKeys.Log(), again, head.At)
	if err != nil {
		return c.logFault(err)
	}
	first, err := st.Digest(ctx)
	if err != nil {
		return c.logFault(err)
	}
	second, err := again.Digest(ctx)
	if err != nil {
		return c.logFault(err)
	}
	if at != head || first != second {
		c.damage("", "a second fold of the log up to entry %s does not come to the same state", head.At)
	}
	return nil
}

// logFault reports damage of the log, and returns any other error.
func (c *checker) logFault(err error) error {
	if err == nil || !isDamage(err) {
		return err
	}
	c.damage("", "the log: %v", err)
	return nil
}

// notes opens the notes of points. A damaged one is no loss of data: a warning.
func (c *checker) notes(ctx context.Context) error {
	vms := make(map[point.ID]string)
	for _, p := range c.living {
		vms[p.row.Point.ID] = p.row.Point.VM
	}
	for info, err := range c.v.store.List(ctx, notesPrefix, "") {
		if err != nil {
			return fmt.Errorf("list notes: %w", err)
		}
		id, note, ok := parseNoteName(info.Name)
		vm, known := vms[id]
		if !ok || !known {
			continue // nobody's, or what a collection deletes
		}
		switch _, err := c.v.readNote(ctx, info.Name, "", true); {
		case errors.Is(err, ErrCorrupt):
			c.warn("note %s of point %s of %s is damaged: %v", note[:8], id.Short(), vm, err)
		case err != nil && !errors.Is(err, blob.ErrNotExist):
			return err
		}
	}
	return nil
}

// remember enters into the log which packs are damaged, so that sessions do not count on them.
func (c *checker) remember(ctx context.Context) error {
	if len(c.badPacks) == 0 || c.v.opts.ReadOnly || c.v.journal.Frozen() {
		return nil
	}
	var ids []log.ObjectID
	for id := range c.badPacks {
		ids = append(ids, id)
	}
	slices.SortFunc(ids, func(a, b log.ObjectID) int { return bytes.Compare(a[:], b[:]) })
	_, err := c.v.journal.Append(ctx, func(ctx context.Context, st *state.State) ([]log.Op, error) {
		d := state.Damaged{Packs: slices.Clone(ids)}
		if err := d.Check(ctx, st); errors.Is(err, state.ErrNoChange) {
			return nil, nil
		} else if err != nil {
			return nil, err
		}
		return []log.Op{d.Op()}, nil
	})
	if err != nil && ctx.Err() == nil && !errors.Is(err, journal.ErrReadOnly) {
		c.warn("could not note for later sessions which packs are damaged: %v", err)
		return nil
	}
	return ctx.Err()
}
