package log_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/holdfast-vm/holdfast/internal/blob"
	"github.com/holdfast-vm/holdfast/internal/blob/dir"
	"github.com/holdfast-vm/holdfast/internal/blob/mem"
	"github.com/holdfast-vm/holdfast/internal/vault/log"
	"github.com/holdfast-vm/holdfast/internal/vault/state"
)

// The golden log is of format 1 for ever; -update is for the day on which a new format gets a new
// one.
var update = flag.Bool("update", false, "write testdata/golden anew")

const golden = "testdata/golden"

// goldenFacts is what the golden log must read as.
type goldenFacts struct {
	Entries  uint64         `json:"entries"`
	Volume   uint32         `json:"volume"`
	Head     string         `json:"head"` // hash of the last entry
	Counters state.Counters `json:"counters"`
	Points   []string       `json:"points"` // IDs
}

// everyOp appends one operation of each kind, and more points. All is made from the seed.
func everyOp(t *testing.T, o *opened, rng *rand.Rand, store blob.Store) {
	t.Helper()
	ctx := context.Background()
	do := func(op log.Op) {
		t.Helper()
		if _, err := o.Append(ctx, func(context.Context) ([]log.Op, error) { return []log.Op{op}, nil }); err != nil {
			t.Fatal(err)
		}
	}
	id := func() (id state.ID) {
		binary.BigEndian.PutUint64(id[:], rng.Uint64())
		return id
	}
	session := func() (s log.Session) {
		binary.BigEndian.PutUint64(s[:], rng.Uint64())
		return s
	}
	n := uint32(0)
	pack := func(s log.Session, size int) log.Object {
		n++
		b := bytes.Repeat([]byte{byte(n)}, size)
		return log.Object{ID: log.NewObjectID(o.log.Head().At.Volume, s, n), Kind: log.Pack, Size: uint64(size),
			Sum: log.HashOf(b)}
	}
	var points []state.ID
	var packs []log.Object
	for i := range 150 {
		c := state.Commit{Session: session(), Points: []state.Point{{ID: id(), Time: int64(i), Until: int64(1000 * i),
			Finds:    []string{fmt.Sprintf("vm/%d", i%7), "all"},
			Manifest: fmt.Appendf(nil, "manifest %d", i), Replaced: []byte{byte(i)}}}}
		c.Added = []log.Object{pack(c.Session, 100+i)}
		if i > 0 {
			c.Points[0].Bases = []state.ID{points[i/2]}
			c.Counts = []state.Count{{Pack: packs[i/3].ID, Shared: []byte{byte(i)}}}
		}
		points = append(points, c.Points[0].ID)
		packs = append(packs, c.Added...)
		do(c.Op())
		if i == 70 {
			if err := o.Roll(ctx); err != nil {
				t.Fatal(err)
			}
		}
	}
	long, next := session(), session()
	progress := state.Progress{Session: long, Machine: "vm", Holder: []byte("process 12"), Bases: points[:1],
		Added:  []log.Object{pack(long, 5)},
		Counts: []state.Count{{Pack: packs[9].ID, Shared: []byte{1, 2}}}, Roots: []byte("roots")}
	do(progress.Op())
	adopted := state.Adopted{Session: long, Progress: 1}
	do((&state.Adopt{From: adopted, By: next}).Op())
	do((&state.Progress{Session: session(), Machine: "other", Added: []log.Object{pack(next, 7)}}).Op())
	do((&state.Commit{Session: next, Adopted: []state.Adopted{adopted}, Own: []log.ObjectID{progress.Added[0].ID},
		Points: []state.Point{{ID: id(), Bases: points[:2]}}}).Op())
	given := session()
	do((&state.Progress{Session: given, Machine: "third"}).Op())
	do((&state.GiveUp{Sessions: []state.Adopted{{Session: given, Progress: 1}}}).Op())
	moved := pack(session(), 9)
	do((&state.Condemn{Packs: []log.ObjectID{packs[1].ID, packs[2].ID}, Added: []log.Object{moved},
		Bytes: packs[1].Size + packs[2].Size,
		Recipes: []log.Recipe{{Makes: moved.ID,
			Pieces: []log.Piece{{Of: packs[1].ID, Kind: log.Pack, Offset: 3, Length: 9}}}},
		AddedAt: []uint64{3, 4}, Parts: []bool{false, true},
		Moved: []state.Moved{{Pack: moved.ID, Shared: []byte{1}, Freed: []byte{2}, FreedBytes: 4}},
		Mark:  o.log.Head().At, MarkAt: 5}).Op())
	do((&state.Condemn{Orphans: true, Packs: []log.ObjectID{pack(session(), 1).ID}}).Op())
	do(state.Gone([]log.ObjectID{packs[1].ID}))
	do((&state.Delete{Points: points[3:5], Until: 77}).Op())
	do((&state.Undelete{Points: points[3:4]}).Op())
	purge := func(ids ...state.ID) uint64 {
		p := state.Purge{}
		for _, id := range ids {
			p.Points = append(p.Points, state.Purged{ID: id})
		}
		if err := p.Check(ctx, o.state, 0); err != nil {
			t.Fatal(err)
		}
		do(p.Op())
		return o.state.Count()
	}
	freed := func(f state.Freed) {
		if err := f.Check(ctx, o.state); err != nil {
			t.Fatal(err)
		}
		do(f.Op())
	}
	at := purge(points[130], points[6])
	later := purge(points[140])
	freed(state.Freed{Walk: []state.Walk{{Point: points[130], At: at, To: []byte("half")}},
		Slots: []state.Count{{Pack: packs[8].ID, Shared: []byte{0, 1}, Bytes: 55}}})
	freed(state.Freed{Walk: []state.Walk{{Point: points[130], At: at, From: []byte("half"), Done: true},
		{Point: points[6], At: at, Done: true}}})
	freed(state.Freed{Walk: []state.Walk{{Point: points[140], At: later, To: []byte("begun")}}})
	freed(state.Freed{FromMark: true, Mark: o.log.Head().At, MarkAt: o.state.Count(), Last: o.state.LastCondemn(),
		Slots: []state.Count{{Pack: packs[8].ID, Shared: []byte{1}, Bytes: 7}, {Pack: packs[9].ID, Shared: []byte{1}}},
		Keep:  []state.Count{{Pack: packs[30].ID, Shared: []byte{4}}}})
	do((&state.Damaged{Packs: []log.ObjectID{packs[20].ID, packs[21].ID}}).Op())
	do((&state.Condemn{Packs: []log.ObjectID{packs[21].ID}, AddedAt: []uint64{23}, Bytes: packs[21].Size}).Op())
	hold := state.Hold{Point: points[10], ID: id(), Holder: []byte("export of vm")}
	do(hold.Op())
	do((&state.Hold{Point: points[11], ID: id(), Holder: []byte("drill")}).Op())
	do(hold.Release())
	do((&state.Lock{Point: points[12], Until: 1 << 41}).Op())
	do((&state.Owner{Term: 3, Name: "east"}).Op())
	do(state.Pin(id()))
	mirror := id()
	do(state.Pin(mirror))
	do(state.Arrived(mirror))
	do(state.Pin(mirror))
	do(state.Unpin(mirror))
	// Garbage at the next number, which is void, and one more entry.
	void := o.log.Head().At
	void.Number++
	if err := blob.Put(ctx, store, log.EntryName(void), []byte("garbage")); err != nil {
		t.Fatal(err)
	}
	do((&state.Owner{Term: 4, Name: "west"}).Op())
	if err := o.Do(ctx, func(l *log.Log) error {
		_, err := l.Checkpoint(ctx)
		return err
	}); err != nil {
		t.Fatal(err)
	}
}

