package gc_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	mrand "math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-vm/holdfast/internal/blob"
	"github.com/holdfast-vm/holdfast/internal/point"
	"github.com/holdfast-vm/holdfast/internal/vault/chunk"
	"github.com/holdfast-vm/holdfast/internal/vault/content"
	"github.com/holdfast-vm/holdfast/internal/vault/gc"
	"github.com/holdfast-vm/holdfast/internal/vault/index"
	"github.com/holdfast-vm/holdfast/internal/vault/journal"
	"github.com/holdfast-vm/holdfast/internal/vault/log"
	"github.com/holdfast-vm/holdfast/internal/vault/pack"
	"github.com/holdfast-vm/holdfast/internal/vault/row"
	"github.com/holdfast-vm/holdfast/internal/vault/state"
	"github.com/holdfast-vm/holdfast/internal/vault/tree"
)

var (
	dataKey = [32]byte{1, 2, 3}
	vaultID = [16]byte{6}
	secret  = pack.NewSecret(dataKey)
)

// world is what a vault should hold, and its clock.
type world struct {
	mu     sync.Mutex // guards what follows
	now    time.Time
	points map[state.ID]*modelPoint // that live
}

// modelPoint is what a point must hold.
type modelPoint struct {
	bases []state.ID
	disks []modelDisk
}

// modelDisk maps chunks to what is in them.
type modelDisk struct {
	line   row.Line
	chunks int64
	data   map[int64]string
}

func newWorld(t testing.TB) *world {
	return &world{now: time.Unix(1_700_000_000, 0), points: map[state.ID]*modelPoint{}}
}

func (w *world) clock() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.now
}

func (w *world) pass(d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.now = w.now.Add(d)
}

func stateKeys() *state.Keys {
	k, err := state.NewKeys(dataKey, vaultID)
	if err != nil {
		panic(err)
	}
	return k
}

func initVault(t testing.TB, s blob.Store) {
	t.Helper()
	if err := log.Init(t.Context(), s, stateKeys().Log()); err != nil {
		t.Fatal(err)
	}
}

// process is somebody who has the vault open.
type process struct {
	*gc.Vault
	w    *world
	src  *content.Source
	hash *chunk.Hasher
}

func (w *world) open(ctx context.Context, s blob.Store) (*process, error) {
	k := stateKeys()
	j, err := journal.Open(ctx, s, k, journal.Options{Log: log.Options{Now: w.clock}})
	if err != nil {
		return nil, err
	}
	p := &process{w: w, hash: chunk.NewHasher(dataKey)}
	p.Vault = &gc.Vault{ID: vaultID, Store: s, Journal: j, Secret: secret, Packs: pack.NewReader(secret, s),
		Trees: p.trees, Manifest: manifestOf}
	p.Index, err = index.Open(ctx, index.Source{Store: s, Secret: secret, Key: dataKey, Vault: vaultID, Packs: p})
	if err == nil {
		err = p.Index.Sync(ctx)
	}
	if err != nil {
		j.Close()
		return nil, err
	}
	p.src = content.New(content.Parts{Index: p.Index, Packs: p.Packs, ChunkKey: dataKey, ChunkSize: 256, Workers: 1,
		Look: p.look})
	p.Nodes = p.src
	return p, nil
}

// Since implements index.Packs.
func (p *process) Since(ctx context.Context, count uint64, do func(log.Object, uint64) bool) (upTo uint64, err error) {
	err = p.Journal.View(ctx, func(s *state.State) error {
		upTo = s.Count()
		return s.AddedSince(ctx, count, func(o log.Object, added uint64) bool {
			return o.Kind != log.Pack || do(o, added)
		})
	})
	return upTo, err
}

// Good implements index.Packs.
func (p *process) Good(ctx context.Context, ids []log.ObjectID) (good []bool, err error) {
	err = p.Journal.View(ctx, func(s *state.State) error {
		good = make([]bool, len(ids))
		for i, id := range ids {
			if _, good[i], err = s.Good(ctx, id); err != nil {
				return err
			}
		}
		return nil
	})
	return good, err
}

