package content

import (
	"context"
	"fmt"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/holdfast-vm/holdfast/internal/vault/chunk"
	"github.com/holdfast-vm/holdfast/internal/vault/index"
	"github.com/holdfast-vm/holdfast/internal/vault/tree"
)

const (
	// nodeGap is how many bytes are read in vain, at most, rather than reading twice, where nodes
	// are wanted: they have two KiB, and often stand among chunks.
	nodeGap = 16 << 10
	// nodeReaders is how many reads of nodes are under way at once: what counts is how far the
	// store is.
	nodeReaders = 16
)

// ReadNodes reads tree nodes of one level at places that an index told, in the order of the store.
// The answers stand in the order of the places: a node, or why it cannot be read. A node that is
// not whole at its place is read from any other.
func (s *Source) ReadNodes(ctx context.Context, at []index.Loc, level int) ([]*tree.Node, []error) {
	nodes, errs := make([]*tree.Node, len(at)), make([]error, len(at))
	items := make([]placed, len(at))
	for i := range at {
		items[i] = placed{int64(i), at[i]}
	}
	g := new(errgroup.Group)
	g.SetLimit(max(nodeReaders, s.p.Workers))
	for _, f := range plan(items, nodeGap) {
		g.Go(func() error {
			s.fetchNodes(ctx, f, level, func(i int64, n *tree.Node, err error) { nodes[i], errs[i] = n, err })
			return nil
		})
	}
	_ = g.Wait() // each node has its own error
	return nodes, errs
}

// plainNodes are buffers for the plain bytes of nodes.
var plainNodes = sync.Pool{New: func() any { return new([tree.MaxNodeSize]byte) }}

// fetchNodes reads a run of a pack.
func (s *Source) fetchNodes(ctx context.Context, f fetch, level int, done func(int64, *tree.Node, error)) {
	start := f.start()
	sealed := takeBuffer(int(f.end() - start))
	defer giveBuffer(sealed)
	whole := s.p.Packs.ReadSealed(ctx, f.items[0].loc.Pack, sealed.b, start)
	codec, plain := codecs.Get().(*chunk.Codec), plainNodes.Get().(*[tree.MaxNodeSize]byte)
	defer codecs.Put(codec)
	defer plainNodes.Put(plain)
	for i := range f.items {
		l, err := &f.items[i].loc, whole
		var n *tree.Node
		if err == nil {
			from := int64(l.Offset) - start
			n, err = s.openNode(l, sealed.b[from:from+int64(l.Stored)], plain[:], level, codec)
		}
		if err != nil && IsDamage(err) {
			n, err = s.Node(ctx, l.ID, level)
		}
		done(f.items[i].at, n, err)
	}
}

// openNode authenticates and parses a node.
func (s *Source) openNode(l *index.Loc, sealed, plain []byte, level int, codec *chunk.Codec) (*tree.Node, error) {
	if l.Plain > tree.MaxNodeSize {
		return nil, wrongSize(l.ID, l.Plain)
	}
	if err := s.open(&l.Entry, sealed, plain[:l.Plain], codec); err != nil {
		return nil, err
	}
	n, err := tree.Parse(plain[:l.Plain], level)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	return n, nil
}
