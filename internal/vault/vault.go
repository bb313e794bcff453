// Package vault stores recovery points, encrypted and deduplicated, in a [blob.Store].
//
// A disk is cut into fixed, aligned chunks, each stored once however many points and machines hold
// it; a radix tree per disk says which chunks it is made of. Chunks, nodes and a manifest lie in
// packs, which are written once. What happens to the vault is one ordered log (rooms log and
// journal), and what holds is what the log folds to (room state): a point is there once an entry
// that adds it is acknowledged, and until an entry purges it. Every point is a full: any may be
// deleted, in any order, and what is left is whole.
//
// This package is what callers use; its rooms know how. Any number of processes on any number of
// hosts may work on a vault at once, with no lease and no clock between them: docs/design/log.md
// has the argument. A [Vault] is safe for concurrent use; a [Session] too.
package vault

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/holdfast-vm/holdfast/internal/blob"
	"github.com/holdfast-vm/holdfast/internal/vault/chunk"
	"github.com/holdfast-vm/holdfast/internal/vault/content"
	"github.com/holdfast-vm/holdfast/internal/vault/index"
	"github.com/holdfast-vm/holdfast/internal/vault/journal"
	"github.com/holdfast-vm/holdfast/internal/vault/keys"
	"github.com/holdfast-vm/holdfast/internal/vault/log"
	"github.com/holdfast-vm/holdfast/internal/vault/pack"
	"github.com/holdfast-vm/holdfast/internal/vault/session"
	"github.com/holdfast-vm/holdfast/internal/vault/state"
)

// Errors that callers decide by.
var (
	ErrNotVault   = errors.New("not a vault")
	ErrWrongKey   = errors.New("the key does not open this vault")
	ErrNewer      = errors.New("the vault was written by a newer version")
	ErrExists     = errors.New("a vault exists here already")
	ErrNoPoint    = errors.New("no such recovery point")
	ErrDeleted    = fmt.Errorf("%w: it was deleted, and can still be brought back", ErrNoPoint)
	ErrAmbiguous  = errors.New("several recovery points match")
	ErrCorrupt    = content.ErrCorrupt
	ErrLastKey    = errors.New("the last key cannot be removed")
	ErrHeld       = errors.New("the point is still needed")
	ErrLost       = session.ErrLost
	ErrChanged    = errors.New("this is not the vault that was used before")
	ErrRolledBack = log.ErrRolledBack
	ErrReadOnly   = journal.ErrReadOnly
)

// Key opens or seals a vault.
type Key = keys.Key

// Options tunes an open vault. The zero value of each field is its default.
type Options struct {
	Workers     int           // goroutines that hash, compress and seal, or open and write; 0 means one per CPU
	Compression string        // of new chunks: "fast" (or ""), "dense" or "none"
	ReadOnly    bool          // puts nothing: for stores that cannot be written
	PackSize    int64         // bytes at which a pack is full; 0 means 64 MiB
	Known       *Known        // what is remembered of the vault from before; nil if nothing is
	At          *log.Position // shows the vault as of an earlier entry, for reading
	Who         string        // who does what is done, as entries of the log tell; "" means user, host and process
}

// Known is what a host remembers of a vault, so that another in its place, or an older copy of it,
// is noticed.
type Known struct {
	ID    string          `json:"id"`
	Print string          `json:"print"`          // fingerprint of the data key, 32 hexadecimal digits
	Seen  *log.Remembered `json:"seen,omitempty"` // the newest entry that was seen
}

// processors is how many the process may use. Whoever raises GOMAXPROCS later means threads that
// are in C, not more workers.
var processors = runtime.GOMAXPROCS(0)

func (o Options) withDefaults() Options {
	if o.Workers <= 0 {
		o.Workers = max(processors, 1)
	}
	if o.PackSize <= 0 {
		o.PackSize = 64 << 20
	}
	if o.Who == "" {
		o.Who = whoami()
	}
	return o
}

// whoami says who runs this process, in words.
func whoami() string {
	host, err := os.Hostname()
	if err != nil {
		host = "an unnamed host"
	}
	user := os.Getenv("SUDO_USER")
	if user == "" {
		user = fmt.Sprintf("uid %d", os.Getuid())
		if os.Getuid() == 0 {
			user = "root"
		}
	}
	who := fmt.Sprintf("%s@%s [%d]", user, host, os.Getpid())
	return who[:min(len(who), 64)]
}

