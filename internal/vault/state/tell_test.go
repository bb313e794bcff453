package state

import (
	"fmt"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/vault/log"
)

// Every operation is told in words, with its points and packs.
func TestTell(t *testing.T) {
	p, q := ID{1}, ID{2}
	pack := log.Object{ID: log.ObjectID{5}, Kind: log.Pack, Size: 70}
	undo := func(h Hold) log.Op { return h.Release() }
	for _, tt := range []struct {
		op   log.Op
		want string
	}{
		{log.Op{Kind: log.Begin}, "begin [] 0 0: a volume"},
		{log.Op{Kind: log.End}, "end [] 0 0: of the volume"},
		{(&Commit{Points: []Point{{ID: p}}, Added: []log.Object{pack}, Counts: []Count{{Pack: pack.ID}}}).Op(),
			"commit [1] 1 70: recovery point 01000000000000000000000000000000, adding 1 pack and counting on 1"},
		{(&Commit{Points: []Point{{ID: p}, {ID: q}}}).Op(),
			"commit [1 2] 0 0: 2 recovery points, adding 0 packs and counting on 0"},
		{(&Progress{Machine: "vm", Number: 3, Added: []log.Object{pack}}).Op(),
			"progress [] 1 70: 3 of session 00000000000000000000 of vm, adding 1 pack"},
		{(&Adopt{By: log.Session{9}}).Op(),
			"adopt [] 0 0: session 09000000000000000000 goes on from 00000000000000000000"},
		{(&GiveUp{Sessions: []Adopted{{Progress: 1}}}).Op(), "give up [] 0 0: sessions 00000000000000000000"},
		{(&Condemn{Packs: []log.ObjectID{{1}, {2}}, AddedAt: []uint64{1, 2}, Bytes: 9, Added: []log.Object{pack}}).Op(),
			"condemn [] 2 9: 2 packs, of which what lives is in 1 pack"},
		{(&Condemn{Packs: []log.ObjectID{{1}}, Orphans: true}).Op(), "condemn [] 1 0: 1 pack in no entry"},
		{Gone([]log.ObjectID{{1}, {2}}), "gone [] 2 0: 2 packs are deleted"},
		{(&Delete{Points: []ID{q}, Until: 1_800_000_000_000}).Op(), "delete [2] 0 0: recovery point " +
			"02000000000000000000000000000000, to be purged from 2027-01-15 08:00:00 UTC on"},
		{(&Undelete{Points: []ID{p, q}}).Op(), "undelete [1 2] 0 0: 2 recovery points"},
		{(&Purge{Points: []Purged{{ID: q, Finds: []string{"vm"}}}}).Op(),
			"purge [2] 0 0: recovery point 02000000000000000000000000000000"},
		{(&Freed{Walk: []Walk{{Point: p}, {Point: q}}, Slots: []Count{{Pack: pack.ID}}}).Op(),
			"freed [1 2] 1 0: slots of 1 pack, by purging 2 recovery points"},
		{(&Freed{FromMark: true}).Op(), "freed [] 0 0: slots of 0 packs, by a full mark"},
		{(&Hold{Point: p, ID: q}).Op(), "hold [1] 0 0: 02000000000000000000000000000000 of recovery point " +
			"01000000000000000000000000000000"},
		{undo(Hold{Point: p, ID: q}), "release [1] 0 0: 02000000000000000000000000000000 of recovery point " +
			"01000000000000000000000000000000"},
		{(&Lock{Point: p}).Op(), "lock [1] 0 0: recovery point 01000000000000000000000000000000 until " +
			"1970-01-01 00:00:00 UTC"},
		{(&Owner{Term: 3, Name: "east"}).Op(), "owner [] 0 0: east, term 3"},
		{(&Damaged{Packs: []log.ObjectID{{1}}}).Op(), "damaged [] 1 0: 1 pack"},
		{Pin(p), "pin [] 0 0: mirror 01000000000000000000000000000000"},
		{Arrived(p), "arrived [] 0 0: mirror 01000000000000000000000000000000"},
		{Unpin(p), "unpin [] 0 0: mirror 01000000000000000000000000000000"},
		{log.Op{Kind: 999}, "kind 999 [] 0 0: this program cannot read it"},
		{log.Op{Kind: KindCommit, Body: []byte("x")}, "kind 16 [] 0 0: this program cannot read it"},
	} {
		got := Tell(&tt.op)
		short := []byte{}
		for _, id := range got.Points {
			short = append(short, id[0])
		}
		if text := fmt.Sprintf("%s %d %d %d: %s", got.What, short, got.Packs, got.Bytes, got.Text); text != tt.want {
			t.Errorf("told as\n%s, want\n%s", text, tt.want)
		}
	}
}
