package index

import (
	"context"
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"fmt"

	"github.com/holdfast-vm/holdfast/internal/blob"
	"github.com/holdfast-vm/holdfast/internal/vault/chunk"
)

const (
	segmentPrefix = "index/seg/"
	writeAtOnce   = 1 << 20 // bytes
)

func newSegmentName() string {
	var b [16]byte
	rand.Read(b[:])
	return segmentPrefix + hex.EncodeToString(b[:])
}

// segmentWriter writes rows, in the order of their IDs, as one segment. In memory it has one page.
type segmentWriter struct {
	w      blob.Writer
	aead   cipher.AEAD
	info   segmentInfo
	block  []byte
	out    []byte     // sealed
	fences []uint64   // of the page
	ids    []chunk.ID // of the page, for its filter
	err    error
}

func newSegmentWriter(ctx context.Context, src *Source, of span) (*segmentWriter, error) {
	name := newSegmentName()
	aead, err := src.sealer(name)
	if err != nil {
		return nil, err
	}
	w, err := src.Store.Create(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("write index segment %s: %w", name, err)
	}
	return &segmentWriter{w: w, aead: aead, info: segmentInfo{name: name, span: of}}, nil
}

// add adds a row in its stored form.
func (w *segmentWriter) add(raw []byte) error {
	id := chunk.ID(raw[:chunk.IDSize])
	if len(w.block) == 0 {
		w.fences = append(w.fences, fenceOf(&id))
	}
	if len(w.ids) == 0 {
		w.info.fences = append(w.info.fences, fenceOf(&id))
	}
	w.block = append(w.block, raw...)
	w.ids = append(w.ids, id)
	w.info.rows++
	if len(w.block) == perBlock*rowSize {
		w.endBlock()
	}
	if len(w.ids) == pageRows {
		w.endPage()
	}
	return w.err
}

func (w *segmentWriter) put(c section, n int64, plain []byte) {
	if w.err != nil {
		return
	}
	w.out = w.aead.Seal(w.out, c.nonce(n), plain, nil)
	if len(w.out) >= writeAtOnce {
		w.flush()
	}
}

func (w *segmentWriter) flush() {
	if _, err := w.w.Write(w.out); err != nil {
		w.err = fmt.Errorf("write index segment %s: %w", w.info.name, err)
	}
	w.out = w.out[:0]
}

func (w *segmentWriter) endBlock() {
	w.put(rowBlocks, (w.info.rows-1)/perBlock, w.block)
	w.block = w.block[:0]
}

func (w *segmentWriter) endPage() {
	page := make([]byte, 0, pageSize(int64(len(w.ids))))
	for _, f := range w.fences {
		page = binary.LittleEndian.AppendUint64(page, f)
	}
	n := int64(len(page))
	page = page[:n+filterSize(int64(len(w.ids)))]
	for i := range w.ids {
		filterAdd(page[n:], &w.ids[i])
	}
	w.put(pages, (w.info.rows-1)/pageRows, page)
	w.ids, w.fences = w.ids[:0], w.fences[:0]
}

// endRows is called after the last row, and before origins.
func (w *segmentWriter) endRows() error {
	if len(w.block) > 0 {
		w.endBlock()
	}
	if len(w.ids) > 0 {
		w.endPage()
	}
	return w.err
}

func (w *segmentWriter) addOrigin(o *originOf) error {
	w.block = o.append(w.block)
	w.info.origins++
	if len(w.block) == perOrigins*originSize {
		w.endOrigins()
	}
	return w.err
}

func (w *segmentWriter) endOrigins() {
	w.put(originBlocks, int64(w.info.origins-1)/perOrigins, w.block)
	w.block = w.block[:0]
}

// commit makes the segment durable.
func (w *segmentWriter) commit(ctx context.Context) (segmentInfo, error) {
	if len(w.block) > 0 {
		w.endOrigins()
	}
	if len(w.out) > 0 {
		w.flush()
	}
	if w.err != nil {
		return w.info, w.err
	}
	if err := w.w.Commit(ctx); err != nil {
		return w.info, fmt.Errorf("write index segment %s: %w", w.info.name, err)
	}
	return w.info, nil
}

func (w *segmentWriter) abort() { w.w.Abort() }
