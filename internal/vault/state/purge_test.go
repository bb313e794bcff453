package state_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/vault/log"
	"github.com/holdfast-vm/holdfast/internal/vault/state"
)

// A model of what points need. A point has contents at places; a content may have several copies,
// each a slot of a pack. What a point has from a base at the same place it inherits; everything
// else it stores without looking, or uses a copy that is there, which is shared from then on.
type model struct {
	*vault
	rng    *rand.Rand
	ctx    context.Context
	next   uint64
	points map[state.ID]map[int]use
	alive  []state.ID
	copies map[string][]slot   // of a content
	shared map[string]bool     // contents of which a copy was ever shared
	twice  map[string]bool     // contents that came to one place from two sides
	origin map[string]state.ID // of content at place: who brought it
	walks  int
	voids  int
}

// use is a content at a place, with who brought it there.
type use struct {
	content string
	by      state.ID
}

type slot struct {
	pack log.ObjectID
	bit  int
}

const places = 5

func newModel(t *testing.T, seed uint64) *model {
	return &model{vault: newVault(t), rng: rand.New(rand.NewPCG(seed, 77)), ctx: context.Background(),
		points: map[state.ID]map[int]use{}, copies: map[string][]slot{}, shared: map[string]bool{},
		twice: map[string]bool{}, origin: map[string]state.ID{}}
}

func (m *model) id() (id state.ID) {
	m.next++
	binary.BigEndian.PutUint64(id[:], m.next)
	id[15] = byte(m.rng.Uint32())
	return id
}

// addBit sets the bit of a slot.
func addBit(cs *[]state.Count, s slot) {
	for i := range *cs {
		if c := &(*cs)[i]; c.Pack == s.pack {
			for len(c.Shared) <= s.bit/8 {
				c.Shared = append(c.Shared, 0)
			}
			c.Shared[s.bit/8] |= 1 << (s.bit % 8)
			return
		}
	}
	*cs = append(*cs, state.Count{Pack: s.pack})
	addBit(cs, s)
}

func has(bits []byte, i int) bool { return i/8 < len(bits) && bits[i/8]>>(i%8)&1 == 1 }

// commit adds a point on up to two bases.
func (m *model) commit() {
	p := state.Point{ID: m.id(), Time: int64(m.next), Finds: []string{fmt.Sprint(m.rng.IntN(3))}}
	for range m.rng.IntN(7) {
		if len(m.alive) > 0 && len(p.Bases) < 2 {
			if b := m.alive[m.rng.IntN(len(m.alive))]; !slices.Contains(p.Bases, b) {
				p.Bases = append(p.Bases, b)
			}
		}
	}
	var session log.Session
	copy(session[:], p.ID[:])
	pack := log.Object{ID: log.NewObjectID(log.Volume{}, session, 1), Kind: log.Pack, Size: 1}
	c := state.Commit{Session: session, Points: []state.Point{p}}
	has, slots := map[int]use{}, 0
	for place := range places {
		if place == 4 && m.rng.IntN(2) == 0 {
			continue
		}
		if len(p.Bases) > 0 && m.rng.IntN(10) < 6 {
			if u, ok := m.points[p.Bases[m.rng.IntN(len(p.Bases))]][place]; ok {
				has[place] = u
				continue
			}
		}
		u := m.content(p.Bases, place, p.ID)
		has[place] = u
		if u.by != p.ID {
			continue
		}
		if there := m.copies[u.content]; len(there) > 0 && m.rng.IntN(3) == 0 {
			addBit(&c.Counts, there[m.rng.IntN(len(there))])
			m.shared[u.content] = true
			continue
		}
		m.copies[u.content] = append(m.copies[u.content], slot{pack.ID, slots})
		slots++
	}
	if slots > 0 {
		c.Added = []log.Object{pack}
	}
	m.must("commit", c.Check(m.ctx, m.State))
	m.add(c.Op())
	m.points[p.ID] = has
	m.alive = append(m.alive, p.ID)
}

// content returns something to store at a place: it is inherited where a base has the same there.
func (m *model) content(bases []state.ID, place int, by state.ID) use {
	c := fmt.Sprint("once ", m.next, place)
	if m.rng.IntN(2) == 0 {
		c = fmt.Sprint("often ", m.rng.IntN(12))
	}
	for _, b := range bases {
		if u := m.points[b][place]; u.content == c {
			return u
		}
	}
	k := fmt.Sprint(c, " at ", place)
	if _, there := m.origin[k]; there {
		m.twice[c] = true
	}
	m.origin[k] = by
	return use{c, by}
}

