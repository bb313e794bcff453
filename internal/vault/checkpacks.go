package vault

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sync/errgroup"

	"github.com/holdfast-vm/holdfast/internal/blob"
	"github.com/holdfast-vm/holdfast/internal/vault/chunk"
	"github.com/holdfast-vm/holdfast/internal/vault/log"
	"github.com/holdfast-vm/holdfast/internal/vault/pack"
	"github.com/holdfast-vm/holdfast/internal/vault/state"
)

// checkRead is how many bytes of a pack are read at once.
const checkRead = 2 << 20

// packs compares all good packs with what the log tells of them, and reads what is in them if
// asked.
func (c *checker) packs(ctx context.Context) error {
	objects, err := c.goodObjects(ctx)
	if err != nil {
		return err
	}
	for i := range objects {
		if objects[i].Kind == log.Pack {
			c.report.Packs++
			c.report.Bytes += int64(objects[i].Size)
		}
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(c.v.opts.Workers)
	for _, o := range objects {
		g.Go(func() error {
			err := c.object(gctx, o)
			c.mu.Lock()
			defer c.mu.Unlock()
			if c.done += int64(o.Size); c.o.Progress != nil && o.Kind == log.Pack {
				c.o.Progress(c.done, c.report.Bytes)
			}
			return err
		})
	}
	return g.Wait()
}

// goodObjects returns what is good by the log as it is now.
func (c *checker) goodObjects(ctx context.Context) (all []log.Object, err error) {
	err = c.v.view(ctx, func(st *state.State) error {
		return st.Packs(ctx, func(o log.Object) bool { all = append(all, o); return true })
	})
	return all, err
}

func (c *checker) object(ctx context.Context, o log.Object) error {
	var entries []pack.Entry
	var err error
	if o.Kind == log.Pack {
		entries, err = c.v.packs.Table(ctx, c.v.store, c.v.id, o)
	} else {
		err = c.size(ctx, &o)
	}
	if err != nil {
		return c.badObject(ctx, &o, err)
	}
	c.mu.Lock()
	c.report.Chunks += int64(len(entries))
	c.mu.Unlock()
	if !c.o.ReadData {
		return nil
	}
	return c.contents(ctx, &o, entries)
}

// size checks an object that is no pack.
func (c *checker) size(ctx context.Context, o *log.Object) error {
	info, err := c.v.store.Stat(ctx, o.Name())
	if err == nil && uint64(info.Size) != o.Size {
		err = fmt.Errorf("%w: it has %d bytes, %d were written", ErrCorrupt, info.Size, o.Size)
	}
	return err
}

// badObject reports that an object is damaged or missing, unless it was condemned meanwhile.
func (c *checker) badObject(ctx context.Context, o *log.Object, err error) error {
	if !isDamage(err) {
		return err
	}
	if err := c.v.journal.Read(ctx); err != nil {
		return err
	}
	if _, good, goodErr := c.v.goodPack(ctx, o.ID); goodErr != nil || !good {
		return goodErr
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if errors.Is(err, blob.ErrNotExist) {
		c.damage(o.Name(), "it is missing")
	} else {
		c.damage(o.Name(), "%v", err)
	}
	c.badPacks[o.ID], c.suspects[o.ID] = true, true
	return nil
}

// contents reads every row of a pack and checks that it is what its ID says.
func (c *checker) contents(ctx context.Context, o *log.Object, entries []pack.Entry) error {
	r := c.reader()
	defer c.readers.Put(r)
	for len(entries) > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, end := 1, entries[0].Offset+entries[0].Stored
		for n < len(entries) && entries[n].Offset+entries[n].Stored-entries[0].Offset <= checkRead {
			end = entries[n].Offset + entries[n].Stored
			n++
		}
		bad, err := r.check(ctx, o, entries[:n], int(end-entries[0].Offset))
		if err != nil {
			return err
		}
		if err := c.badRows(ctx, o, bad); err != nil {
			return err
		}
		entries = entries[n:]
	}
	return nil
}

// badRows reports damaged rows, unless their pack was condemned meanwhile.
func (c *checker) badRows(ctx context.Context, o *log.Object, bad []pack.Entry) error {
	if len(bad) == 0 {
		return nil
	}
	if err := c.v.journal.Read(ctx); err != nil {
		return err
	}
	if _, good, err := c.v.goodPack(ctx, o.ID); err != nil || !good {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range bad {
		c.damage(o.Name(), "bytes %d to %d are not what was written", e.Offset, e.Offset+e.Stored-1)
		c.bad[e.ID] = true
	}
	c.badPacks[o.ID] = true
	return nil
}

// reader returns one of the readers that are used again and again: small packs are many.
func (c *checker) reader() *packReader {
	if r, _ := c.readers.Get().(*packReader); r != nil {
		return r
	}
	return &packReader{v: c.v, chunks: chunk.NewHasher(c.v.sec.chunks), nodes: chunk.NewHasher(c.v.sec.nodes),
		codec: chunk.NewCodec(chunk.Fast), plain: make([]byte, c.v.conf.ChunkSize)}
}

// packReader checks runs of rows. It belongs to one goroutine.
type packReader struct {
	v             *Vault
	chunks, nodes *chunk.Hasher
	codec         *chunk.Codec
	sealed, plain []byte
}

// check returns those of neighbouring rows, of n bytes in all, that are damaged.
func (r *packReader) check(ctx context.Context, o *log.Object, entries []pack.Entry, n int) ([]pack.Entry, error) {
	if cap(r.sealed) < n {
		r.sealed = make([]byte, n)
	}
	sealed := r.sealed[:n]
	err := r.v.reader.ReadSealed(ctx, *o, sealed, int64(entries[0].Offset))
	if isDamage(err) {
		return entries, nil
	}
	if err != nil {
		return nil, err
	}
	var bad []pack.Entry
	for i := range entries {
		e := &entries[i]
		at := e.Offset - entries[0].Offset
		if !r.whole(e, sealed[at:at+e.Stored]) {
			bad = append(bad, *e)
		}
	}
	return bad, nil
}

func (r *packReader) whole(e *pack.Entry, sealed []byte) bool {
	if !e.SumOK(sealed) {
		return false
	}
	encoded, err := r.v.reader.Unseal(e, sealed)
	if err != nil {
		return false
	}
	if int(e.Plain) > len(r.plain) {
		r.plain = make([]byte, e.Plain)
	}
	hash := r.nodes
	if e.Kind == pack.Data {
		hash = r.chunks
	}
	plain := r.plain[:e.Plain]
	return r.codec.Decode(plain, encoded, e.Encoding) == nil && hash.ID(plain) == e.ID
}