// Vault is an open vault.
type Vault struct {
	store   blob.Store
	opts    Options
	conf    config
	id      [16]byte
	dataKey keys.DataKey
	sec     secrets
	stKeys  *state.Keys
	packs   *pack.Secret
	reader  *pack.Reader
	journal *journal.Journal
	index   *index.Index
	content *content.Source
	session session.Room
	holder  []byte

	synced atomic.Pointer[syncedTo] // what the index has taken in; nil before its first sync

	owed sync.Mutex // guards owes
	owes []owedHold // that could not be given back yet
}

// Open opens the vault in s with key. It returns ErrNotVault, ErrNewer, ErrWrongKey, ErrCorrupt,
// and where Options.Known says what to expect ErrChanged or ErrRolledBack. Close it.
func Open(ctx context.Context, s blob.Store, key Key, o Options) (*Vault, error) {
	level, err := chunk.ParseLevel(o.Compression)
	if err != nil {
		return nil, err
	}
	h, err := readHead(ctx, s)
	if err != nil {
		return nil, err
	}
	c := h.config
	v := &Vault{store: s, opts: o.withDefaults(), conf: *c, holder: thisProcess().encode()}
	if _, err := hex.Decode(v.id[:], []byte(c.ID)); err != nil {
		return nil, fmt.Errorf("%w: vault ID: %v", ErrCorrupt, err)
	}
	if err := o.Known.checkID(c.ID); err != nil {
		return nil, err
	}
	if v.dataKey, err = h.slots.unlock(key); err != nil {
		return nil, err
	}
	if v.sec, err = derive(v.dataKey, v.id); err != nil {
		return nil, err
	}
	if err := o.Known.checkPrint(v.Print()); err != nil {
		return nil, err
	}
	if c.mac(v.sec.config) != c.MAC {
		return nil, fmt.Errorf("%w: %s is not as it was written", ErrCorrupt, configName)
	}
	if err := v.openRooms(ctx, level, h.checkpoint); err != nil {
		return nil, err
	}
	return v, nil
}

// head is what is known before any key is.
type head struct {
	config     *config
	slots      slots
	checkpoint *string // the newest, as a list tells: a hint; nil if it could not be listed
}

// readHead reads all of it at once.
func readHead(ctx context.Context, s blob.Store) (h head, err error) {
	var g errgroup.Group
	var slotsErr error
	g.Go(func() (err error) { h.config, err = readConfig(ctx, s); return err })
	g.Go(func() error { h.slots, slotsErr = readSlots(ctx, s); return nil })
	g.Go(func() error {
		name, err := log.NewestCheckpoint(ctx, s)
		if err == nil { // else whoever needs it asks again
			h.checkpoint = &name
		}
		return nil
	})
	if err := g.Wait(); err != nil {
		return h, err
	}
	h.slots = h.slots.of(h.config.ID)
	return h, slotsErr
}

// openRooms opens log and index, both at once.
func (v *Vault) openRooms(ctx context.Context, level chunk.Level, checkpoint *string) (err error) {
	if v.stKeys, err = state.NewKeys(v.dataKey, v.id); err != nil {
		return err
	}
	v.packs = pack.NewSecret(v.sec.packs)
	v.reader = pack.NewReader(v.packs, v.store)
	src := index.Source{Store: v.store, Secret: v.packs, Key: v.sec.index, Vault: v.id, Packs: goodPacks{v}}
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() (err error) { v.journal, err = v.openJournal(gctx, checkpoint); return err })
	g.Go(func() (err error) { v.index, err = index.Open(gctx, src); return err })
	if err := g.Wait(); err != nil {
		if v.journal != nil {
			v.journal.Close()
		}
		return err
	}
	v.content = content.New(content.Parts{Index: v.index, Packs: v.reader, ChunkKey: v.sec.chunks,
		ChunkSize: v.conf.ChunkSize, Workers: v.opts.Workers, Look: v.look})
	v.session = session.Room{Store: v.store, Vault: v.id, Secret: v.packs, Journal: v.journal, Index: v.index,
		Content: v.content, ChunkKey: v.sec.chunks, NodeKey: v.sec.nodes, ChunkSize: v.conf.ChunkSize,
		Workers: v.opts.Workers, PackSize: v.opts.PackSize, Level: level, Holder: v.holder, Gone: gone, Finds: findsOf}
	return nil
}