func (m *model) must(what string, err error) {
	m.t.Helper()
	if err != nil {
		m.t.Fatalf("%s: %v", what, err)
	}
}

// purge purges some points at once.
func (m *model) purge() {
	p := state.Purge{}
	for range 1 + m.rng.IntN(3) {
		if len(m.alive) == 0 {
			break
		}
		i := m.rng.IntN(len(m.alive))
		p.Points = append(p.Points, state.Purged{ID: m.alive[i]})
		m.alive = slices.Delete(m.alive, i, i+1)
	}
	if len(p.Points) == 0 {
		return
	}
	m.must("purge", p.Check(m.ctx, m.State, 0))
	m.add(p.Op())
}

// walk returns what a collector says that walks a few places of the first pending purges.
func (m *model) walk() (state.Freed, bool) {
	var f state.Freed
	var pending []state.Pending
	m.must("pending", m.Pending(m.ctx, func(p state.Pending) bool {
		pending = append(pending, p)
		return len(pending) < 1+m.rng.IntN(3)
	}))
	for i, p := range pending {
		from := 0
		if p.Cursor != nil {
			from = int(p.Cursor[0])
		}
		to := from + 1 + m.rng.IntN(places)
		if i < len(pending)-1 {
			to = places
		}
		near, err := m.Neighbours(m.ctx, p.ID, p.At)
		m.must("neighbours", err)
		for place := from; place < min(to, places); place++ {
			u, ok := m.points[p.ID][place]
			if ok && !slices.ContainsFunc(near, func(q state.Point) bool {
				return m.points[q.ID][place].content == u.content
			}) {
				m.freeOne(&f, u.content)
			}
		}
		w := state.Walk{Point: p.ID, At: p.At, From: p.Cursor, To: []byte{byte(to)}, Done: to >= places}
		f.Walk = append(f.Walk, w)
	}
	return f, len(pending) > 0
}

// freeOne adds one copy of a content that is neither freed nor shared, if there is one.
func (m *model) freeOne(f *state.Freed, content string) {
	for _, s := range m.copies[content] {
		shared, freed, err := m.Bits(m.ctx, s.pack)
		m.must("bits", err)
		said := slices.ContainsFunc(f.Slots, func(c state.Count) bool {
			return c.Pack == s.pack && has(c.Shared, s.bit)
		})
		if !said && !has(shared, s.bit) && !has(freed, s.bit) {
			addBit(&f.Slots, s)
			return
		}
	}
}

// mark returns what a full mark says: all copies of what no point has, be it purged and not walked.
func (m *model) mark() state.Freed {
	f := state.Freed{FromMark: true, Mark: m.At(), MarkAt: m.Count(), Last: m.LastCondemn()}
	needed := map[string]bool{}
	for _, id := range m.there() {
		for _, u := range m.points[id] {
			needed[u.content] = true
		}
	}
	for _, c := range slices.Sorted(maps.Keys(m.copies)) {
		if !needed[c] {
			for _, s := range m.copies[c] {
				addBit(&f.Slots, s)
			}
		}
	}
	return f
}

// there returns the points that live, and the purged ones that were not walked to the end.
func (m *model) there() []state.ID {
	all := slices.Clone(m.alive)
	m.must("pending", m.Pending(m.ctx, func(p state.Pending) bool {
		all = append(all, p.ID)
		return true
	}))
	return all
}

// say appends what a collector said, unless it is void by now.
func (m *model) say(f state.Freed) {
	err := f.Check(m.ctx, m.State)
	switch {
	case err == nil:
		m.add(f.Op())
		m.walks++
		if again := f; !f.FromMark {
			m.want("say it twice", again.Check(m.ctx, m.State), state.ErrVoid)
		}
	case errors.Is(err, state.ErrVoid) || errors.Is(err, state.ErrNoChange):
		m.voids++
	default:
		m.t.Fatal(err)
	}
}

