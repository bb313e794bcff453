package mount

import (
	"fmt"
	"hash/maphash"
	"sync"

	"github.com/holdfast-vm/holdfast/internal/files"
	"github.com/holdfast-vm/holdfast/internal/filesystem"
	"github.com/holdfast-vm/holdfast/internal/filesystem/volume"
)

// placing knows where each directory was seen first. A directory is in one place: were it shown in
// two, what goes through the mount would find 2^n paths to n directories, and the kernel would move
// it to and fro. It is safe for concurrent use.
type placing struct {
	seed maphash.Seed
	mu   sync.Mutex
	at   map[inoKey]placeKey
}

// placeKey is a name in a directory.
type placeKey struct {
	dir  inoKey
	name uint64 // hash
}

func newPlacing() *placing {
	return &placing{seed: maphash.MakeSeed(), at: map[inoKey]placeKey{}}
}

// root puts the top of a tree in its place, which no name leads to.
func (p *placing) root(n *node) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.at[keyOf(n.v, n.n)] = placeKey{}
}

// take puts a directory where it is seen now, and reports whether that is its place, or at least
// the directory that its place is in.
func (p *placing) take(parent *node, name string, child volume.Node) (here, near bool) {
	key, now := keyOf(parent.v, child), placeKey{keyOf(parent.v, parent.n), maphash.String(p.seed, name)}
	p.mu.Lock()
	defer p.mu.Unlock()
	first, known := p.at[key]
	if !known {
		p.at[key], first = now, now
	}
	return first == now, first.dir == now.dir
}

func keyOf(v *view, n volume.Node) inoKey { return inoKey{v.base[n.Volume], n.ID} }

// below returns the node of a directory that a name of n leads to, unless that is its second place
// or too deep.
func (n *node) below(name string, child volume.Node, id filesystem.ID) (*node, error) {
	if most := n.v.s.opts.Limits.Depth; n.depth >= most {
		return nil, fmt.Errorf("%q: %w", name,
			files.Over(files.LimitDepth, "more than %d directories are in each other", most))
	}
	if here, near := n.v.s.places.take(n, name, child); !here && !(near && n.isSpelling(id)) {
		return nil, fmt.Errorf("%w: %q is a second name of a directory", filesystem.ErrCorrupt, name)
	}
	return &node{v: n.v, n: child, depth: n.depth + 1}, nil
}

// isSpelling reports whether only one entry of n is the directory id, so that two names that lead
// to it are spellings of one, where case does not matter.
func (n *node) isSpelling(id filesystem.ID) bool {
	count := 0
	for e, err := range n.n.FS.ReadDir(n.n.ID) {
		if err != nil {
			return false
		}
		if e.ID == id {
			count++
		}
	}
	return count == 1
}
