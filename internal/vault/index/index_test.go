package index_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/holdfast-vm/holdfast/internal/blob"
	"github.com/holdfast-vm/holdfast/internal/blob/mem"
	"github.com/holdfast-vm/holdfast/internal/vault/chunk"
	"github.com/holdfast-vm/holdfast/internal/vault/index"
	"github.com/holdfast-vm/holdfast/internal/vault/pack"
)

// tester is what testing.T and rapid.T have in common here.
type tester interface {
	Helper()
	Fatal(args ...any)
}

// world is a store, what its packs hold, and two processes that have it open.
type world struct {
	store *mem.Store
	src   index.Source
	open  []*index.Index
	packs map[pack.Ref]*packModel
	made  int
}

type packModel struct {
	entries []pack.Entry
	cut     bool
}

func newWorld(t tester) *world {
	w := &world{store: mem.New(), packs: map[pack.Ref]*packModel{}}
	w.src = index.Source{Store: w.store, Secret: pack.NewSecret([32]byte{1}), Vault: [16]byte{2}}
	for range 2 {
		ix, err := index.Open(context.Background(), w.src)
		if err != nil {
			t.Fatal(err)
		}
		w.open = append(w.open, ix)
	}
	return w
}

// id is one of few, so that packs hold the same ones; neighbours share fence and filter line.
func id(n int) chunk.ID {
	return chunk.ID{byte(n / 4), 0, 0, 0, 0, 0, 0, byte(n / 2 % 2), 31: byte(n + 1)}
}

const ids = 300

// addPack writes a pack and returns it.
func (w *world) addPack(t tester, kind pack.Kind, members []int) (pack.Ref, []pack.Entry) {
	t.Helper()
	w.made++
	n := w.made
	ref := pack.Ref{ID: pack.ID{byte(n), 15: byte(n >> 8)}, Kind: kind}
	pw, err := w.src.Secret.Create(context.Background(), w.store, ref, w.src.Vault)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range members {
		if _, err := pw.Append(id(m), 5, []byte("bytes"), chunk.Plain); err != nil {
			t.Fatal(err)
		}
	}
	entries, err := pw.Commit(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	w.packs[ref] = &packModel{entries: entries}
	return ref, entries
}

func (w *world) size(t tester, ref pack.Ref) int64 {
	t.Helper()
	info, err := w.store.Stat(context.Background(), ref.Name())
	if err != nil {
		t.Fatal(err)
	}
	return info.Size
}

func (w *world) names(t tester, prefix string) (names []string) {
	t.Helper()
	for info, err := range w.store.List(context.Background(), prefix, "") {
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, info.Name)
	}
	return names
}

// step does something to the world at random.
func (w *world) step(t *rapid.T) {
	ctx := context.Background()
	ix := w.open[rapid.IntRange(0, 1).Draw(t, "process")]
	var err error
	switch rapid.SampledFrom([]string{"add", "add", "add", "seal", "merge", "refresh", "reload", "end", "lose pack", "cut pack", "lose segment", "damage segment"}).Draw(t, "step") {
	case "add":
		kind := rapid.SampledFrom([]pack.Kind{pack.Data, pack.Meta}).Draw(t, "kind")
		ref, entries := w.addPack(t, kind, rapid.SliceOfN(rapid.IntRange(0, ids-1), 1, 120).Draw(t, "members"))
		if err = ix.Add(ctx, ref, w.size(t, ref), entries); err == nil {
			w.requireKnown(t, ix, ref)
		}
	case "seal":
		err = ix.Seal(ctx)
	case "merge":
		err = ix.Merge(ctx)
	case "refresh":
		err = ix.Refresh(ctx)
	case "reload":
		if err = ix.Reload(ctx); err == nil {
			w.requireKept(t, ix)
		}
	case "end":
		err = ix.SessionEnd(ctx)
	case "lose pack":
		if ref, ok := w.draw(t); ok {
			delete(w.packs, ref)
			err = w.store.Delete(ctx, ref.Name())
		}
	case "cut pack":
		if ref, ok := w.draw(t); ok {
			keep := rapid.IntRange(0, int(w.size(t, ref))-1).Draw(t, "keep")
			w.packs[ref].cut = true
			err = w.store.Corrupt(ref.Name(), func(b []byte) []byte { return b[:keep] })
		}
	case "lose segment":
		for _, name := range w.names(t, index.Prefix) {
			err = w.store.Delete(ctx, name)
			break
		}
	case "damage segment":
		for _, name := range w.names(t, index.Prefix) {
			at, bit := rapid.Float64Range(0, 0.999).Draw(t, "at"), rapid.IntRange(0, 7).Draw(t, "bit")
			err = w.store.Corrupt(name, func(b []byte) []byte { b[int(at*float64(len(b)))] ^= 1 << bit; return b })
			break
		}
	}
	if err != nil {
		t.Fatal(err)
	}
}

