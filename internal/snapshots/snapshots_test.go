package snapshots

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-vm/holdfast/internal/blob/mem"
	"github.com/holdfast-vm/holdfast/internal/extent"
	"github.com/holdfast-vm/holdfast/internal/point"
	"github.com/holdfast-vm/holdfast/internal/vault"
)

const chunk = 16 << 10

var key = vault.Key{Identity: "AGE-SECRET-KEY-1GFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPQ4EGAEX"}

func newVault(t *testing.T) *vault.Vault {
	t.Helper()
	s := mem.New()
	if _, err := vault.Init(t.Context(), s,
		vault.InitOptions{ChunkSize: chunk, Keys: []vault.NamedKey{{Name: "k", Key: key}}}); err != nil {
		t.Fatal(err)
	}
	v, err := vault.Open(t.Context(), s, key, vault.Options{Workers: 2})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { v.Close() })
	return v
}

// disk is a disk that is written to and of which snapshots are taken.
type disk struct {
	name string
	data []byte
}

// take stores a snapshot of disks, each whole.
func take(t *testing.T, v *vault.Vault, p *point.RecoveryPoint, disks ...*disk) *point.RecoveryPoint {
	t.Helper()
	s, err := v.Begin(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Abort()
	p.ID, p.Kind, p.ConsistencyReason = point.NewID(), point.Snapshot, "test"
	if p.Time.IsZero() {
		p.Time = time.Now().UTC()
	}
	for _, d := range disks {
		size := int64(len(d.data))
		out, err := s.PutDisk(t.Context(),
			vault.DiskInput{Size: size, Data: extent.Of(extent.Extent{Len: size}), Source: bytes.NewReader(d.data)})
		if err != nil {
			t.Fatal(err)
		}
		p.Disks = append(p.Disks, point.Disk{Name: d.name, Size: size, Root: out.Root, Used: out.Used, Managed: d.name,
			ManagedID: "id-" + d.name})
	}
	if err := s.Commit(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	return p
}

func (d *disk) write(rng *rand.Rand) {
	at := rng.IntN(len(d.data)/chunk) * chunk
	fill(rng, d.data[at:at+chunk])
}

func live(t *testing.T, v *vault.Vault) int64 {
	t.Helper()
	r, err := v.CollectGarbage(t.Context(), vault.GCOptions{Full: true})
	if err != nil {
		t.Fatal(err)
	}
	return r.LiveBytes
}

// In whatever order snapshots are deleted, each frees exactly what it alone held, and those that
// are left are what they were.
func TestDeletingFreesWhatItAloneHeld(t *testing.T) {
	for seed := range uint64(6) {
		rng := rand.New(rand.NewPCG(seed, 3))
		v := newVault(t)
		disks := []*disk{{name: "a", data: make([]byte, 30*chunk)}, {name: "b", data: make([]byte, 20*chunk)}}
		content := map[point.ID]map[string][]byte{}
		var left []*point.RecoveryPoint
		for i := range 12 {
			of := disks[:1+rng.IntN(2)]
			for _, d := range of {
				for range rng.IntN(5) {
					d.write(rng)
				}
			}
			p := take(t, v, &point.RecoveryPoint{Name: fmt.Sprint("s", i)}, of...)
			content[p.ID] = map[string][]byte{}
			for _, d := range of {
				content[p.ID][d.name] = slices.Clone(d.data)
			}
			left = append(left, p)
		}
		for len(left) > 0 {
			rows, err := Current(t.Context(), v, By{kind: "snapshot"})
			if err != nil || len(rows) != len(left) {
				t.Fatalf("seed %d: %d rows of %d snapshots, %v", seed, len(rows), len(left), err)
			}
			i := rng.IntN(len(left))
			p := left[i]
			row := rows[slices.IndexFunc(rows, func(r Row) bool { return r.ID == p.ID })]
			before := live(t, v)
			if err := Delete(t.Context(), v, p, -1, time.Now()); err != nil {
				t.Fatal(err)
			}
			if freed := before - live(t, v); !frees(row, freed) {
				t.Fatalf("seed %d: deleting %s freed %d bytes, it alone was to hold %d", seed, p.Name, freed, row.Alone)
			}
			left = slices.Delete(left, i, i+1)
			for _, p := range left {
				requireContent(t, v, p, content[p.ID])
			}
		}
	}
}

// frees reports whether deleting a group frees what it alone held: to the byte, but for the
// manifests of the snapshots, which are no part of their disks.
func frees(r Row, freed int64) bool {
	const manifest = 2 << 10 // bytes, at most, of such small ones
	return freed >= r.Alone && freed < r.Alone+int64(r.Snapshots)*manifest
}

func requireContent(t *testing.T, v *vault.Vault, p *point.RecoveryPoint, want map[string][]byte) {
	t.Helper()
	for _, d := range p.Disks {
		r, err := v.OpenDisk(d.Root, d.Size)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(io.NewSectionReader(r, 0, d.Size))
		if err != nil || !bytes.Equal(got, want[d.Name]) {
			t.Fatalf("snapshot %s: disk %s is not what it was: %v", p.Name, d.Name, err)
		}
	}
}

// A group alone holds what deleting all of it frees.
func TestGroups(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 9))
	v := newVault(t)
	d, e := &disk{name: "a", data: make([]byte, 20*chunk)}, &disk{name: "b", data: make([]byte, 20*chunk)}
	var mine []*point.RecoveryPoint
	for i := range 6 {
		d.write(rng)
		e.write(rng)
		of, vm := d, "web"
		if i%2 == 1 {
			of, vm = e, ""
		}
		p := take(t, v, &point.RecoveryPoint{Name: fmt.Sprint("s", i), VM: vm,
			Tags: map[string]string{"who": fmt.Sprint(i % 3)}}, of)
		if vm == "web" {
			mine = append(mine, p)
		}
	}
	for by, want := range map[string]string{"vm": "(no machine) web", "disk": "a#id-a b#id-b", "tag=who": "0 1 2",
		"tag=other": "(none)"} {
		b, err := ParseBy(by)
		if err != nil || b.String() != by {
			t.Fatal(b, err)
		}
		rows, err := Current(t.Context(), v, b)
		var names []string
		for _, r := range rows {
			names = append(names, r.Name)
		}
		if err != nil || strings.Join(names, " ") != want {
			t.Errorf("by %s: %v, %v, want %s", by, names, err, want)
		}
	}
	rows, err := Current(t.Context(), v, By{kind: "vm"})
	if err != nil {
		t.Fatal(err)
	}
	before := live(t, v)
	for _, p := range mine {
		if err := Delete(t.Context(), v, p, -1, time.Now()); err != nil {
			t.Fatal(err)
		}
	}
	if freed := before - live(t, v); !frees(rows[1], freed) || rows[1].Snapshots != 3 {
		t.Errorf("deleting all of web freed %d bytes, want %+v", freed, rows[1])
	}
	for _, bad := range []string{"", "tag", "tag=", "host"} {
		if _, err := ParseBy(bad); err == nil {
			t.Errorf("ParseBy(%q) takes it", bad)
		}
	}
}

