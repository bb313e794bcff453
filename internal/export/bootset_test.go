package export

import (
	"slices"
	"testing"
	"time"

	"github.com/holdfast-vm/holdfast/internal/extent"
)

// A record holds what was read, in order and once, and ends at its limit, by the clock or when
// told; a copy is not a boot.
func TestRecorder(t *testing.T) {
	var got []bootSet
	ended := func(s bootSet) { got = append(got, s) }
	r := newRecorder(time.Hour, ended)
	for _, off := range []int64{5 * recordUnit, 6 * recordUnit, 5*recordUnit + 100, 0} {
		r.note(off, 4096)
	}
	r.finish()
	r.note(recordUnit, 1)
	r.finish()
	want := bootSet{{Off: 5 * recordUnit, Len: 2 * recordUnit}, {Off: 0, Len: recordUnit}}
	if len(got) != 1 || !slices.Equal(got[0], want) {
		t.Fatalf("recorded %v, want %v once", got, want)
	}
	copied := newRecorder(time.Hour, ended)
	copied.note(0, maxBootBytes+1)
	copied.finish()
	newRecorder(time.Hour, ended).finish()
	if len(got) != 1 {
		t.Fatalf("a copy, or nothing, was recorded as a boot: %v", got[1:])
	}
}

// A note may hold anything: what is taken can be fetched.
func FuzzBootSet(f *testing.F) {
	f.Add([]byte(`{"version":1,"disk":"vda","extents":[{"offset":0,"length":65536}]}`))
	f.Add([]byte(`{"version":1,"disk":"vda","extents":[{"offset":-1,"length":9223372036854775807}]}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		set, err := parseBootSet(raw, "vda")
		if err != nil {
			return
		}
		for _, e := range set {
			if e.Off < 0 || e.Len <= 0 || e.End() < e.Off {
				t.Fatalf("took %+v", extent.Extent(e))
			}
		}
	})
}
