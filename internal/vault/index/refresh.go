package index

import (
	"context"
	"errors"
	"fmt"
	"maps"

	"github.com/holdfast-vm/holdfast/internal/blob"
	"github.com/holdfast-vm/holdfast/internal/vault/pack"
)

// Refresh takes in all that other processes did: new packs and segments, and those gone. It ends all validity of Loc.Pos.
func (ix *Index) Refresh(ctx context.Context) error {
	_, err := ix.refresh(ctx)
	return err
}

func (ix *Index) refresh(ctx context.Context) (*Snapshot, error) {
	before := ix.state()
	packs := make(map[pack.Ref]int64)
	for _, prefix := range []string{"data/", "meta/"} {
		if err := ix.list(ctx, prefix, packs); err != nil {
			return nil, err
		}
	}
	segments, damaged, err := ix.loadSegments(ctx)
	if err != nil {
		return nil, err
	}
	covered := make(map[pack.Ref]bool)
	for _, s := range segments {
		s.see(packs, true)
		for _, p := range s.packs {
			if size, ok := packs[p.ref]; ok && size == p.size {
				covered[p.ref] = true
			}
		}
	}
	ix.mu.Lock()
	defer ix.mu.Unlock()
	clear(ix.bad) // what a mirror has repaired since is read again
	ix.adopt(before, segments, damaged, func(r pack.Ref, size int64) bool { return !covered[r] && packs[r] == size })
	for ref, y := range ix.young {
		packs[ref] = y.size // those that were added meanwhile
	}
	ix.listed, ix.packs = true, packs
	for ref, size := range packs {
		if _, known := ix.young[ref]; covered[ref] || known {
			continue
		}
		if err := ix.readTable(ctx, ref, size); err != nil {
			return nil, err
		}
	}
	return ix.snapshot(), nil
}

// Reload takes in which segments other processes wrote and merged, and forgets which packs are there: that is looked at again. It takes the same time
// however many packs there are. What no segment covers is not found, unless this process or LearnSession has added it; Refresh finds it. It ends all
// validity of Loc.Pos.
func (ix *Index) Reload(ctx context.Context) error {
	before := ix.state()
	segments, damaged, err := ix.loadSegments(ctx)
	if err != nil {
		return err
	}
	if len(damaged) > 0 || len(segments) == 0 {
		return ix.Refresh(ctx) // what they cover, or should, stands in tables alone
	}
	covered := coveredBy(segments, before.young)
	there := make(map[pack.Ref]int64)
	for ref, y := range before.young {
		if covered[ref] {
			continue
		}
		size, err := ix.stat(ctx, ref)
		if err != nil {
			return err
		}
		if size == y.size {
			there[ref] = size
		}
	}
	ix.mu.Lock()
	defer ix.mu.Unlock()
	ix.adopt(before, segments, damaged, func(r pack.Ref, _ int64) bool { _, ok := there[r]; return ok })
	for ref, y := range ix.young {
		there[ref] = y.size
	}
	ix.listed, ix.looks, ix.packs = false, 0, there
	return nil
}

// coveredBy returns which of some packs a segment has, as they are.
func coveredBy(segments []*segment, packs map[pack.Ref]young) map[pack.Ref]bool {
	covered := make(map[pack.Ref]bool)
	if len(packs) == 0 {
		return covered
	}
	for _, s := range segments {
		for _, p := range s.packs {
			if y, ok := packs[p.ref]; ok && y.size == p.size {
				covered[p.ref] = true
			}
		}
	}
	return covered
}

// LearnSession takes in the packs of another session that no segment covers: it may be at work, or have been killed. session is what their IDs begin with,
// 24 hexadecimal digits.
func (ix *Index) LearnSession(ctx context.Context, session string) error {
	packs := make(map[pack.Ref]int64)
	for _, kind := range []string{"data/", "meta/"} {
		if err := ix.list(ctx, kind+session[:2]+"/"+session, packs); err != nil {
			return err
		}
	}
	unknown := make(map[pack.Ref]young)
	for ref, size := range packs {
		unknown[ref] = young{size: size}
	}
	ix.mu.Lock()
	defer ix.mu.Unlock()
	covered := coveredBy(ix.segments, unknown)
	for ref, size := range packs {
		if _, known := ix.young[ref]; covered[ref] || known {
			continue
		}
		if err := ix.readTable(ctx, ref, size); err != nil {
			return err
		}
	}
	return nil
}

// Listed reports whether packs were listed since the last Reload: what is not found then is in no pack that can be read.
func (ix *Index) Listed() bool {
	ix.mu.RLock()
	defer ix.mu.RUnlock()
	return ix.listed
}

// list adds the packs whose names begin with prefix.
func (ix *Index) list(ctx context.Context, prefix string, packs map[pack.Ref]int64) error {
	for info, err := range ix.src.Store.List(ctx, prefix, "") {
		if err != nil {
			return fmt.Errorf("list packs: %w", err)
		}
		if ref, err := pack.ParseName(info.Name); err == nil {
			packs[ref] = info.Size
		}
	}
	return nil
}