// draw returns a pack that is whole.
func (w *world) draw(t *rapid.T) (pack.Ref, bool) {
	whole := slices.SortedFunc(maps.Keys(w.packs), func(a, b pack.Ref) int { return slices.Compare(a.ID[:], b.ID[:]) })
	whole = slices.DeleteFunc(whole, func(r pack.Ref) bool { return w.packs[r].cut })
	if len(whole) == 0 {
		return pack.Ref{}, false
	}
	return rapid.SampledFrom(whole).Draw(t, "pack"), true
}

// requireKnown checks that an index finds what was just added to it.
func (w *world) requireKnown(t *rapid.T, ix *index.Index, ref pack.Ref) {
	for _, e := range w.packs[ref].entries {
		_, ok, err := ix.Find(context.Background(), e.ID, func(l index.Loc) bool { return l.Ref != ref })
		if err != nil || !ok {
			t.Fatalf("entry %s of a pack just added: %v, %v", e.ID, ok, err)
		}
	}
}

// requireKept checks that an index that was reloaded counts only on whole packs, and finds in some pack what segments and it itself know of those.
func (w *world) requireKept(t *rapid.T, ix *index.Index) {
	ctx := context.Background()
	for n := range ids {
		l, found, err := ix.FindKept(ctx, id(n), func(index.Loc) bool { return false })
		if err != nil {
			t.Fatal(err)
		}
		if p := w.packs[l.Ref]; found && (p == nil || p.cut) {
			t.Fatalf("counts on pack %s, which is not whole", l.Ref.Name())
		}
		all, err := ix.FindAll(ctx, id(n))
		if err != nil {
			t.Fatal(err)
		}
		whole := slices.ContainsFunc(all, func(l index.Loc) bool { return w.packs[l.Ref] != nil && !w.packs[l.Ref].cut })
		if whole != found {
			t.Fatalf("found %v in a whole pack, one is known: %v", found, whole)
		}
	}
}

// requireModel checks that an index that is up to date finds every copy in whole packs, of cut packs nothing but what is left of them, and
// nothing else.
func (w *world) requireModel(t *rapid.T, ix *index.Index) {
	want, left := map[string]bool{}, map[string]bool{}
	for ref, p := range w.packs {
		for _, e := range p.entries {
			place := fmt.Sprintf("%s %s %d %d %d", e.ID, ref.Name(), e.Offset, e.Stored, e.Plain)
			if !p.cut {
				want[place] = true
			} else if int64(e.Offset)+int64(e.Stored) <= w.size(t, ref) {
				left[place] = true
			}
		}
	}
	got := map[string]bool{}
	for n := range ids {
		locs, err := ix.FindAll(context.Background(), id(n))
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range locs {
			place := fmt.Sprintf("%s %s %d %d %d", l.ID, l.Ref.Name(), l.Offset, l.Stored, l.Plain)
			switch {
			case l.Cut && !left[place]:
				t.Fatalf("%s is said to be left of a cut pack", place)
			case !l.Cut:
				got[place] = true
			}
		}
	}
	if !maps.Equal(got, want) {
		t.Fatalf("finds %d places, there are %d, or others", len(got), len(want))
	}
}

// Whatever two processes and damage did to packs and segments, an index that is brought up to date, one opened anew and a snapshot agree
// with the packs.
func TestIndexAgreesWithPacks(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ctx := context.Background()
		w := newWorld(t)
		for range rapid.IntRange(1, 25).Draw(t, "steps") {
			w.step(t)
		}
		fresh, err := index.Open(ctx, w.src)
		if err != nil {
			t.Fatal(err)
		}
		for _, ix := range append(w.open, fresh) {
			if err := ix.Refresh(ctx); err != nil {
				t.Fatal(err)
			}
			w.requireModel(t, ix)
			w.requirePositions(t, ix)
		}
	})
}