func (p *process) good(ctx context.Context, id log.ObjectID) (o log.Object, ok bool, err error) {
	err = p.Journal.View(ctx, func(s *state.State) error {
		o, ok, err = s.Good(ctx, id)
		return err
	})
	return o, ok, err
}

func (p *process) look(ctx context.Context) (bool, error) {
	if err := p.Journal.Read(ctx); err != nil {
		return false, err
	}
	return true, p.Index.Sync(ctx)
}

func (p *process) trees(ctx context.Context, pt *state.Point) ([]row.Tree, error) {
	r, err := row.Decode(pt.Manifest)
	if err != nil {
		return nil, err
	}
	return p.src.Trees(ctx, r, p.good)
}

func manifestOf(pt *state.Point) (chunk.ID, bool) {
	r, err := row.Decode(pt.Manifest)
	if err != nil || r.Inline != nil {
		return chunk.ID{}, false
	}
	return r.Manifest.ID, true
}

// spot is a place of a tree.
type spot struct {
	level  int // -1: a chunk
	number int64
}

// model is a tree, worked out.
type model struct {
	root chunk.ID
	ids  map[spot]chunk.ID
	raw  map[chunk.ID][]byte
}

func (p *process) model(d *modelDisk) *model {
	m := &model{ids: map[spot]chunk.ID{}, raw: map[chunk.ID][]byte{}}
	for n, v := range d.data {
		raw := []byte(fmt.Sprintf("%-100s", v))
		id := p.hash.ID(raw)
		m.ids[spot{-1, n}], m.raw[id] = id, raw
	}
	for level := range tree.Levels(d.chunks) {
		nodes := map[int64]*tree.Node{}
		for at, id := range m.ids {
			if at.level == level-1 {
				n := nodes[at.number/tree.FanOut]
				if n == nil {
					n = &tree.Node{Level: level}
					nodes[at.number/tree.FanOut] = n
				}
				n.Slots[at.number%tree.FanOut] = id
			}
		}
		for number, n := range nodes {
			raw := n.Append(nil)
			id := p.hash.ID(raw)
			m.ids[spot{level, number}], m.raw[id] = id, raw
			m.root = id
		}
	}
	return m
}

// session stores one point, with right counts.
type session struct {
	*process
	rng    *mrand.Rand
	ids    *journal.IDs
	w      *pack.Writer
	own    map[chunk.ID]uint32
	counts map[log.ObjectID][]byte
	// dedup says how often what is stored elsewhere is looked for, in 256ths; twice how often a row
	// is stored again that the pack has.
	dedup, twice int
}

func setBit(b []byte, i uint32) []byte {
	for len(b) <= int(i/8) {
		b = append(b, 0)
	}
	b[i/8] |= 1 << (i % 8)
	return b
}

func (s *session) use(ctx context.Context, kind pack.Kind, id chunk.ID, raw []byte) error {
	if slot, ok := s.own[id]; ok && s.rng.IntN(256) >= s.twice {
		s.counts[s.w.ID()] = setBit(s.counts[s.w.ID()], slot)
		return nil
	}
	if s.rng.IntN(256) < s.dedup {
		loc, ok, err := s.Index.Find(ctx, id, nil)
		if err != nil {
			return err
		}
		if ok {
			s.counts[loc.Pack.ID] = setBit(s.counts[loc.Pack.ID], loc.Slot)
			return nil
		}
	}
	s.own[id] = uint32(s.w.Len())
	_, err := s.w.Append(ctx, kind, id, len(raw), raw, chunk.Plain)
	return err
}

