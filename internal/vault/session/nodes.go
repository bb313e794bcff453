package session

import (
	"context"
	"fmt"
	"sync/atomic"

	"github.com/holdfast-vm/holdfast/internal/vault/chunk"
	"github.com/holdfast-vm/holdfast/internal/vault/pack"
	"github.com/holdfast-vm/holdfast/internal/vault/tree"
)

// Node implements tree.Reader: it knows those nodes too that are in no finished pack yet.
func (s *Session) Node(ctx context.Context, id chunk.ID, level int) (*tree.Node, error) {
	if n := s.claims.nodeOf(id); n != nil && n.Level == level {
		return n, nil
	}
	return s.room.Content.Node(ctx, id, level)
}

// nodeWriter stores tree nodes and counts the bytes that they take.
type nodeWriter struct {
	*Session
	added *atomic.Int64
}

// PutNode implements tree.Writer.
func (n nodeWriter) PutNode(ctx context.Context, node *tree.Node) (chunk.ID, error) {
	var buf [tree.MaxNodeSize]byte
	raw := node.Append(buf[:0])
	id := n.nodeID(raw)
	if found, err := n.have(ctx, id); err != nil || found {
		return id, err
	}
	keep := *node
	w := n.nodes.borrow()
	e, err := n.append(w, pack.Node, id, len(raw), raw, chunk.Plain, &keep)
	if err != nil {
		return id, err
	}
	n.room.Content.Remember(id, &keep)
	n.added.Add(int64(e.Stored) + pack.RowSize)
	n.nodes.giveBack(w)
	return id, nil
}

// nodeID returns the ID of a node or a manifest.
func (s *Session) nodeID(raw []byte) chunk.ID {
	h := s.hashers.Get().(*chunk.Hasher)
	defer s.hashers.Put(h)
	return h.ID(raw)
}

// append appends what was claimed to a pack. After an error the session is over: what the pack held
// is lost.
func (s *Session) append(w *pack.Writer, kind pack.Kind, id chunk.ID, plain int, encoded []byte, enc chunk.Encoding,
	node *tree.Node) (pack.Entry, error) {
	at := place{pack: w.ID(), slot: uint32(w.Len())}
	e, err := w.Append(s.ctx, kind, id, plain, encoded, enc)
	if err != nil {
		s.claims.drop(id)
		return e, s.fail(fmt.Errorf("fill pack %s: %w", w.ID(), err))
	}
	s.claims.put(id, at, node)
	return e, nil
}