func (v *Vault) openJournal(ctx context.Context, checkpoint *string) (*journal.Journal, error) {
	o := journal.Options{ReadOnly: v.opts.ReadOnly, At: v.opts.At,
		Log: log.Options{Who: v.opts.Who, Newest: checkpoint}}
	if k := v.opts.Known; k != nil {
		o.Log.Remembered = k.Seen
	}
	j, err := journal.Open(ctx, v.store, v.stKeys, o)
	switch {
	case errors.Is(err, log.ErrNewer):
		return nil, fmt.Errorf("%w: %w", ErrNewer, err)
	case errors.Is(err, log.ErrDamaged), errors.Is(err, log.ErrNoLog):
		return nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
	case err != nil:
		return nil, fmt.Errorf("read the vault's log: %w", err)
	}
	return j, nil
}

// goodPacks tells the index of packs.
type goodPacks struct{ v *Vault }

func (g goodPacks) Since(ctx context.Context, count uint64, do func(log.Object, uint64) bool) (upTo uint64,
	err error) {
	var found []log.Object
	var added []uint64
	list := func(st *state.State) error {
		found, added, upTo = nil, nil, st.Count()
		return st.AddedSince(ctx, count, func(o log.Object, at uint64) bool {
			if o.Kind == log.Pack {
				found, added = append(found, o), append(added, at)
			}
			return true
		})
	}
	err = g.v.journal.Log(ctx, func(l *log.Log, st *state.State) error {
		if err := list(st); err != nil {
			return err
		}
		if len(found) >= confirmFrom && !g.v.journal.Frozen() {
			if err := l.Confirm(ctx); err != nil {
				return err
			}
			if err := list(st); err != nil {
				return err
			}
		}
		g.v.synced.Store(&syncedTo{l.Head(), upTo})
		return nil
	})
	if err != nil {
		return 0, err
	}
	for i := range found {
		if !do(found[i], added[i]) {
			break
		}
	}
	return upTo, nil
}

// confirmFrom is from how many packs on an index is written while they are taken in. What is
// written says up to which entry it knows all packs, and that entry must not be one that turns out
// void.
const confirmFrom = 1024

// syncedTo is what the index has taken in: all up to an entry, which is the count-th.
type syncedTo struct {
	head  log.Remembered
	count uint64
}

func (g goodPacks) Good(ctx context.Context, ids []log.ObjectID) ([]bool, error) {
	good := make([]bool, len(ids))
	err := g.v.journal.View(ctx, func(st *state.State) error {
		for i, id := range ids {
			var err error
			if _, good[i], err = st.Good(ctx, id); err != nil {
				return err
			}
		}
		return nil
	})
	return good, err
}

// look takes in what others did, and reports whether the index has learned anything.
func (v *Vault) look(ctx context.Context) (more bool, err error) {
	if err := v.journal.Read(ctx); err != nil {
		return false, err
	}
	now, err := v.entries(ctx)
	if err != nil {
		return false, err
	}
	if to := v.synced.Load(); to != nil && to.count == now {
		return false, nil
	}
	return true, v.sync(ctx)
}

// entries returns how many entries were read.
func (v *Vault) entries(ctx context.Context) (n uint64, err error) {
	err = v.journal.View(ctx, func(st *state.State) error { n = st.Count(); return nil })
	return n, err
}

// ready makes sure that the index has been synced once.
func (v *Vault) ready(ctx context.Context) error {
	if v.synced.Load() != nil {
		return nil
	}
	return v.sync(ctx)
}

func (v *Vault) sync(ctx context.Context) error {
	if err := v.index.Sync(ctx); err != nil {
		v.synced.Store(nil)
		return fmt.Errorf("bring the index up to date: %w", err)
	}
	return nil
}

// Close ends the use of the vault, and writes what saves the next process time. Sessions must have
// ended.
func (v *Vault) Close() error {
	if !v.opts.ReadOnly && !v.journal.Frozen() {
		_ = v.payBack(context.Background()) // they end with the process
		_ = v.flush(context.Background())   // a cache: what is not written costs time
	}
	v.journal.Close()
	return nil
}

