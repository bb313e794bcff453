package durable

import (
	"maps"
	"math/rand/v2"
	"slices"
)

// blockSize is the unit in which bytes that were not synced survive or not.
const blockSize = 4096

// node is a file or directory, with what is certain to survive beside what is there now.
type node struct {
	dir bool

	// Of a file.
	data   []byte
	synced int // bytes of data that survive for certain
	links  int // names in the tree as it is now
	held   bool

	// Of a directory.
	now     map[string]*node
	safe    map[string]*node
	pending []*change // from safe to now, in order
}

// change is one name set or removed and not synced.
type change struct {
	dir   *node
	name  string
	to    *node   // nil: removed
	needs *change // the other half of a rename: the old name goes only if the new one is there
}

func newDir() *node {
	return &node{dir: true, now: map[string]*node{}, safe: map[string]*node{}}
}

// release lets go of what a process that was killed had open.
func (n *node) release() {
	n.held = false
	for _, child := range n.now {
		child.release()
	}
}

func (n *node) info() Info {
	return Info{Size: int64(len(n.data)), Dir: n.dir, Links: n.links}
}

// change lets a name of a directory lead to another node, or with nil to none.
func (n *node) change(name string, to *node, needs *change) *change {
	if old := n.now[name]; old != nil {
		old.links--
	}
	delete(n.now, name)
	if to != nil {
		n.now[name] = to
		to.links++
	}
	ch := &change{dir: n, name: name, to: to, needs: needs}
	n.pending = append(n.pending, ch)
	return ch
}

// settle makes a change certain, and with it the earlier ones of the same name and what it needs.
func (ch *change) settle() {
	if ch.needs != nil && slices.Contains(ch.needs.dir.pending, ch.needs) {
		ch.needs.settle()
	}
	var rest []*change
	last := slices.Index(ch.dir.pending, ch)
	for i, p := range ch.dir.pending {
		if i > last || p.name != ch.name {
			rest = append(rest, p)
		}
	}
	ch.dir.pending = rest
	ch.apply(ch.dir.safe)
}

func (ch *change) apply(names map[string]*node) {
	if ch.to == nil {
		delete(names, ch.name)
	} else {
		names[ch.name] = ch.to
	}
}

// AfterCrash returns what a machine might find when its power comes back: all that was synced, and
// of the rest every name set or removed and every block of 4 KiB by chance; a block may also have
// been written in part. It may be called at any time, and many times, and leaves c alone. The new
// file system never loses power, unless it is told to by [Crashable.CrashAt], and its disk has
// room.
func (c *Crashable) AfterCrash(rng *rand.Rand) *Crashable {
	c.mu.Lock()
	defer c.mu.Unlock()
	odds := []float64{0, 0.1, 0.5, 0.9, 1}
	s := &survivor{
		rng:     rng,
		odds:    odds[rng.IntN(len(odds))],
		changes: map[*change]bool{},
		nodes:   map[*node]*node{},
	}
	after := NewCrashable(Never)
	after.noLinks = c.noLinks
	after.root = s.dir(c.root)
	return after
}

// survivor decides what is still there after a crash.
type survivor struct {
	rng     *rand.Rand
	odds    float64 // that something not synced is still there
	changes map[*change]bool
	nodes   map[*node]*node
}

func (s *survivor) lucky() bool { return s.rng.Float64() < s.odds }

func (s *survivor) survives(ch *change) bool {
	kept, decided := s.changes[ch]
	if !decided {
		kept = s.lucky() && (ch.needs == nil || !slices.Contains(ch.needs.dir.pending, ch.needs) ||
			s.survives(ch.needs))
		s.changes[ch] = kept
	}
	return kept
}

// dir returns the directory with the names that survive and all below them.
func (s *survivor) dir(n *node) *node {
	names := maps.Clone(n.safe)
	for _, ch := range n.pending {
		if s.survives(ch) {
			ch.apply(names)
		}
	}
	after := newDir()
	for _, name := range slices.Sorted(maps.Keys(names)) {
		child := s.node(names[name])
		child.links++
		after.now[name], after.safe[name] = child, child
	}
	return after
}

func (s *survivor) node(n *node) *node {
	if after := s.nodes[n]; after != nil {
		return after
	}
	var after *node
	if n.dir {
		after = s.dir(n)
	} else {
		data := s.bytes(n)
		after = &node{data: data, synced: len(data)}
	}
	s.nodes[n] = after
	return after
}

// bytes returns a file's bytes: those synced, and then blocks that are there, or zero, or there in
// part, up to a size that may have survived or not.
func (s *survivor) bytes(n *node) []byte {
	size := n.synced
	if loose := len(n.data) - n.synced; loose > 0 {
		if s.lucky() {
			size = len(n.data)
		} else {
			size += s.rng.IntN(loose)
		}
	}
	data := make([]byte, size)
	copy(data, n.data[:n.synced])
	for from := n.synced; from < size; {
		to := min(size, (from/blockSize+1)*blockSize)
		switch {
		case s.lucky():
			copy(data[from:to], n.data[from:to])
		case s.rng.IntN(2) == 0:
			copy(data[from:to], n.data[from:from+s.rng.IntN(to-from)])
		}
		from = to
	}
	return data
}