func TestFindAndList(t *testing.T) {
	v := newVault(t)
	d := &disk{name: "data", data: make([]byte, chunk)}
	one := take(t, v, &point.RecoveryPoint{Name: "one", VM: "web", MachineUUID: "U", Tags: map[string]string{"a": "b"}},
		d)
	two := take(t, v, &point.RecoveryPoint{Name: "two"}, d)
	take(t, v, &point.RecoveryPoint{Name: "twice"}, d)
	take(t, v, &point.RecoveryPoint{Name: "twice"}, d)
	for ref, want := range map[string]*point.RecoveryPoint{"one": one, string(two.ID): two, string(two.ID[:12]): two} {
		if p, err := Find(t.Context(), v, ref); err != nil || p.ID != want.ID {
			t.Errorf("Find(%q) = %v, %v", ref, p, err)
		}
	}
	for ref, want := range map[string]error{"twice": ErrAmbiguous, "none": ErrNoSnapshot, "abcdef0123": ErrNoSnapshot} {
		if _, err := Find(t.Context(), v, ref); !errors.Is(err, want) {
			t.Errorf("Find(%q): %v, want %v", ref, err, want)
		}
	}
	for _, tt := range []struct {
		filter Filter
		want   int
	}{
		{Filter{}, 4}, {Filter{VM: "web"}, 1}, {Filter{VM: "u"}, 1}, {Filter{Disk: "web:data"}, 1},
		{Filter{Disk: "data"}, 4}, {Filter{Disk: "x"}, 0},
		{Filter{Tags: map[string]string{"a": "b"}}, 1}, {Filter{Tags: map[string]string{"a": "c"}}, 0},
	} {
		if got, err := v.Summaries(t.Context(), tt.filter.Takes); err != nil || len(got) != tt.want {
			t.Errorf("%+v takes %d, %v, want %d", tt.filter, len(got), err, tt.want)
		}
	}
	for _, name := range []string{"", "-x", "a b", "cafe", "0123", strings.Repeat("x", 129)} {
		if CheckName(name) == nil {
			t.Errorf("CheckName(%q) takes it", name)
		}
	}
	if name := DefaultName("my vm:vdb", time.Unix(0, 0)); name != "my-vm-vdb-19700101-000000.000" ||
		CheckName(name) != nil {
		t.Errorf("DefaultName: %q", name)
	}
}

