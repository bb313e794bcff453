package vault

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/holdfast-vm/holdfast/internal/blob"
	"github.com/holdfast-vm/holdfast/internal/vault/chunk"
	"github.com/holdfast-vm/holdfast/internal/vault/index"
	"github.com/holdfast-vm/holdfast/internal/vault/pack"
	"github.com/holdfast-vm/holdfast/internal/vault/tree"
)

// maxCachedNodes bounds the node cache: 2 KiB each.
const maxCachedNodes = 2048

// nodeCache keeps recently read tree nodes.
type nodeCache struct {
	mu    sync.Mutex
	nodes map[chunk.ID]*tree.Node
}

func newNodeCache() *nodeCache { return &nodeCache{nodes: make(map[chunk.ID]*tree.Node)} }

func (c *nodeCache) get(id chunk.ID) *tree.Node {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.nodes[id]
}

func (c *nodeCache) put(id chunk.ID, n *tree.Node) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.nodes) >= maxCachedNodes {
		for k := range c.nodes {
			delete(c.nodes, k)
			break
		}
	}
	c.nodes[id] = n
}

// Node reads a tree node. It implements tree.Reader.
func (v *Vault) Node(ctx context.Context, id chunk.ID, level int) (*tree.Node, error) {
	n, err := v.node(ctx, id, level)
	if err == nil || !damage(err) {
		return n, err
	}
	if more, lookErr := v.lookWider(ctx); lookErr != nil || !more {
		return nil, errors.Join(err, lookErr)
	}
	return v.node(ctx, id, level)
}

func (v *Vault) node(ctx context.Context, id chunk.ID, level int) (*tree.Node, error) {
	if n := v.nodes.get(id); n != nil && n.Level == level {
		return n, nil
	}
	raw := make([]byte, tree.MaxNodeSize)
	raw, err := v.readPlaces(ctx, id, raw)
	if err != nil {
		return nil, fmt.Errorf("read tree node %s: %w", id, err)
	}
	n, err := tree.Parse(raw, level)
	if err != nil {
		return nil, fmt.Errorf("read tree node %s: %w: %v", id, ErrCorrupt, err)
	}
	v.nodes.put(id, n)
	return n, nil
}

// readAny returns the plain bytes of a chunk or node in buf, which must be large enough, from the first place that is whole. Damage in all of them, or
// no place at all, is ErrCorrupt.
func (v *Vault) readAny(ctx context.Context, id chunk.ID, buf []byte) ([]byte, error) {
	plain, err := v.readPlaces(ctx, id, buf)
	if err == nil || !damage(err) {
		return plain, err
	}
	if more, lookErr := v.lookWider(ctx); lookErr != nil || !more {
		return nil, errors.Join(err, lookErr)
	}
	return v.readPlaces(ctx, id, buf)
}

// find returns a place of id.
func (v *Vault) find(ctx context.Context, id chunk.ID) (index.Loc, bool, error) {
	loc, found, err := v.index.Find(ctx, id, nil)
	if err != nil || found {
		return loc, found, err
	}
	if more, err := v.lookWider(ctx); err != nil || !more {
		return loc, false, err
	}
	return v.index.Find(ctx, id, nil)
}

// lookWider has the index list all packs, unless it has done so already, and reports whether it may know more now: a segment may be missing, or be of an
// older version, which wrote few.
func (v *Vault) lookWider(ctx context.Context) (more bool, err error) {
	if v.index.Listed() {
		return false, nil
	}
	look := func() (any, error) { return nil, v.index.Refresh(context.WithoutCancel(ctx)) }
	select {
	case res := <-v.wider.DoChan("", look):
		if res.Err != nil {
			return false, fmt.Errorf("look for what was not found: %w", res.Err)
		}
		return true, nil
	case <-ctx.Done():
		return false, ctx.Err()
	}
}

func (v *Vault) readPlaces(ctx context.Context, id chunk.ID, buf []byte) ([]byte, error) {
	locs, err := v.index.FindAll(ctx, id)
	if err != nil {
		return nil, err
	}
	var why error = fmt.Errorf("%w: %s is in no pack", ErrCorrupt, id)
	codec := codecs.Get().(*chunk.Codec)
	defer codecs.Put(codec)
	for _, l := range locs {
		if int(l.Plain) > len(buf) {
			why = fmt.Errorf("%w: %s has %d bytes", ErrCorrupt, id, l.Plain)
			continue
		}
		err := v.readOne(ctx, l, buf[:l.Plain], codec)
		if err == nil {
			return buf[:l.Plain], nil
		}
		if !damage(err) {
			return nil, err
		}
		why = fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	return nil, why
}

// damage reports whether err says that bytes are missing or wrong, as opposed to a fault of access.
func damage(err error) bool {
	return errors.Is(err, pack.ErrCorrupt) || errors.Is(err, chunk.ErrCorrupt) || errors.Is(err, ErrCorrupt) || errors.Is(err, blob.ErrNotExist)
}

// codecs are decoders for single reads; levels do not matter to them.
var codecs = sync.Pool{New: func() any { return chunk.NewCodec(chunk.Fast) }}

func (v *Vault) readOne(ctx context.Context, l index.Loc, plain []byte, codec *chunk.Codec) error {
	sealed := make([]byte, l.Stored)
	if err := v.reader.ReadSealed(ctx, l.Ref, sealed, int64(l.Offset)); err != nil {
		return err
	}
	encoded, err := v.reader.Unseal(l.Ref, &l.Entry, sealed)
	if err != nil {
		return err
	}
	return codec.Decode(plain, encoded, l.Encoding)
}
