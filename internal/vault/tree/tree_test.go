package tree_test

import (
	"context"
	"crypto/sha256"
	"fmt"
	"testing"

	"pgregory.net/rapid"

	"github.com/holdfast-vm/holdfast/internal/vault/chunk"
	"github.com/holdfast-vm/holdfast/internal/vault/tree"
)

// memory is a Writer that keeps nodes by their content and counts reads.
type memory struct {
	nodes map[chunk.ID][]byte
	reads int
}

func (m *memory) Node(_ context.Context, id chunk.ID, level int) (*tree.Node, error) {
	m.reads++
	b, ok := m.nodes[id]
	if !ok {
		return nil, fmt.Errorf("no node %s", id)
	}
	return tree.Parse(b, level)
}

func (m *memory) PutNode(_ context.Context, n *tree.Node) (chunk.ID, error) {
	b := n.Append(nil)
	id := chunk.ID(sha256.Sum256(b))
	m.nodes[id] = b
	return id, nil
}

type model map[int64]chunk.ID

func drawDisk(t *rapid.T, name string, chunks int64) model {
	m := model{}
	for range rapid.IntRange(0, 20).Draw(t, name) {
		at := rapid.Int64Range(0, chunks-1).Draw(t, name+" at")
		m[at] = chunk.ID{byte(rapid.IntRange(1, 200).Draw(t, name+" id"))}
	}
	return m
}

// build makes base into want by replacing the leaves that differ.
func build(t *rapid.T, m *memory, base chunk.ID, have, want model, chunks int64) chunk.ID {
	ctx := context.Background()
	b := tree.NewBuilder(m, base, chunks)
	for leaf := int64(0); leaf*tree.FanOut < chunks; leaf++ {
		var n tree.Node
		same := true
		for i := range int64(tree.FanOut) {
			n.Slots[i] = want[leaf*tree.FanOut+i]
			same = same && want[leaf*tree.FanOut+i] == have[leaf*tree.FanOut+i]
		}
		if same {
			continue
		}
		var id chunk.ID
		if n.Count() > 0 {
			id, _ = m.PutNode(ctx, &n)
		}
		if err := b.SetLeaf(ctx, leaf, id); err != nil {
			t.Fatal(err)
		}
	}
	root, err := b.Finish(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return root
}

func contents(t *rapid.T, m *memory, root chunk.ID, chunks int64) model {
	got := model{}
	err := tree.Walk(context.Background(), m, root, chunks, func(r tree.Run) error {
		for i, id := range r.Node.Slots {
			if !id.IsHole() {
				got[r.First+int64(i)] = id
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// However a disk came to its content, its root is the same, holds exactly that content, and Diff of
// two disks names exactly the chunks that differ.
func TestTreesAreCanonical(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ctx := context.Background()
		m := &memory{nodes: map[chunk.ID][]byte{}}
		chunks := rapid.SampledFrom([]int64{1, 64, 65, 5000, 300_000}).Draw(t, "chunks")
		a, b := drawDisk(t, "a", chunks), drawDisk(t, "b", chunks)
		rootA := build(t, m, chunk.ID{}, nil, a, chunks)
		viaA := build(t, m, rootA, a, b, chunks)
		if direct := build(t, m, chunk.ID{}, nil, b, chunks); direct != viaA {
			t.Fatalf("root depends on history: %s, %s", direct, viaA)
		}
		if got := contents(t, m, viaA, chunks); fmt.Sprint(got) != fmt.Sprint(b) {
			t.Fatalf("holds %v, want %v", got, b)
		}
		for at, want := range b {
			if got, err := tree.Lookup(ctx, m, viaA, chunks, at); err != nil || got != want {
				t.Fatalf("lookup %d: %v %v", at, got, err)
			}
		}
		want := map[int64]bool{}
		for at := range a {
			want[at] = a[at] != b[at]
		}
		for at := range b {
			want[at] = a[at] != b[at]
		}
		last := int64(-1)
		err := tree.Diff(ctx, m, rootA, chunks, viaA, chunks, func(first, count int64) error {
			if count != 1 || !want[first] || first <= last {
				t.Fatalf("diff names %d+%d", first, count)
			}
			last = first
			delete(want, first)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		for at, differs := range want {
			if differs {
				t.Fatalf("diff leaves out %d", at)
			}
		}
	})
}

// Disks of different sizes, and so of different heights, compare as if the shorter one ended in
// holes.
func TestDiffAcrossHeights(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := &memory{nodes: map[chunk.ID][]byte{}}
		const small, large = 60, 5000
		a, b := drawDisk(t, "a", small), drawDisk(t, "b", large)
		for at, id := range a {
			if rapid.Bool().Draw(t, "keep") {
				b[at] = id
			}
		}
		rootA, rootB := build(t, m, chunk.ID{}, nil, a, small), build(t, m, chunk.ID{}, nil, b, large)
		got := map[int64]bool{}
		if err := tree.Diff(context.Background(), m, rootA, small, rootB, large, func(first, _ int64) error {
			got[first] = true
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		for at := range int64(large) {
			if got[at] != (a[at] != b[at]) {
				t.Fatalf("chunk %d: diff says %v", at, got[at])
			}
		}
	})
}

// Comparing two large disks that differ in one chunk reads two paths, whatever their size.
func TestDiffReadsOnlyWhatDiffers(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := &memory{nodes: map[chunk.ID][]byte{}}
		const chunks = 64 * 64 * 8
		a := model{}
		for i := int64(0); i < chunks; i += 64 {
			a[i] = chunk.ID{1, byte(i), byte(i >> 8)}
		}
		b := model{}
		for at, id := range a {
			b[at] = id
		}
		b[rapid.Int64Range(0, chunks-1).Draw(t, "at")] = chunk.ID{9, 9}
		rootA, rootB := build(t, m, chunk.ID{}, nil, a, chunks), build(t, m, chunk.ID{}, nil, b, chunks)
		m.reads = 0
		_ = tree.Diff(context.Background(), m, rootA, chunks, rootB, chunks, func(int64, int64) error { return nil })
		if m.reads > 2*tree.Levels(chunks) {
			t.Fatalf("%d nodes read", m.reads)
		}
	})
}

func FuzzParse(f *testing.F) {
	var n tree.Node
	n.Slots[3] = chunk.ID{1}
	f.Add(n.Append(nil), 0)
	f.Fuzz(func(t *testing.T, b []byte, level int) {
		n, err := tree.Parse(b, level)
		if err != nil {
			return
		}
		if string(n.Append(nil)) != string(b) {
			t.Fatalf("parsed bytes are not canonical")
		}
	})
}