// requirePositions checks that the positions of a snapshot are below its count and each of one place only.
func (w *world) requirePositions(t *rapid.T, ix *index.Index) {
	snap, err := ix.Snapshot(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	at := map[int64]string{}
	for n := range ids {
		locs, err := snap.FindAll(context.Background(), id(n))
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range locs {
			place := fmt.Sprint(l.ID, l.Ref, l.Offset)
			if l.Pos >= snap.Positions() || l.Pos >= 0 && at[l.Pos] != "" && at[l.Pos] != place {
				t.Fatalf("position %d of %d belongs to %s and %s", l.Pos, snap.Positions(), at[l.Pos], place)
			}
			at[l.Pos] = place
		}
	}
}

// What sessions have stored is found by others that list no packs, whether the session has ended or not.
func TestReloadListsNoPacks(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	ref, entries := w.addPack(t, pack.Data, []int{1})
	if err := errors.Join(w.open[0].Add(ctx, ref, w.size(t, ref), entries), w.open[0].SessionEnd(ctx)); err != nil {
		t.Fatal(err)
	}
	ix, err := index.Open(ctx, index.Source{Store: noLists{w.store, t}, Secret: w.src.Secret, Vault: w.src.Vault})
	if err != nil {
		t.Fatal(err)
	}
	atWork, _ := w.addPack(t, pack.Meta, []int{2})
	if err := errors.Join(ix.Reload(ctx), ix.LearnSession(ctx, atWork.ID.String()[:24])); err != nil {
		t.Fatal(err)
	}
	for n := 1; n <= 2; n++ {
		if l, found, err := ix.FindKept(ctx, id(n), func(index.Loc) bool { return false }); err != nil || !found {
			t.Errorf("chunk %d: %+v, %v, %v", n, l, found, err)
		}
	}
	if ix.Listed() {
		t.Error("packs were listed")
	}
}

// noLists is a store whose packs must not all be listed.
type noLists struct {
	*mem.Store
	t *testing.T
}

func (n noLists) List(ctx context.Context, prefix, after string) iter.Seq2[blob.Info, error] {
	if prefix == "data/" || prefix == "meta/" {
		n.t.Errorf("%s was listed", prefix)
	}
	return n.Store.List(ctx, prefix, after)
}

// A snapshot whose segments were merged away says so, and does not take it for missing chunks.
func TestSnapshotGoesStale(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	for n := range 2 {
		ref, entries := w.addPack(t, pack.Data, []int{n})
		if err := w.open[0].Add(ctx, ref, w.size(t, ref), entries); err != nil {
			t.Fatal(err)
		}
		if err := w.open[0].Seal(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.open[1].Refresh(ctx); err != nil {
		t.Fatal(err)
	}
	snap, err := w.open[1].Snapshot(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.open[0].Merge(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := snap.FindAll(ctx, id(0)); !isStale(err) {
		t.Fatalf("got %v", err)
	}
	if locs, err := w.open[1].FindAll(ctx, id(0)); err != nil || len(locs) != 1 {
		t.Fatalf("the index itself finds %v, %v", locs, err)
	}
}

// A damaged segment is passed over by readers, who may not be allowed to delete, and deleted by the next merge.
func TestDamagedSegmentIsReplaced(t *testing.T) {
	ctx := context.Background()
	for _, part := range []struct {
		name string
		at   func(size int) int
	}{{"header", func(int) int { return 3 }}, {"block", func(int) int { return 40 }}, {"filter", func(n int) int { return n - 70 }}, {"footer", func(n int) int { return n - 10 }}} {
		t.Run(part.name, func(t *testing.T) {
			w := newWorld(t)
			ref, entries := w.addPack(t, pack.Data, []int{1, 2, 3})
			if err := w.open[0].Add(ctx, ref, w.size(t, ref), entries); err != nil {
				t.Fatal(err)
			}
			if err := w.open[0].Seal(ctx); err != nil {
				t.Fatal(err)
			}
			name := w.names(t, index.Prefix)[0]
			if err := w.store.Corrupt(name, func(b []byte) []byte { b[part.at(len(b))] ^= 4; return b }); err != nil {
				t.Fatal(err)
			}
			reader := readOnly{w.store, t}
			ix, err := index.Open(ctx, index.Source{Store: reader, Secret: w.src.Secret, Vault: w.src.Vault})
			if err != nil {
				t.Fatal(err)
			}
			if locs, err := ix.FindAll(ctx, id(2)); err != nil || len(locs) != 1 {
				t.Fatalf("found %v, %v", locs, err)
			}
			if got := ix.Damaged(); len(got) != 1 || got[0] != name {
				t.Fatalf("damaged: %v", got)
			}
			other, err := index.Open(ctx, w.src)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := other.FindAll(ctx, id(2)); err != nil { // reads the block
				t.Fatal(err)
			}
			if err := other.Merge(ctx); err != nil {
				t.Fatal(err)
			}
			if slices.Contains(w.names(t, index.Prefix), name) {
				t.Error("it is still there after a merge")
			}
		})
	}
}

// readOnly is a store that must not be changed.
type readOnly struct {
	*mem.Store
	t *testing.T
}

func (r readOnly) Create(context.Context, string) (blob.Writer, error) {
	r.t.Error("a reader writes")
	return nil, fmt.Errorf("read-only")
}

func (r readOnly) Delete(context.Context, string) error {
	r.t.Error("a reader deletes")
	return fmt.Errorf("read-only")
}

func isStale(err error) bool { return errors.Is(err, index.ErrStale) }