// A copy is a snapshot like any other, whatever becomes of the first.
func TestCopy(t *testing.T) {
	from, to := newVault(t), newVault(t)
	rng := rand.New(rand.NewPCG(4, 4))
	d := &disk{name: "data", data: make([]byte, 20*chunk)}
	now := time.Date(2026, 11, 10, 0, 0, 0, 0, time.UTC)
	for i := range 3 {
		d.write(rng)
		p := take(t, from, &point.RecoveryPoint{Name: fmt.Sprint("s", i),
			Time: now.Add(time.Duration(i-100) * time.Hour)}, d)
		r, err := Copy(t.Context(), from, to, p, now, nil)
		if err != nil || r.There || r.ReadBytes > int64(i+1)*chunk { // holes are not read
			t.Fatalf("copy: %+v, %v", r, err)
		}
		if r, err := Copy(t.Context(), from, to, p, now.Add(time.Hour), nil); err != nil || !r.There {
			t.Errorf("copied again: %+v, %v", r, err)
		}
		if err := Delete(t.Context(), from, p, -1, now); err != nil {
			t.Fatal(err)
		}
		requireContent(t, to, r.Point, map[string][]byte{"data": d.data})
	}
	lives, err := Lifetimes(t.Context(), to)
	if err != nil || len(lives) != 3 || !lives[0].From.Equal(now) || !lives[0].To.IsZero() {
		t.Errorf("lifetimes of the copies: %+v, %v", lives, err)
	}
	if lives, err = Lifetimes(t.Context(), from); err != nil || len(lives) != 3 || !lives[2].To.Equal(now) {
		t.Errorf("lifetimes of what was deleted: %+v, %v", lives, err)
	}
}

func TestLives(t *testing.T) {
	at := func(h int) time.Time { return time.Date(2026, 11, 1, h, 0, 0, 0, time.UTC) }
	for _, tt := range []struct {
		name, events string // letter and hour: c5 is copied at 5, d7 deleted
		living       bool
		want         string
	}{
		{"there since it was taken", "", true, "1-now"},
		{"deleted", "d4", false, "1-4"},
		{"copied", "c3", true, "3-now"},
		{"copied and deleted", "c3 d5", false, "3-5"},
		{"deleted, and copied back", "d4 c6", true, "1-4 6-now"},
		{"a copy that came to nothing", "c3", false, ""},
		{"a copy that came to nothing at first", "c3 c5", true, "5-now"},
		{"power failed before it was deleted", "d4", true, "1-now"},
		{"and then it was", "d4 d6", false, "1-6"},
	} {
		var events []event
		for _, f := range strings.Fields(tt.events) {
			kind := map[byte]string{'c': entryCopied, 'd': entryDeleted}[f[0]]
			events = append(events, event{kind, entry{Created: at(1), Time: at(int(f[1] - '0'))}})
		}
		var got []string
		for _, l := range lives("x", entry{Created: at(1)}, events, tt.living) {
			to := "now"
			if !l.To.IsZero() {
				to = fmt.Sprint(l.To.Hour())
			}
			got = append(got, fmt.Sprintf("%d-%s", l.From.Hour(), to))
		}
		if s := strings.Join(got, " "); s != tt.want {
			t.Errorf("%s: %q, want %q", tt.name, s, tt.want)
		}
	}
}