// look returns the size in bytes that a pack has now, packGone if it is gone. Who looks for many has all packs listed.
func (ix *Index) look(ctx context.Context, ref pack.Ref) (int64, error) {
	ix.mu.RLock()
	size, known := ix.packs[ref]
	listed, many := ix.listed, ix.looks >= maxLooks
	ix.mu.RUnlock()
	switch {
	case known:
		return size, nil
	case listed:
		return packGone, nil
	case many:
		s, err := ix.refresh(ctx)
		if err != nil {
			return 0, err
		}
		if size, known = s.packs[ref]; known {
			return size, nil
		}
		return packGone, nil
	}
	size, err := ix.stat(ctx, ref)
	if err != nil {
		return 0, err
	}
	ix.mu.Lock()
	defer ix.mu.Unlock()
	ix.looks++
	if size != packGone && !ix.listed {
		ix.packs[ref] = size
	}
	return size, nil
}

func (ix *Index) stat(ctx context.Context, ref pack.Ref) (int64, error) {
	info, err := ix.src.Store.Stat(ctx, ref.Name())
	if errors.Is(err, blob.ErrNotExist) {
		return packGone, nil
	}
	if err != nil {
		return 0, fmt.Errorf("look for pack %s: %w", ref.ID, err)
	}
	return info.Size, nil
}

// known is what an index had before it asked the store: what came to it meanwhile stays.
type known struct {
	segments map[string]bool
	young    map[pack.Ref]young
}

func (ix *Index) state() known {
	ix.mu.RLock()
	defer ix.mu.RUnlock()
	k := known{segments: make(map[string]bool), young: maps.Clone(ix.young)}
	for _, s := range ix.segments {
		k.segments[s.name] = true
	}
	return k
}

// adopt installs segments in place of those known before, and keeps of the young packs that were known before those for which keep is true.
func (ix *Index) adopt(before known, segments []*segment, damaged []string, keep func(r pack.Ref, size int64) bool) {
	loaded := make(map[string]bool)
	for _, s := range segments {
		loaded[s.name] = true
	}
	for _, s := range ix.segments {
		if !before.segments[s.name] && !loaded[s.name] {
			fresh := *s // readers of the old list keep their own
			segments = append(segments, &fresh)
		}
	}
	var base int64
	for _, s := range segments {
		s.base = base
		base += s.entries
	}
	ix.segments, ix.damaged = segments, damaged
	for ref, y := range ix.young {
		if _, was := before.young[ref]; was && !keep(ref, y.size) {
			delete(ix.young, ref)
		}
	}
	for id, locs := range ix.delta {
		left := make([]youngLoc, 0, len(locs)) // a new one: readers have the old
		for _, l := range locs {
			if _, stays := ix.young[l.ref]; stays {
				left = append(left, l)
			}
		}
		if ix.delta[id] = left; len(left) == 0 {
			delete(ix.delta, id)
		}
	}
}

// readTable adds what stands in the table of a pack that no segment covers. The caller holds ix.mu.
func (ix *Index) readTable(ctx context.Context, ref pack.Ref, size int64) error {
	entries, err := ix.src.Secret.Table(ctx, ix.src.Store, ref, ix.src.Vault, size)
	switch {
	case errors.Is(err, pack.ErrCorrupt):
		ix.bad[ref] = err
	case errors.Is(err, blob.ErrNotExist):
		delete(ix.packs, ref)
	case err != nil:
		return err
	default:
		ix.addLocked(ref, size, entries)
	}
	return nil
}

func (ix *Index) loadSegments(ctx context.Context) ([]*segment, []string, error) {
	ix.mu.RLock()
	have := make(map[string]*segment, len(ix.segments))
	for _, s := range ix.segments {
		have[s.name] = s
	}
	unreadable := maps.Clone(ix.unreadable)
	ix.mu.RUnlock()
	var segments []*segment
	var damaged []string
	for info, err := range ix.src.Store.List(ctx, Prefix, "") {
		if err != nil {
			return nil, nil, fmt.Errorf("list index segments: %w", err)
		}
		if unreadable[info.Name] {
			damaged = append(damaged, info.Name)
			continue
		}
		if old := have[info.Name]; old != nil {
			fresh := *old // readers of the old list keep their own
			fresh.now = unseenPacks(len(old.packs))
			segments = append(segments, &fresh)
			continue
		}
		s, err := loadSegment(ctx, ix.src.Store, info, ix.src.Vault)
		switch {
		case isDamaged(err):
			damaged = append(damaged, info.Name)
		case errors.Is(err, blob.ErrNotExist): // merged away since the listing; what it covered is covered by another or read from packs
		case err != nil:
			return nil, nil, fmt.Errorf("load index segment %s: %w", info.Name, err)
		default:
			segments = append(segments, s)
		}
	}
	return segments, damaged, nil
}
