package extent_test

import (
	"testing"

	"pgregory.net/rapid"

	"github.com/holdfast-vm/holdfast/internal/extent"
)

const space = 64 // bytes of the model disk

type bits [space]bool

func drawSet(t *rapid.T, name string) (extent.Set, bits) {
	var list []extent.Extent
	var model bits
	for range rapid.IntRange(0, 8).Draw(t, name+" count") {
		off := rapid.Int64Range(0, space-1).Draw(t, name+" off")
		n := rapid.Int64Range(0, space-off).Draw(t, name+" len")
		list = append(list, extent.Extent{Off: off, Len: n})
		for i := off; i < off+n; i++ {
			model[i] = true
		}
	}
	return extent.Of(list...), model
}

func requireModel(t *rapid.T, what string, got extent.Set, want func(i int) bool) {
	var have bits
	last := int64(-1)
	for _, e := range got {
		if e.Len <= 0 || e.Off <= last {
			t.Fatalf("%s: %v is not canonical", what, got)
		}
		last = e.End()
		for i := e.Off; i < e.End(); i++ {
			have[i] = true
		}
	}
	for i := range space {
		if have[i] != want(i) {
			t.Fatalf("%s: byte %d is %v in %v", what, i, have[i], got)
		}
	}
}

// Set operations agree with the same operations on a plain array of booleans.
func TestSetsAgreeWithBits(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, ma := drawSet(t, "a")
		b, mb := drawSet(t, "b")
		requireModel(t, "of", a, func(i int) bool { return ma[i] })
		requireModel(t, "union", a.Union(b), func(i int) bool { return ma[i] || mb[i] })
		requireModel(t, "intersect", a.Intersect(b), func(i int) bool { return ma[i] && mb[i] })
		requireModel(t, "subtract", a.Subtract(b), func(i int) bool { return ma[i] && !mb[i] })
		const unit, size = 8, 60
		requireModel(t, "align", a.Clip(extent.Extent{Off: 0, Len: size}).Align(unit, size), func(i int) bool {
			if i >= size {
				return false
			}
			for k := i / unit * unit; k < min(i/unit*unit+unit, size); k++ {
				if ma[k] {
					return true
				}
			}
			return false
		})
		if got, want := a.Bytes(), a.Subtract(b).Bytes()+a.Intersect(b).Bytes(); got != want {
			t.Fatalf("bytes: %d, parts have %d", got, want)
		}
	})
}