func TestBill(t *testing.T) {
	day := func(m time.Month, d int) time.Time { return time.Date(2026, m, d, 0, 0, 0, 0, time.UTC) }
	const gib = 1 << 30
	lifetimes := []Lifetime{
		{ID: "1", Name: "all", VM: "web", From: day(10, 1),
			Disks: []LifetimeDisk{{Name: "vda", Size: 64 * gib, Used: 10 * gib}}},
		{ID: "2", Name: "ten days", VM: "web", From: day(11, 6), To: day(11, 16),
			Tags:  map[string]string{"tier": "cold"},
			Disks: []LifetimeDisk{{Name: "vda", Used: 3 * gib}, {Name: "vdb", Used: 6 * gib}}},
		{ID: "3", Name: "before", From: day(9, 1), To: day(10, 30), Disks: []LifetimeDisk{{Used: gib}}},
		{ID: "4", Name: "after", From: day(12, 1), Disks: []LifetimeDisk{{Used: gib}}},
	}
	prices := Prices{Currency: "EUR", GiBMonth: 0.1, Tags: []TagPrice{{Tag: "tier=cold", GiBMonth: 0.01}}}
	month, err := ParseMonth("2026-11")
	if err != nil {
		t.Fatal(err)
	}
	b := NewBill(lifetimes, month, By{kind: "disk"}, prices, day(12, 31))
	var got []string
	for _, r := range append(b.Rows, b.Total) {
		got = append(got, fmt.Sprintf("%s %d %d %.3f %.3f", r.Name, r.Snapshots, r.ByteHours/gib, r.GiBMonths, r.Cost))
	}
	want := "web:vda 2 7920 11.000 1.010, web:vdb 1 1440 2.000 0.020, total 2 9360 13.000 1.030"
	if s := strings.Join(got, ", "); s != want {
		t.Errorf("bill: %s\nwant  %s", s, want)
	}
	if half := NewBill(lifetimes, month, By{kind: "vm"}, prices, day(11, 16)); half.Total.ByteHours/gib != 10*15*24+
		9*10*24 || !half.Until.Equal(day(11, 16)) {
		t.Errorf("in the middle of the month: %+v", half.Total)
	}
	if n := byteHours(1<<50, 31*24*time.Hour); n != 744*(1<<50) {
		t.Errorf("byteHours is %d", n)
	}
	for _, bad := range []Prices{{GiBMonth: -1}, {Tags: []TagPrice{{Tag: "x"}}},
		{Tags: []TagPrice{{Tag: "a=b", GiBMonth: -2}}}} {
		if bad.Check() == nil {
			t.Errorf("%+v is taken", bad)
		}
	}
	if prices.Check() != nil {
		t.Error(prices.Check())
	}
}

func TestPairs(t *testing.T) {
	a := &point.RecoveryPoint{Name: "a",
		Disks: []point.Disk{{Name: "vda"}, {Name: "vdb", Managed: "data", ManagedID: "1"}}}
	b := &point.RecoveryPoint{Name: "b",
		Disks: []point.Disk{{Name: "vda"}, {Name: "vdc", Managed: "data", ManagedID: "1"}}}
	pairs, err := Pairs(a, b, "")
	if err != nil || len(pairs) != 2 || pairs[1].A.Name != "vdb" || pairs[1].B.Name != "vdc" {
		t.Errorf("pairs %v, %v", pairs, err)
	}
	if pairs, err = Pairs(a, b, "data"); err != nil || len(pairs) != 1 {
		t.Errorf("pair of data: %v, %v", pairs, err)
	}
	if _, err := Pairs(a, b, "vdb"); !errors.Is(err, point.ErrNoDisk) {
		t.Errorf("vdb, which only one has: %v", err)
	}
	if _, err := a.Disk(""); !errors.Is(err, point.ErrNoDisk) {
		t.Errorf("which of two: %v", err)
	}
	ctx := context.Background()
	if err := Delete(ctx, nil, &point.RecoveryPoint{ID: "00000000"}, 0, time.Now()); !errors.Is(err, ErrNoSnapshot) {
		t.Errorf("a recovery point was deleted as a snapshot: %v", err)
	}
}
