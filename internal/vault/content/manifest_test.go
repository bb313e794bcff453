package content_test

import (
	"context"
	"errors"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/blob/mem"
	"github.com/holdfast-vm/holdfast/internal/point"
	"github.com/holdfast-vm/holdfast/internal/vault/chunk"
	"github.com/holdfast-vm/holdfast/internal/vault/content"
	"github.com/holdfast-vm/holdfast/internal/vault/log"
	"github.com/holdfast-vm/holdfast/internal/vault/pack"
	"github.com/holdfast-vm/holdfast/internal/vault/row"
)

// manifestOf stores a manifest, and returns a short row that names it.
func (s *shelf) manifestOf(t *testing.T, m *row.Manifest) (*row.Row, *stored) {
	t.Helper()
	raw, err := row.EncodeManifest(m)
	if err != nil {
		t.Fatal(err)
	}
	w := newWriter(t, s.begin())
	e, err := w.w.Append(t.Context(), pack.Manifest, w.ids.ID(raw), len(raw), raw, chunk.Plain)
	if err != nil {
		t.Fatal(err)
	}
	d := &stored{}
	d.object, d.entries = s.commit(t, w.w)
	return &row.Row{Point: row.Brief(&m.Point), Short: true, Manifest: row.Place{Pack: d.object.ID, Entry: e}}, d
}

func testManifest() *row.Manifest {
	return &row.Manifest{Point: point.RecoveryPoint{ID: "p", VM: "vm", Name: "a name"},
		Trees: []row.Tree{{Line: row.Line{1}, Root: chunk.ID{2}, Chunks: 3}}}
}

func requireManifest(t *testing.T, r *reader, short *row.Row, want *row.Manifest) {
	t.Helper()
	m, err := r.Manifest(t.Context(), short, r.goodPack)
	if err != nil || m.Point.Name != want.Point.Name || m.Point.VM != want.Point.VM {
		t.Fatalf("the manifest reads as %+v: %v", m, err)
	}
	trees, err := r.Trees(t.Context(), short, r.goodPack)
	if err != nil || len(trees) != 1 || trees[0] != want.Trees[0] {
		t.Fatalf("its trees are %v: %v", trees, err)
	}
}

// A manifest is read where its row says, without any index; and after it was moved wherever it is,
// whether the reader has heard of that or not.
func TestManifestsAreFound(t *testing.T) {
	s, want := newShelf(mem.New()), testManifest()
	short, at := s.manifestOf(t, want)
	early := s.open(t)
	blind := s.open(t)
	blind.Source = content.New(content.Parts{Index: noIndex{}, Packs: pack.NewReader(secret, s.store)})
	requireManifest(t, blind, short, want)
	s.move(t, at.object, at.entries)
	requireManifest(t, early, short, want)
	requireManifest(t, s.open(t), short, want)
}

// noIndex is asked nothing.
type noIndex struct{ content.Places }

// A manifest that stands in the row is read from there, and trees that do.
func TestInlineManifests(t *testing.T) {
	want := testManifest()
	raw, err := row.EncodeManifest(want)
	if err != nil {
		t.Fatal(err)
	}
	s := content.New(content.Parts{Index: noIndex{}})
	r := &row.Row{Point: want.Point, Inline: raw, Trees: want.Trees}
	if m, err := s.Manifest(t.Context(), r, nil); err != nil || m.Point.Name != "a name" {
		t.Errorf("it reads as %+v, %v", m, err)
	}
	if trees, err := s.Trees(t.Context(), r, nil); err != nil || len(trees) != 1 {
		t.Errorf("its trees are %v, %v", trees, err)
	}
}

// A manifest that is not what its row says is damage.
func TestDamagedManifests(t *testing.T) {
	store := mem.New()
	s, m := newShelf(store), testManifest()
	short, at := s.manifestOf(t, m)
	r := s.open(t)
	other := *short
	other.Point.ID = "another"
	if _, err := r.Manifest(t.Context(), &other, r.goodPack); !errors.Is(err, content.ErrCorrupt) {
		t.Errorf("a manifest of another point: %v", err)
	}
	unread := errors.New("unread")
	fails := func(context.Context, log.ObjectID) (o log.Object, ok bool, err error) { return o, false, unread }
	if _, err := r.Manifest(t.Context(), short, fails); !errors.Is(err, unread) || content.IsDamage(err) {
		t.Errorf("a state that cannot be read: %v", err)
	}
	err := store.Corrupt(at.object.Name(), func(b []byte) []byte { b[short.Manifest.Offset] ^= 1; return b })
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Trees(t.Context(), short, r.goodPack); !errors.Is(err, content.ErrCorrupt) {
		t.Errorf("a damaged manifest: %v", err)
	}
	s.remove(t, at.object)
	if _, err := r.Trees(t.Context(), short, r.goodPack); !errors.Is(err, content.ErrCorrupt) {
		t.Errorf("a manifest that is nowhere: %v", err)
	}
}
