package index

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"sort"
	"sync/atomic"

	"github.com/holdfast-vm/holdfast/internal/blob"
	"github.com/holdfast-vm/holdfast/internal/vault/chunk"
	"github.com/holdfast-vm/holdfast/internal/vault/pack"
)

// The format of a segment, docs/formats/index.md. Sizes in bytes.
const (
	headSize    = 32
	footSize    = 64
	blockSize   = 4096
	perBlock    = 85 // entries in a block
	entrySize   = 48
	packRowSize = 32
	bloomBlock  = 64 // bytes; one cache line
	bloomBits   = 10 // a key
	bloomProbes = 7

	headMagic = "HFINDX01"
	footMagic = "HFIXEND1"
)

// damagedError reports a segment that is not as it was written. Segments are a cache: it is dropped and made anew.
type damagedError struct{ name, why string }

func (e *damagedError) Error() string { return fmt.Sprintf("%s is damaged: %s", e.name, e.why) }

func isDamaged(err error) bool {
	var d *damagedError
	return errors.As(err, &d)
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// packRow is a pack that a segment covers.
type packRow struct {
	ref  pack.Ref
	size int64 // of the object, bytes
}

// row is an entry of a segment: where a chunk is, the pack as an ordinal in the segment's pack list.
type row struct {
	id             chunk.ID
	pack           uint32
	offset, stored uint32
	plain          uint32 // encoding in the top byte
}

func (r *row) append(b []byte) []byte {
	b = append(b, r.id[:]...)
	b = binary.LittleEndian.AppendUint32(b, r.pack)
	b = binary.LittleEndian.AppendUint32(b, r.offset)
	b = binary.LittleEndian.AppendUint32(b, r.stored)
	return binary.LittleEndian.AppendUint32(b, r.plain)
}

func parseRow(b []byte) row {
	return row{id: chunk.ID(b[:32]), pack: binary.LittleEndian.Uint32(b[32:]), offset: binary.LittleEndian.Uint32(b[36:]),
		stored: binary.LittleEndian.Uint32(b[40:]), plain: binary.LittleEndian.Uint32(b[44:])}
}

// segment is a sorted, immutable run of entries. In memory it keeps the filter, a fence of eight bytes per block and the packs.
type segment struct {
	name    string
	entries int64
	blocks  int
	packs   []packRow
	now     []atomic.Int64 // sizes that packs have in the store now, bytes, or gone or unseen
	fence   []uint64
	filter  []byte
	base    int64 // position of the first entry among all segments
}

// Sizes of packs that have none.
const (
	packGone   = -1
	packUnseen = -2 // nobody has looked
)

func unseenPacks(n int) []atomic.Int64 {
	now := make([]atomic.Int64, n)
	for i := range now {
		now[i].Store(packUnseen)
	}
	return now
}

// see takes in which packs there are. If all says that packs has every one, others are gone.
func (s *segment) see(packs map[pack.Ref]int64, all bool) {
	for i, p := range s.packs {
		if size, ok := packs[p.ref]; ok {
			s.now[i].Store(size)
		} else if all {
			s.now[i].Store(packGone)
		}
	}
}

// holds reports whether the bytes of r are there, and the size of their pack. A pack that nobody has looked at is taken to be as it was. Segments are not
// authenticated: a row that no writer makes is passed over.
func (s *segment) holds(r row) (size int64, ok bool) {
	if int(r.pack) >= len(s.packs) {
		return 0, false
	}
	if size = s.now[r.pack].Load(); size == packUnseen {
		size = s.packs[r.pack].size
	}
	return size, int64(r.offset)+int64(r.stored) <= size && r.stored <= chunk.MaxSize+pack.TagSize && r.plain&0xffffff <= chunk.MaxSize
}

func fenceOf(id *chunk.ID) uint64 { return binary.BigEndian.Uint64(id[:8]) }

// bloom yields the filter's block for id and the 63 bits that choose bits in it.
func bloom(id *chunk.ID, filterLen int) (block int, bits uint64) {
	n := uint64(filterLen / bloomBlock)
	return int(binary.LittleEndian.Uint64(id[8:16]) % n), binary.LittleEndian.Uint64(id[16:24])
}

func bloomAdd(filter []byte, id *chunk.ID) {
	block, bits := bloom(id, len(filter))
	line := filter[block*bloomBlock : (block+1)*bloomBlock]
	for range bloomProbes {
		line[bits>>3&63] |= 1 << (bits & 7)
		bits >>= 9
	}
}

func (s *segment) mayHave(id *chunk.ID) bool {
	block, bits := bloom(id, len(s.filter))
	line := s.filter[block*bloomBlock : (block+1)*bloomBlock]
	for range bloomProbes {
		if line[bits>>3&63]&(1<<(bits&7)) == 0 {
			return false
		}
		bits >>= 9
	}
	return true
}

func filterSize(entries int64) int64 {
	return (entries*bloomBits/8/bloomBlock + 1) * bloomBlock
}

// segmentWriter writes rows in ascending order of ID as one segment.
type segmentWriter struct {
	w       blob.Writer
	block   []byte
	fence   []uint64
	filter  []byte
	entries int64
	blocks  int
}

// newSegmentWriter begins the object name for at most most rows.
func newSegmentWriter(ctx context.Context, store blob.Store, name string, vault [16]byte, most int64) (*segmentWriter, error) {
	w, err := store.Create(ctx, name)
	if err != nil {
		return nil, err
	}
	head := append([]byte(headMagic), vault[:]...)
	head = append(head, 0, 0, 0, 0, 0, 0, 0, 0)
	if _, err := w.Write(head); err != nil {
		w.Abort()
		return nil, err
	}
	return &segmentWriter{w: w, block: make([]byte, 0, blockSize), filter: make([]byte, filterSize(most))}, nil
}

func (sw *segmentWriter) add(r row) error {
	if len(sw.block) == 0 {
		sw.fence = append(sw.fence, fenceOf(&r.id))
	}
	sw.block = r.append(sw.block)
	bloomAdd(sw.filter, &r.id)
	sw.entries++
	if len(sw.block) == perBlock*entrySize {
		return sw.endBlock()
	}
	return nil
}

func (sw *segmentWriter) endBlock() error {
	n := len(sw.block)
	b := sw.block[:blockSize-4]
	clear(b[n:])
	b = binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
	sw.blocks++
	sw.block = sw.block[:0]
	_, err := sw.w.Write(b)
	return err
}

// commit writes the rest and makes the segment durable.
func (sw *segmentWriter) commit(ctx context.Context, packs []packRow) error {
	if len(sw.block) > 0 {
		if err := sw.endBlock(); err != nil {
			return err
		}
	}
	var tail []byte
	for _, p := range packs {
		tail = append(tail, p.ref.ID[:]...)
		tail = append(tail, byte(p.ref.Kind), 0, 0, 0, 0, 0, 0, 0)
		tail = binary.LittleEndian.AppendUint64(tail, uint64(p.size))
	}
	for _, f := range sw.fence {
		tail = binary.LittleEndian.AppendUint64(tail, f)
	}
	tail = append(tail, sw.filter...)
	foot := make([]byte, 0, footSize)
	foot = binary.LittleEndian.AppendUint64(foot, uint64(sw.entries))
	foot = binary.LittleEndian.AppendUint64(foot, uint64(sw.blocks))
	foot = binary.LittleEndian.AppendUint64(foot, uint64(len(packs)))
	foot = binary.LittleEndian.AppendUint64(foot, uint64(len(sw.filter)))
	foot = append(foot, make([]byte, footSize-4*8-8-4)...)
	sum := crc32.Update(crc32.Checksum(tail, castagnoli), castagnoli, foot)
	foot = binary.LittleEndian.AppendUint32(foot, sum)
	foot = append(foot, footMagic...)
	if _, err := sw.w.Write(append(tail, foot...)); err != nil {
		return err
	}
	return sw.w.Commit(ctx)
}

// loadSegment reads what a segment keeps in memory. A segment of another vault or with damage is a damagedError.
func loadSegment(ctx context.Context, store blob.Store, info blob.Info, vault [16]byte) (*segment, error) {
	head, foot := make([]byte, headSize), make([]byte, footSize)
	if info.Size < headSize+footSize {
		return nil, &damagedError{info.Name, fmt.Sprintf("%d bytes long", info.Size)}
	}
	if err := readAt(ctx, store, info.Name, head, 0); err != nil {
		return nil, err
	}
	if err := readAt(ctx, store, info.Name, foot, info.Size-footSize); err != nil {
		return nil, err
	}
	want := append(append([]byte(headMagic), vault[:]...), 0, 0, 0, 0, 0, 0, 0, 0)
	if !bytes.Equal(head, want) || string(foot[footSize-8:]) != footMagic {
		return nil, &damagedError{info.Name, "wrong magic or vault"}
	}
	s, tailLen, why := parseSegmentFoot(foot, info.Size)
	if why != "" {
		return nil, &damagedError{info.Name, why}
	}
	s.name = info.Name
	tail := make([]byte, tailLen)
	if err := readAt(ctx, store, info.Name, tail, info.Size-footSize-tailLen); err != nil {
		return nil, err
	}
	sum := crc32.Update(crc32.Checksum(tail, castagnoli), castagnoli, foot[:footSize-12])
	if sum != binary.LittleEndian.Uint32(foot[footSize-12:]) {
		return nil, &damagedError{info.Name, "checksum"}
	}
	s.parseTail(tail)
	return s, nil
}

// parseSegmentFoot checks the counts against the object's size, so that nothing larger than the object is allocated. It returns
// the length of what stands between blocks and footer, or what is wrong.
func parseSegmentFoot(foot []byte, size int64) (s *segment, tailLen int64, why string) {
	entries, blocks := binary.LittleEndian.Uint64(foot), binary.LittleEndian.Uint64(foot[8:])
	packs, filter := binary.LittleEndian.Uint64(foot[16:]), binary.LittleEndian.Uint64(foot[24:])
	most := uint64(size)
	if entries > most || blocks > most || packs > most || filter > most || filter == 0 || filter%bloomBlock != 0 || blocks != (entries+perBlock-1)/perBlock {
		return nil, 0, "its counts make no sense"
	}
	tail := packs*packRowSize + blocks*8 + filter
	if headSize+blocks*blockSize+tail+footSize != most {
		return nil, 0, "its counts do not fit its size"
	}
	return &segment{entries: int64(entries), blocks: int(blocks), packs: make([]packRow, packs)}, int64(tail), ""
}

func (s *segment) parseTail(tail []byte) {
	for i := range s.packs {
		b := tail[i*packRowSize:]
		s.packs[i] = packRow{ref: pack.Ref{ID: pack.ID(b[:16]), Kind: pack.Kind(b[16])}, size: int64(binary.LittleEndian.Uint64(b[24:]))}
	}
	tail = tail[len(s.packs)*packRowSize:]
	s.fence = make([]uint64, s.blocks)
	for i := range s.fence {
		s.fence[i] = binary.LittleEndian.Uint64(tail[i*8:])
	}
	s.filter = tail[s.blocks*8:]
	s.now = unseenPacks(len(s.packs))
}

// block reads block i into p, which has blockSize bytes, and returns its rows.
func (s *segment) block(ctx context.Context, store blob.Store, i int, p []byte) ([]byte, error) {
	if err := readAt(ctx, store, s.name, p, headSize+int64(i)*blockSize); err != nil {
		return nil, err
	}
	if crc32.Checksum(p[:blockSize-4], castagnoli) != binary.LittleEndian.Uint32(p[blockSize-4:]) {
		return nil, &damagedError{s.name, fmt.Sprintf("checksum of block %d", i)}
	}
	n := perBlock
	if i == s.blocks-1 {
		n = int(s.entries - int64(i)*perBlock)
	}
	return p[:n*entrySize], nil
}

// firstBlock returns the first block that may hold id. Equal fences may span several blocks.
func (s *segment) firstBlock(id *chunk.ID) int {
	f := fenceOf(id)
	i := sort.Search(len(s.fence), func(i int) bool { return s.fence[i] >= f })
	return max(i-1, 0)
}

// searchRows returns the index of the first row in rows not below id.
func searchRows(rows []byte, id *chunk.ID) int {
	return sort.Search(len(rows)/entrySize, func(i int) bool {
		return bytes.Compare(rows[i*entrySize:i*entrySize+32], id[:]) >= 0
	})
}

func readAt(ctx context.Context, store blob.Store, name string, p []byte, off int64) error {
	_, err := store.ReadAt(ctx, name, p, off)
	if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
		return &damagedError{name, "cut short"}
	}
	return err
}