func goldenLog(t *testing.T) *mem.Store {
	t.Helper()
	s := mem.New()
	begin(t, s)
	rng := rand.New(rand.NewPCG(1, 2))
	clock := time.UnixMilli(1_800_000_000_000)
	o := open(t, s, log.Options{Who: "root@east holdfast[12]", Term: 2, Now: func() time.Time {
		clock = clock.Add(time.Second)
		return clock
	},
		Rand: func(b []byte) {
			for i := range b {
				b[i] = byte(rng.Uint32())
			}
		}})
	everyOp(t, o, rand.New(rand.NewPCG(3, 4)), s)
	return s
}

func factsOf(t *testing.T, s blob.Store) (f goldenFacts) {
	t.Helper()
	o := open(t, s, log.Options{})
	head := o.log.Head()
	f = goldenFacts{Entries: o.state.Count(), Volume: head.At.Volume.Number, Head: fmt.Sprintf("%x", head.Hash),
		Counters: o.state.Counters()}
	if err := o.state.Points(context.Background(), func(p state.Point) bool {
		f.Points = append(f.Points, fmt.Sprintf("%x", p.ID))
		return true
	}); err != nil {
		t.Fatal(err)
	}
	return f
}

// Today's code reads the golden log, from its checkpoint and from its first entry, and writes the
// same, byte for byte.
func TestGolden(t *testing.T) {
	fresh := goldenLog(t)
	if *update {
		writeGolden(t, fresh)
	}
	store, err := dir.Open(filepath.Join(golden, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	copied := mem.New()
	entriesOnly := mem.New()
	n := 0
	for info, err := range store.List(t.Context(), "", "") {
		if err != nil {
			t.Fatal(err)
		}
		raw, err := blob.Get(t.Context(), store, info.Name)
		if err != nil {
			t.Fatal(err)
		}
		if now, err := blob.Get(t.Context(), fresh, info.Name); err != nil || !bytes.Equal(now, raw) {
			t.Errorf("%s is written otherwise today: %v", info.Name, err)
		}
		n++
		if err := blob.Put(t.Context(), copied, info.Name, raw); err != nil {
			t.Fatal(err)
		}
		if info.Name[:4] == "log/" {
			if err := blob.Put(t.Context(), entriesOnly, info.Name, raw); err != nil {
				t.Fatal(err)
			}
		}
	}
	var want goldenFacts
	raw, err := os.ReadFile(filepath.Join(golden, "expected.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(raw, &want); err != nil {
		t.Fatal(err)
	}
	for _, s := range []blob.Store{copied, entriesOnly} {
		if got := factsOf(t, s); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("it reads as %+v, want %+v", got, want)
		}
	}
}

func writeGolden(t *testing.T, s *mem.Store) {
	t.Helper()
	if err := os.RemoveAll(golden); err != nil {
		t.Fatal(err)
	}
	for info, err := range s.List(t.Context(), "", "") {
		if err != nil {
			t.Fatal(err)
		}
		raw, err := blob.Get(t.Context(), s, info.Name)
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(golden, "log", info.Name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, raw, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	raw, err := json.MarshalIndent(factsOf(t, s), "", "  ")
	if err == nil {
		err = os.WriteFile(filepath.Join(golden, "expected.json"), append(raw, '\n'), 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
}
