package main

import (
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/holdfast-vm/holdfast/internal/directio"
	"github.com/holdfast-vm/holdfast/internal/extent"
	"github.com/holdfast-vm/holdfast/internal/vault/chunk"
)

// realRoof does what a backup and a restore cannot do without, as they are done and no more: on
// all processors at once, which share memory, caches and clock, with every system call, and with
// what is written on the disk at the end. It has no index, no tree, no log, and forgets
// everything.
type realRoof struct {
	dir   string
	gcm   cipher.AEAD
	packs []*roofPack
	seen  [64]roofShard
	bytes int64 // of the image that are not holes
}

// roofShard is a part of what was seen, so that few wait for one another.
type roofShard struct {
	mu     sync.Mutex
	chunks map[chunk.ID]*roofChunk
}

// roofPack is what one worker writes.
type roofPack struct {
	file   *directio.File
	buf    []byte
	full   chan []byte
	free   chan []byte
	chunks []*roofChunk
}

const (
	roofSpan  = 4 << 20 // bytes of the image that a worker takes
	roofWrite = 1 << 20 // bytes that are written at once
)

func newRealRoof(dir string) (*realRoof, error) {
	block, err := aes.NewCipher(make([]byte, 32))
	if err != nil {
		return nil, err
	}
	gcm, err := cipher.NewGCM(block)
	r := &realRoof{dir: dir, gcm: gcm}
	for i := range r.seen {
		r.seen[i].chunks = make(map[chunk.ID]*roofChunk)
	}
	return r, err
}

func (r *realRoof) packName(i int) string { return filepath.Join(r.dir, fmt.Sprintf("roof.%d", i)) }

// close removes what was written.
func (r *realRoof) close() {
	for i, p := range r.packs {
		_ = p.file.Close()
		_ = os.Remove(r.packName(i))
	}
}

// backup returns the seconds that the image takes.
func (r *realRoof) backup(image string) (float64, error) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(2 * runtime.NumCPU())) // as holdfast does: most is in C
	start := time.Now()
	in, err := os.Open(image)
	if err != nil {
		return 0, err
	}
	defer in.Close()
	spans := make(chan extent.Extent)
	var g errgroup.Group
	for i := range runtime.NumCPU() {
		f, err := directio.Create(r.packName(i))
		if err != nil {
			return 0, err
		}
		p := &roofPack{file: f, full: make(chan []byte, 1), free: make(chan []byte, 2)}
		p.buf = directio.Buffer(roofWrite + 2*chunk.MaxSize)[:0]
		p.free <- directio.Buffer(roofWrite + 2*chunk.MaxSize)[:0]
		r.packs = append(r.packs, p)
		g.Go(p.write)
		g.Go(func() error { defer close(p.full); return r.work(in, p, spans) })
	}
	err = eachData(in, roofSpan, func(off, n int64) error {
		r.bytes += n
		spans <- extent.Extent{Off: off, Len: n}
		return nil
	})
	close(spans)
	err = errors.Join(err, g.Wait())
	return time.Since(start).Seconds(), err
}

// write writes what is full, and syncs it at the end.
func (p *roofPack) write() error {
	var off int64
	var failed error
	for b := range p.full {
		if failed == nil {
			_, failed = p.file.WriteAt(b, off)
		}
		off += int64(len(b))
		p.free <- b[:0]
	}
	return errors.Join(failed, p.file.Sync())
}

func (r *realRoof) work(in *os.File, p *roofPack, spans <-chan extent.Extent) error {
	hash, codec := chunk.NewHasher([32]byte{1}), chunk.NewCodec(chunk.Fast)
	buf := make([]byte, roofWrite)
	var failed error // the spans are taken even so: somebody hands them out
	for sp := range spans {
		for at := sp.Off; at < sp.End() && failed == nil; at += roofWrite {
			n := min(roofWrite, sp.End()-at)
			if _, err := in.ReadAt(buf[:n], at); err != nil {
				failed = fmt.Errorf("read %d bytes at offset %d: %w", n, at, err)
			}
			for o := int64(0); o < n && failed == nil; o += chunk.DefaultSize {
				failed = r.chunk(p, hash, codec, buf[o:min(o+chunk.DefaultSize, n)], at+o)
			}
		}
	}
	if len(p.buf) > 0 {
		p.full <- p.buf
	}
	return failed
}

