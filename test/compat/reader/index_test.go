package main

import (
	"testing"
)

// The golden index reads by the text.
func TestGoldenIndex(t *testing.T) {
	key, vault := make([]byte, 32), make([]byte, 16)
	key[0], vault[0] = 1, 2
	x, err := readIndex("../../../internal/vault/index/testdata/golden", key, vault)
	if err != nil {
		t.Fatal(err)
	}
	if len(x.segments) != 1 || len(x.segments[0].read) != 540 || x.segments[0].from != 0 || x.segments[0].to != 6 {
		t.Errorf("%d segments, %+v", len(x.segments), x.segments[0])
	}
}

// requireIndex checks that what an index says of good packs stands in their tables, and that it has
// all rows of the packs of the entries that it covers. It returns how many it has.
func requireIndex(t *testing.T, v *vaultDir) (rows int) {
	t.Helper()
	x, err := readIndex(v.dir, v.keys["index"], v.id)
	if err != nil {
		t.Fatal(err)
	}
	if x == nil {
		return 0
	}
	has := map[string]int{} // rows by pack
	for _, s := range x.segments {
		for _, r := range s.read {
			name := packName(r.object[:24], r.object[25])
			has[name]++
			for _, p := range v.places[r.id] {
				if p.name == name && p.slot == int(r.slot) && p.sealedRow != r.sealedRow {
					t.Errorf("%s: row %d is %+v in the index, %+v in the table", name, r.slot, r.sealedRow, p.sealedRow)
				}
			}
			rows++
		}
	}
	for _, places := range v.places {
		for _, p := range places {
			if n := has[p.name]; n > 0 && n != len(p.pack.rows) {
				t.Errorf("%s has %d rows in the index, %d in its table", p.name, n, len(p.pack.rows))
			}
		}
	}
	return rows
}