// put stores a point on top of base, if that is not zero. errRetry says that something was
// collected meanwhile.
func (p *process) put(ctx context.Context, rng *mrand.Rand, base state.ID, disks []modelDisk, dedup, twice int) (
	id state.ID, err error,
) {
	s := &session{process: p, rng: rng, ids: p.Journal.NewIDs(), own: map[chunk.ID]uint32{},
		counts: map[log.ObjectID][]byte{}, dedup: dedup, twice: twice}
	s.w = p.Secret.Begin(p.Store, vaultID, s.ids.Next())
	defer s.w.Abort()
	p.w.mu.Lock()
	of := p.w.points[base]
	p.w.mu.Unlock()
	rand.Read(id[:])
	pt := state.Point{ID: id, Time: p.w.clock().UnixMilli()}
	if of != nil {
		pt.Bases = []state.ID{base}
	}
	m := row.Manifest{Point: point.RecoveryPoint{ID: point.ID(fmt.Sprintf("%x", id[:])), Time: p.w.clock()}}
	for i := range disks {
		d := &disks[i]
		if d.line == (row.Line{}) {
			rand.Read(d.line[:])
		}
		tr, err := s.disk(ctx, d, of)
		if err != nil {
			return id, err
		}
		m.Trees = append(m.Trees, tr)
	}
	if pt.Manifest, err = s.manifest(ctx, &m); err != nil {
		return id, err
	}
	return id, s.commit(ctx, pt, disks)
}

func (s *session) disk(ctx context.Context, d *modelDisk, of *modelPoint) (row.Tree, error) {
	mine := s.model(d)
	inherited := map[spot]chunk.ID{}
	if of != nil {
		for i := range of.disks {
			if of.disks[i].line == d.line {
				maps.Copy(inherited, s.model(&of.disks[i]).ids)
			}
		}
	}
	spots := slices.SortedFunc(maps.Keys(mine.ids), func(a, b spot) int {
		if a.level != b.level {
			return a.level - b.level
		}
		return int(a.number - b.number)
	})
	for _, at := range spots {
		id := mine.ids[at]
		if inherited[at] == id {
			continue
		}
		kind := pack.Node
		if at.level < 0 {
			kind = pack.Data
		}
		if err := s.use(ctx, kind, id, mine.raw[id]); err != nil {
			return row.Tree{}, err
		}
	}
	return row.Tree{Line: d.line, Root: mine.root, Chunks: d.chunks}, nil
}

func (s *session) manifest(ctx context.Context, m *row.Manifest) ([]byte, error) {
	raw, err := row.EncodeManifest(m)
	if err != nil {
		return nil, err
	}
	r := row.Row{Point: row.Summary(&m.Point), Trees: m.Trees}
	r.Manifest = row.Place{Pack: s.w.ID(), Slot: uint32(s.w.Len())}
	r.Manifest.Entry, err = s.w.Append(ctx, pack.Manifest, s.hash.ID(raw), len(raw), raw, chunk.Plain)
	if err != nil {
		return nil, err
	}
	return r.Encode()
}

func (s *session) commit(ctx context.Context, pt state.Point, disks []modelDisk) error {
	o, entries, err := s.w.Commit(ctx)
	if err != nil {
		return err
	}
	op := state.Commit{Session: s.ids.Session, Added: []log.Object{o}, Points: []state.Point{pt}}
	for id, bits := range s.counts {
		op.Counts = append(op.Counts, state.Count{Pack: id, Shared: bits})
	}
	s.Index.Know(o, entries)
	_, err = s.Journal.Append(ctx, func(ctx context.Context, st *state.State) ([]log.Op, error) {
		if err := op.Check(ctx, st); err != nil {
			return nil, err
		}
		return []log.Op{op.Op()}, nil
	})
	if err != nil {
		s.Index.Forget(o.ID)
		return err
	}
	s.process.w.mu.Lock()
	defer s.process.w.mu.Unlock()
	s.process.w.points[pt.ID] = &modelPoint{bases: pt.Bases, disks: disks}
	return nil
}

// putAgain is put until nothing that it counted on was collected meanwhile.
func (p *process) putAgain(ctx context.Context, rng *mrand.Rand, base state.ID, disks []modelDisk, dedup, twice int) (
	state.ID, error,
) {
	for {
		id, err := p.put(ctx, rng, base, disks, dedup, twice)
		var lost *state.Lost
		if !errors.As(err, &lost) {
			return id, err
		}
		if len(lost.Bases) > 0 {
			base = state.ID{}
			for i := range disks {
				disks[i].line = row.Line{}
			}
		}
		dedup = 0
	}
}