func (r *realRoof) chunk(p *roofPack, hash *chunk.Hasher, codec *chunk.Codec, plain []byte, at int64) error {
	if chunk.IsZero(plain) {
		return nil
	}
	id := hash.ID(plain)
	shard := &r.seen[id[0]%64]
	shard.mu.Lock()
	if c := shard.chunks[id]; c != nil {
		c.at = append(c.at, at)
		shard.mu.Unlock()
		return nil
	}
	c := &roofChunk{plain: len(plain), at: []int64{at}}
	shard.chunks[id] = c
	shard.mu.Unlock()
	encoded, enc, err := codec.Encode(plain)
	if err != nil {
		return err
	}
	before := len(p.buf)
	var nonce [12]byte
	binary.LittleEndian.PutUint64(nonce[:], uint64(len(p.chunks)))
	p.buf = r.gcm.Seal(p.buf, nonce[:], encoded, roofAAD[:])
	c.enc, c.stored = enc, len(p.buf)-before
	p.chunks = append(p.chunks, c)
	if len(p.buf) < roofWrite {
		return nil
	}
	full := p.buf[:len(p.buf)/directio.Align*directio.Align]
	next := append(<-p.free, p.buf[len(full):]...)
	p.full <- full
	p.buf = next
	return nil
}

// restore returns the seconds that writing the image again takes.
func (r *realRoof) restore(image string) (float64, error) {
	info, err := os.Stat(image)
	if err != nil {
		return 0, err
	}
	for i := range r.packs {
		if err := warm(r.packName(i)); err != nil {
			return 0, err
		}
	}
	name := filepath.Join(r.dir, "roof.raw")
	defer os.Remove(name)
	start := time.Now()
	out, err := directio.Create(name)
	if err != nil {
		return 0, err
	}
	defer out.Close()
	if err := errors.Join(out.Truncate(info.Size()), out.Reserve(r.extents())); err != nil {
		return 0, err
	}
	var g errgroup.Group
	batches := make(chan roofBatch)
	for range 2 * runtime.NumCPU() { // half of them wait for the disk
		g.Go(func() error { return r.write(out, batches) })
	}
	r.cut(batches)
	err = errors.Join(g.Wait(), out.Sync())
	took := time.Since(start).Seconds()
	if err == nil {
		err = sh(`cmp "$1" "$2"`, image, name)
	}
	return took, err
}

// extents returns where the image has data.
func (r *realRoof) extents() extent.Set {
	var all []extent.Extent
	for _, p := range r.packs {
		for _, c := range p.chunks {
			for _, at := range c.at {
				all = append(all, extent.Extent{Off: at, Len: int64(c.plain)})
			}
		}
	}
	return extent.Of(all...)
}

// roofBatch is a run of chunks of a pack.
type roofBatch struct {
	pack       *roofPack
	off        int64 // in the pack
	first, end int   // chunks
	bytes      int   // in the pack
}

// cut hands out the packs in batches.
func (r *realRoof) cut(out chan<- roofBatch) {
	for _, p := range r.packs {
		b := roofBatch{pack: p}
		for i, c := range p.chunks {
			b.end, b.bytes = i+1, b.bytes+c.stored
			if b.bytes >= roofWrite || i == len(p.chunks)-1 {
				out <- b
				b = roofBatch{pack: p, off: b.off + int64(b.bytes), first: i + 1}
			}
		}
	}
	close(out)
}

func (r *realRoof) write(out *directio.File, batches <-chan roofBatch) error {
	w := &roofWriter{roof: r, out: out, codec: chunk.NewCodec(chunk.Fast), plain: directio.Buffer(roofWrite)[:0]}
	var failed error
	for b := range batches {
		if failed == nil {
			failed = w.batch(b)
		}
	}
	return errors.Join(failed, w.flush())
}

// roofWriter gathers neighbours of the image and writes them.
type roofWriter struct {
	roof  *realRoof
	out   *directio.File
	codec *chunk.Codec
	read  []byte
	plain []byte
	off   int64 // of plain in the image
}

func (w *roofWriter) batch(b roofBatch) error {
	if cap(w.read) < b.bytes {
		w.read = make([]byte, b.bytes)
	}
	read := w.read[:b.bytes]
	if _, err := b.pack.file.File.ReadAt(read, b.off); err != nil {
		return err
	}
	for i := b.first; i < b.end; i++ {
		c := b.pack.chunks[i]
		var nonce [12]byte
		binary.LittleEndian.PutUint64(nonce[:], uint64(i))
		encoded, err := w.roof.gcm.Open(read[:0], nonce[:], read[:c.stored], roofAAD[:])
		if err != nil {
			return err
		}
		read = read[c.stored:]
		for _, at := range c.at {
			if at != w.off+int64(len(w.plain)) || len(w.plain)+c.plain > cap(w.plain) {
				if err := w.flush(); err != nil {
					return err
				}
				w.off = at
			}
			n := len(w.plain)
			w.plain = w.plain[:n+c.plain]
			if err := w.codec.Decode(w.plain[n:], encoded, c.enc); err != nil {
				return err
			}
		}
	}
	return nil
}

func (w *roofWriter) flush() error {
	_, err := w.out.WriteAt(w.plain, w.off)
	w.off, w.plain = w.off+int64(len(w.plain)), w.plain[:0]
	return err
}
