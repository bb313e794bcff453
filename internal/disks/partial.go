package disks

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"math/bits"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/holdfast-vm/holdfast/internal/diskimage"
	"github.com/holdfast-vm/holdfast/internal/extent"
)

// Partial is a copy of the content of a disk that is not complete: what a process copied is there
// for the next. Once it is complete the file has the name of the image to be.
type Partial struct {
	File string `json:"file"` // name in the pool
	Of   string `json:"of"`   // digest of the extents of the content, its size and its format
	Unit int64  `json:"unit"` // bytes that are copied or not
	Done []byte `json:"done"` // a bit for each unit, durably copied
}

const (
	minUnit  = 1 << 20 // bytes; no chunk of a vault is larger
	maxUnits = 64 << 10
)

// unitFor returns the bytes that are copied or not of a disk of size bytes.
func unitFor(size int64) int64 {
	unit := int64(minUnit)
	for size > unit*maxUnits {
		unit *= 2
	}
	return unit
}

func (q *Partial) check(final string) error {
	if q.File != filepath.Base(q.File) || !strings.HasPrefix(q.File, "."+final+".") ||
		!strings.HasSuffix(q.File, ".hf") {
		return fmt.Errorf("%q is no copy of %s", q.File, final)
	}
	if q.Unit < minUnit || bits.OnesCount64(uint64(q.Unit)) != 1 || len(q.Done) > maxUnits/8+1 {
		return errors.New("how far its copy is makes no sense")
	}
	return nil
}

// missing returns what of data was not copied.
func (q *Partial) missing(data extent.Set) extent.Set {
	var done extent.Set
	for i, b := range q.Done {
		for ; b != 0; b &= b - 1 {
			unit := int64(i)*8 + int64(bits.TrailingZeros8(b))
			done = done.Append(extent.Extent{Off: unit * q.Unit, Len: q.Unit})
		}
	}
	return data.Subtract(done)
}

func digest(d *Disk, data extent.Set) string {
	h := sha256.New()
	fmt.Fprintln(h, d.Size, d.Format, len(data))
	for _, e := range data {
		fmt.Fprintln(h, e.Off, e.Len)
	}
	return hex.EncodeToString(h.Sum(nil)[:16])
}

// fetching is the copy of a disk's content to its partial image, by several goroutines.
type fetching struct {
	*diskimage.Partial
	f        *filling
	attached bool // whether a machine had the disk when it began
	data     extent.Set
	total    int64

	mu    sync.Mutex
	rec   Partial
	left  map[int64]int64 // bytes to be copied, by unit
	done  int64           // bytes copied
	saved time.Time

	saving sync.Mutex
}

// fetch brings the content of a disk to the pool, under the name of the image to be. It goes on
// where the process before it came to.
func (f *filling) fetch(ctx context.Context, d *Disk) error {
	data, err := f.req.Content.Extents(ctx)
	if err != nil {
		return err
	}
	g, err := f.openPartial(d, data)
	if err != nil || g == nil {
		return err
	}
	defer g.Leave()
	missing := g.rec.missing(data)
	g.expect(missing)
	err = g.save(false)
	if err == nil {
		err = f.req.Content.RestorePart(ctx, missing, g, nil)
	}
	if err != nil {
		if !errors.Is(err, errCrash) {
			err = errors.Join(err, g.save(false))
		}
		return err
	}
	g.complete()
	if err := g.save(true); err != nil {
		return err
	}
	if err := f.pool.step("hydrate: fetched"); err != nil {
		return err
	}
	return g.Commit()
}