// flush writes what saves the next process time. The index says up to which entry it knows all
// packs: that entry must stay. Where others append all the time, or entries have vanished that were
// taken in, nothing is written: it is a cache.
func (v *Vault) flush(ctx context.Context) error {
	for range flushTries {
		if err := v.sync(ctx); err != nil {
			return err
		}
		stays, again := false, false
		err := v.journal.Log(ctx, func(l *log.Log, _ *state.State) error {
			if err := l.Confirm(ctx); err != nil {
				return err
			}
			to := v.synced.Load()
			stays = to != nil && to.head == l.Head() && l.Restarts() == 0
			again = l.Restarts() == 0
			return nil
		})
		if err != nil {
			return err
		}
		if stays {
			return v.index.Flush(ctx)
		}
		if !again {
			return nil
		}
	}
	return nil
}

// flushTries is how often an index is brought up to date before it is written.
const flushTries = 3

// ID returns the vault's ID, 32 hexadecimal digits.
func (v *Vault) ID() string { return v.conf.ID }

// ShortID returns the first 8 digits of the ID.
func (v *Vault) ShortID() string { return v.conf.ID[:8] }

// ChunkSize returns the size of a chunk in bytes.
func (v *Vault) ChunkSize() int { return v.conf.ChunkSize }

// Print returns the fingerprint of the vault's data key, 32 hexadecimal digits: who has put another
// vault in its place cannot make one of the same.
func (v *Vault) Print() string { return hex.EncodeToString(v.sec.print[:16]) }

// Known returns what a host should remember of the vault.
func (v *Vault) Known(ctx context.Context) (Known, error) {
	head, err := v.journal.Remember(ctx)
	if err != nil {
		return Known{}, fmt.Errorf("see what to remember of the vault: %w", err)
	}
	return Known{ID: v.ID(), Print: v.Print(), Seen: &head}, nil
}

func (k *Known) checkID(id string) error {
	if k == nil || k.ID == "" || k.ID == id {
		return nil
	}
	return fmt.Errorf("%w: vault %s was here, vault %s is", ErrChanged, k.ID, id)
}

func (k *Known) checkPrint(print string) error {
	if k == nil || k.Print == "" || k.Print == print {
		return nil
	}
	return fmt.Errorf("%w: the fingerprint of its data key was %s, and is %s", ErrChanged, k.Print, print)
}

// view lets f look at the state as of now. f must not keep it, nor call the vault.
func (v *Vault) view(ctx context.Context, f func(*state.State) error) error {
	if err := v.journal.Read(ctx); err != nil {
		return fmt.Errorf("read the vault's log: %w", err)
	}
	return v.journal.View(ctx, f)
}

// Info is a summary of what is stored.
type Info struct {
	ID          string    `json:"id"`
	Print       string    `json:"print"` // fingerprint of the data key
	Format      string    `json:"format"`
	ChunkSize   int       `json:"chunk_size"` // bytes
	Created     time.Time `json:"created"`
	Points      int       `json:"points"`
	Deleted     int       `json:"deleted_points"` // that can still be brought back; not among Points
	Packs       int       `json:"packs"`
	StoredBytes int64     `json:"stored_bytes"`  // of packs
	LogicalSize int64     `json:"logical_bytes"` // used bytes of all disks of all points
	Keys        int       `json:"keys"`
	Entry       string    `json:"entry"` // the newest of the log
}

// Info sums up the vault.
func (v *Vault) Info(ctx context.Context) (Info, error) {
	info := Info{ID: v.conf.ID, Print: v.Print(), Format: v.conf.Format, ChunkSize: v.conf.ChunkSize,
		Created: v.conf.Created}
	points, err := v.Summaries(ctx, nil)
	if err != nil {
		return info, err
	}
	info.Points = len(points)
	for _, p := range points {
		for _, d := range p.Disks {
			info.LogicalSize += d.Used
		}
	}
	err = v.journal.View(ctx, func(st *state.State) error {
		c := st.Counters()
		info.Packs, info.StoredBytes, info.Entry = int(c.Packs), int64(c.Bytes), st.At().String()
		info.Deleted = int(c.Points) - info.Points
		return nil
	})
	if err != nil {
		return info, err
	}
	slots, err := v.slots(ctx)
	info.Keys = len(slots.good)
	return info, err
}