func (p *process) purge(ctx context.Context, ids ...state.ID) error {
	_, err := p.Journal.Append(ctx, func(ctx context.Context, s *state.State) ([]log.Op, error) {
		op := state.Purge{}
		for _, id := range ids {
			op.Points = append(op.Points, state.Purged{ID: id})
		}
		if err := op.Check(ctx, s, 1<<60); err != nil {
			return nil, err
		}
		return []log.Op{op.Op()}, nil
	})
	if err == nil {
		p.w.mu.Lock()
		defer p.w.mu.Unlock()
		for _, id := range ids {
			delete(p.w.points, id)
		}
	}
	return err
}

// check reads every point that lives and compares it with what it must hold. It returns the IDs of
// all rows that are needed.
func (p *process) check(ctx context.Context) (needed map[chunk.ID]bool, err error) {
	if err := p.Journal.Read(ctx); err != nil {
		return nil, err
	}
	if err := p.Index.Sync(ctx); err != nil {
		return nil, err
	}
	var points []state.Point
	if err := p.Journal.View(ctx, func(s *state.State) error {
		points = nil
		return s.Points(ctx, func(pt state.Point) bool {
			points = append(points, pt)
			return true
		})
	}); err != nil {
		return nil, err
	}
	p.w.mu.Lock()
	want := maps.Clone(p.w.points)
	p.w.mu.Unlock()
	if len(points) != len(want) {
		return nil, fmt.Errorf("%d points, want %d", len(points), len(want))
	}
	needed = map[chunk.ID]bool{}
	for i := range points {
		if err := p.checkPoint(ctx, &points[i], want[points[i].ID], needed); err != nil {
			return nil, fmt.Errorf("point %x: %w", points[i].ID, err)
		}
	}
	return needed, nil
}

func (p *process) checkPoint(ctx context.Context, pt *state.Point, want *modelPoint, needed map[chunk.ID]bool) error {
	if want == nil {
		return errors.New("it should not be there")
	}
	r, err := row.Decode(pt.Manifest)
	if err != nil {
		return err
	}
	if _, err := p.src.Manifest(ctx, r, p.good); err != nil {
		return err
	}
	needed[r.Manifest.ID] = true
	for i := range want.disks {
		m := p.model(&want.disks[i])
		if m.root != r.Trees[i].Root {
			return errors.New("another root")
		}
		for id, raw := range m.raw {
			needed[id] = true
			if err := p.hasRow(ctx, id, raw); err != nil {
				return err
			}
		}
	}
	return nil
}

// hasRow reads a row from the store, not from any cache.
func (p *process) hasRow(ctx context.Context, id chunk.ID, raw []byte) error {
	all, err := p.Index.FindAll(ctx, id)
	if err != nil || len(all) == 0 {
		return fmt.Errorf("row %s: %d places, %w", id, len(all), err)
	}
	for _, l := range all {
		sealed := make([]byte, l.Stored)
		if err = p.Packs.ReadSealed(ctx, l.Pack, sealed, int64(l.Offset)); err != nil {
			continue
		}
		var got []byte
		if got, err = p.Packs.Unseal(&l.Entry, sealed); err == nil && bytes.Equal(got, raw) {
			return nil
		}
	}
	return fmt.Errorf("row %s: no place reads: %w", id, err)
}

// stored returns how many copies of each row good packs hold that are not freed.
func (p *process) stored(ctx context.Context) (map[chunk.ID]int, error) {
	all := map[chunk.ID]int{}
	var packs []state.Pack
	if err := p.Journal.View(ctx, func(s *state.State) error {
		packs = nil
		return s.EachPack(ctx, func(x state.Pack) bool {
			packs = append(packs, x)
			return true
		})
	}); err != nil {
		return nil, err
	}
	for _, x := range packs {
		if x.Object.Kind != log.Pack {
			continue
		}
		table, err := p.Secret.Table(ctx, p.Store, vaultID, x.Object)
		if err != nil {
			return nil, err
		}
		for slot := range table {
			if slot/8 >= len(x.Freed) || x.Freed[slot/8]>>(slot%8)&1 == 0 {
				all[table[slot].ID]++
			}
		}
	}
	return all, nil
}