// openPartial returns the copy that is to be gone on with, a new one if there is none, or nil if it
// is complete and has its name.
func (f *filling) openPartial(d *Disk, data extent.Set) (*fetching, error) {
	p, final := f.pool, filepath.Join(f.pool.dir, d.Hydration.Final)
	g := &fetching{f: f, attached: d.Attached != nil, saved: time.Now(), data: data, total: data.Bytes()}
	of := digest(d, data)
	if q := d.Hydration.Partial; q != nil && q.Of == of && q.Unit == unitFor(d.Size) {
		var err error
		g.rec = *q
		if g.Partial, err = diskimage.OpenPartial(final, q.File, d.Size, d.Format, data); err == nil {
			return g, nil
		}
		if _, lost := os.Stat(final); errors.Is(err, os.ErrNotExist) && lost == nil && len(q.missing(data)) == 0 {
			return nil, nil
		}
	}
	if err := p.dropCopy(d); err != nil {
		return nil, err
	}
	t, err := diskimage.CreatePartial(final, d.Size, d.Format, data)
	if err != nil {
		return nil, err
	}
	units := (d.Size + unitFor(d.Size) - 1) / unitFor(d.Size)
	g.Partial, g.rec = t, Partial{File: t.Name(), Of: of, Unit: unitFor(d.Size), Done: make([]byte, (units+7)/8)}
	return g, nil
}

// dropCopy forgets what there is of a copy, first in the record.
func (p *Pool) dropCopy(d *Disk) error {
	if d.Hydration.Partial != nil {
		err := p.change(d.Name, func(d *Disk) error {
			if d.Hydration == nil {
				return errAgain
			}
			d.Hydration.Partial, d.Hydration.Done = nil, 0
			return nil
		})
		if err != nil {
			return err
		}
	}
	return errors.Join(removeFile(filepath.Join(p.dir, d.Hydration.Final)), p.dropUnfinished(d.Hydration.Final))
}

// expect takes note of what will be written.
func (g *fetching) expect(missing extent.Set) {
	g.done = g.total - missing.Bytes()
	g.left = make(map[int64]int64)
	for _, e := range missing {
		g.eachUnit(e, func(unit, n int64) { g.left[unit] += n })
	}
}

func (g *fetching) eachUnit(e extent.Extent, do func(unit, n int64)) {
	for off := e.Off; off < e.End(); {
		n := min(e.End(), (off/g.rec.Unit+1)*g.rec.Unit) - off
		do(off/g.rec.Unit, n)
		off += n
	}
}

// WriteAt writes a part of the content, none twice, and now and then makes what was written durable
// and tells the record.
func (g *fetching) WriteAt(b []byte, off int64) (int, error) {
	n, err := g.Partial.WriteAt(b, off)
	if err != nil {
		return n, err
	}
	g.mu.Lock()
	g.eachUnit(extent.Extent{Off: off, Len: int64(len(b))}, func(unit, n int64) {
		if g.left[unit] -= n; g.left[unit] == 0 {
			g.rec.Done[unit/8] |= 1 << (unit % 8)
		}
	})
	g.done += int64(len(b))
	done, due := g.done, time.Since(g.saved) >= g.f.pool.checkpoint
	g.mu.Unlock()
	g.f.req.Progress(done, g.total)
	if !due || !g.saving.TryLock() {
		return n, nil
	}
	defer g.saving.Unlock()
	return n, g.save(false)
}

func (g *fetching) complete() {
	for i := range g.rec.Done {
		g.rec.Done[i] = 0xff
	}
}

// save makes what was copied durable and then has the record say so. If somebody works on the disk
// just now that is left out, or with must is ErrBusy. It returns errAgain if the disk was attached
// or detached.
func (g *fetching) save(must bool) error {
	g.mu.Lock()
	rec := g.rec
	rec.Done = slices.Clone(g.rec.Done)
	g.saved = time.Now()
	g.mu.Unlock()
	if err := g.Sync(); err != nil {
		return err
	}
	done := g.total - rec.missing(g.data).Bytes() // without units of which a part is missing, which are copied again
	err := g.f.pool.change(g.f.name, func(d *Disk) error {
		if d.Hydration == nil || (d.Attached != nil) != g.attached {
			return errAgain
		}
		d.Hydration.Partial, d.Hydration.Done, d.Hydration.Total, d.Hydration.Waits = &rec, done, g.total, ""
		return nil
	})
	if err != nil && (must || !errors.Is(err, ErrBusy)) {
		return err
	}
	return g.f.pool.step("hydrate: saved")
}