// judge demands that every content that a living point has is stored, and, where nothing was shared
// and all purges were walked, that just so many copies are left as points brought it that are still
// needed.
func (m *model) judge(seed uint64, settled bool) {
	m.t.Helper()
	brought := map[string]map[string]bool{}
	for _, id := range m.alive {
		for place, u := range m.points[id] {
			if brought[u.content] == nil {
				brought[u.content] = map[string]bool{}
			}
			brought[u.content][fmt.Sprintf("%x %d", u.by, place)] = true
		}
	}
	for c, copies := range m.copies {
		left := 0
		for _, s := range copies {
			if _, freed, err := m.Bits(m.ctx, s.pack); err != nil {
				m.t.Fatal(err)
			} else if !has(freed, s.bit) {
				left++
			}
		}
		need := len(brought[c])
		if left == 0 && need > 0 {
			m.t.Fatalf("seed %d: %q is needed and freed", seed, c)
		}
		if settled && !m.shared[c] && !m.twice[c] && left != need {
			m.t.Fatalf("seed %d: %d copies of %q are left, %d are needed", seed, left, c, need)
		}
	}
}

// What purges free, walked in pieces by two who do not know of each other and crash, with full
// marks between: everything that no living point needs, and nothing that one does.
func TestPurgesFreeWhatNobodyNeeds(t *testing.T) {
	walks, voids, seeds := 0, 0, 120
	if n, err := strconv.Atoi(os.Getenv("HOLDFAST_STATE_SEEDS")); err == nil {
		seeds = n
	}
	for seed := range uint64(seeds) {
		m := newModel(t, seed)
		var said [2]*state.Freed // what two collectors are about to say
		var marked *state.Freed
		for range 60 {
			switch m.rng.IntN(8) {
			case 0, 1, 2:
				m.commit()
			case 3:
				m.purge()
			case 4, 5:
				who := m.rng.IntN(2)
				if f := said[who]; f != nil {
					said[who] = nil
					if m.rng.IntN(5) > 0 { // otherwise he has crashed
						m.say(*f)
					}
				} else if f, ok := m.walk(); ok {
					said[who] = &f
				}
			case 6:
				if marked == nil {
					f := m.mark()
					marked = &f
				} else {
					m.say(*marked)
					marked = nil
				}
			}
			m.judge(seed, false)
		}
		m.settle()
		m.judge(seed, true)
		m.requireLinks(seed)
		walks, voids = walks+m.walks, voids+m.voids
	}
	if voids < seeds/4 || walks < 3*seeds {
		t.Errorf("%d walks and %d that were void: this tries too little", walks, voids)
	}
}

// settle walks all that is pending.
func (m *model) settle() {
	for f, ok := m.walk(); ok; f, ok = m.walk() {
		m.say(f)
	}
}

// requireLinks demands that links are the same from both sides, that empty nodes stand only where
// two points at least hang on them, and that nothing is left once all points are purged.
func (m *model) requireLinks(seed uint64) {
	m.t.Helper()
	alive := map[state.ID]bool{}
	for _, id := range m.alive {
		alive[id] = true
	}
	for id := range m.points {
		children, err := m.Children(m.ctx, id)
		m.must("children", err)
		bases, err := m.Bases(m.ctx, id)
		m.must("bases", err)
		if !alive[id] && len(children) == 1 || !alive[id] && len(children) == 0 && len(bases) > 0 {
			m.t.Fatalf("seed %d: on the empty node %x hang %d points", seed, id, len(children))
		}
		for _, c := range children {
			of, err := m.Bases(m.ctx, c)
			m.must("bases", err)
			if !slices.Contains(of, id) {
				m.t.Fatalf("seed %d: %x hangs on %x, and does not know", seed, c, id)
			}
		}
		for _, b := range bases {
			of, err := m.Children(m.ctx, b)
			m.must("children", err)
			if !slices.Contains(of, id) {
				m.t.Fatalf("seed %d: %x hangs on %x, which does not know", seed, id, b)
			}
		}
	}
	for len(m.alive) > 0 {
		m.purge()
	}
	m.settle()
	for id := range m.points {
		if near, err := m.Neighbours(m.ctx, id, m.Count()); err != nil || len(near) > 0 {
			m.t.Fatalf("seed %d: all points are purged, and %x has %d neighbours: %v", seed, id, len(near), err)
		}
		if children, err := m.Children(m.ctx, id); err != nil || len(children) > 0 {
			m.t.Fatalf("seed %d: all points are purged, and on %x hang %d: %v", seed, id, len(children), err)
		}
	}
	m.judge(seed, true)
}
