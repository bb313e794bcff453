package protect_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/blob"
	"github.com/holdfast-vm/holdfast/internal/blob/fault"
	"github.com/holdfast-vm/holdfast/internal/blob/mem"
	"github.com/holdfast-vm/holdfast/internal/capture"
	"github.com/holdfast-vm/holdfast/internal/guest"
	"github.com/holdfast-vm/holdfast/internal/hypervisor"
	"github.com/holdfast-vm/holdfast/internal/point"
	"github.com/holdfast-vm/holdfast/internal/protect"
	"github.com/holdfast-vm/holdfast/internal/vault"
)

var testKey = vault.Key{Identity: "AGE-SECRET-KEY-1GFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPQ4EGAEX"}

func newVault(t *testing.T, s blob.Store) *vault.Vault {
	t.Helper()
	ctx := context.Background()
	if _, err := vault.Init(ctx, s,
		vault.InitOptions{ChunkSize: granule, Keys: []vault.NamedKey{{Name: "k", Key: testKey}}}); err != nil {
		t.Fatal(err)
	}
	return openVault(t, s)
}

func openVault(t *testing.T, s blob.Store) *vault.Vault {
	t.Helper()
	v, err := vault.Open(context.Background(), s, testKey, vault.Options{Workers: 2})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { v.Close() })
	return v
}

func deps(t *testing.T, v *vault.Vault, m *model) protect.Deps {
	t.Helper()
	return protect.Deps{Vault: v, Host: m, Capturer: m, StateDir: t.TempDir(), Version: "test"}
}

// requirePoint fails unless every disk of p reads as want.
func requirePoint(t *testing.T, v *vault.Vault, p *point.RecoveryPoint, want map[string][]byte) {
	t.Helper()
	if len(p.Disks) != len(want) {
		t.Fatalf("point %s has %d disks, want %d", p.ID, len(p.Disks), len(want))
	}
	for _, d := range p.Disks {
		if got := readTree(t, v, d.Root, d.Size); !bytes.Equal(got, want[d.Name]) {
			t.Fatalf("point %s: disk %s is not as it was at the instant", p.ID, d.Name)
		}
		var used int64
		for off := int64(0); off < d.Size; off += granule {
			if n := min(granule, d.Size-off); !allZero(want[d.Name][off : off+n]) {
				used += n
			}
		}
		if d.Used != used {
			t.Fatalf("point %s: disk %s is said to use %d bytes, it has %d", p.ID, d.Name, d.Used, used)
		}
	}
}

func readTree(t *testing.T, v *vault.Vault, root string, size int64) []byte {
	t.Helper()
	disk, err := v.OpenDisk(root, size)
	if err != nil {
		t.Fatal(err)
	}
	data, err := io.ReadAll(io.NewSectionReader(disk, 0, size))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// Whatever fails or is killed at whichever step, the points that were acknowledged hold what the
// machine held at their instant, and the next backup works.
func TestPointsAreExactWhateverFails(t *testing.T) {
	steps := []string{"", "", "", "begin", "instant", "sink", "commit", "store", "store"}
	for seed := range uint64(25) {
		rng := rand.New(rand.NewPCG(seed, 1))
		store := mem.New()
		faulty := fault.New(store)
		v := newVault(t, faulty)
		m := newModel(rng, 1+rng.IntN(3))
		d := deps(t, v, m)
		sealed := map[point.ID]map[string][]byte{}
		for range 8 {
			for range rng.IntN(6) {
				m.write()
			}
			if rng.IntN(10) == 0 {
				m.addDisk("vd"+string(rune('a'+len(m.order))), 5*granule)
			}
			if rng.IntN(10) == 0 { // resized: QEMU drops no bitmap, but the record may not be trusted
				n := m.order[rng.IntN(len(m.order))]
				m.disks[n] = append(m.disks[n], make([]byte, granule)...)
			}
			if rng.IntN(10) == 0 { // QEMU died: bitmaps in memory are gone
				for n := range m.bitmap {
					clear(m.bitmap[n])
				}
			}
			m.failAt, m.killed = steps[rng.IntN(len(steps))], rng.IntN(2) == 0
			if m.failAt == "store" {
				fail := []func(int, error){faulty.FailCall, faulty.LoseReply}[rng.IntN(2)]
				fail(faulty.Calls()+rng.IntN(40), errMade)
			}
			var at map[string][]byte
			d.OpenGuest = func(context.Context, hypervisor.Machine, point.Consistency) (protect.Guest, error) {
				return &onThaw{do: func() { at = m.snapshot() }}, nil
			}
			p, err := protect.Backup(context.Background(), d,
				protect.Request{Machine: m.machine(), FullRead: rng.IntN(8) == 0})
			m.failAt, m.killed = "", false
			if err != nil && !errors.Is(err, errMade) {
				t.Fatalf("seed %d: %v", seed, err)
			}
			if err == nil {
				sealed[p.ID] = at
			}
		}
		requireSealed(t, openVault(t, store), sealed)
	}
}

func requireSealed(t *testing.T, v *vault.Vault, sealed map[point.ID]map[string][]byte) {
	t.Helper()
	points, err := v.Points(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, p := range points {
		if want, ok := sealed[p.ID]; ok {
			requirePoint(t, v, p, want)
			found++
		}
	}
	if found != len(sealed) {
		t.Fatalf("%d points were acknowledged, the vault has %d of them", len(sealed), found)
	}
}

// onThaw is a guest that does something while it holds its writes.
type onThaw struct {
	do func()
	fakeGuest
}

func (o *onThaw) Quiesce(context.Context) error { return nil }
func (o *onThaw) Thaw(context.Context) error    { o.do(); return nil }
func (o *onThaw) Close() error                  { return nil }
func (o *onThaw) Outcome() guest.Outcome {
	return guest.Outcome{Level: point.Filesystem, Reason: "no hooks"}
}

// A second point reads and stores only what changed, and a full read is a compare that stores no
// more.
func TestRungsAndSizes(t *testing.T) {
	m := newModel(rand.New(rand.NewPCG(7, 7)), 1)
	m.disks["vda"] = bytes.Repeat([]byte("some data "), 10*granule/10)
	v := newVault(t, mem.New())
	d := deps(t, v, m)
	take := func(req protect.Request) *point.RecoveryPoint {
		t.Helper()
		req.Machine = m.machine()
		p, err := protect.Backup(context.Background(), d, req)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	first := take(protect.Request{Tags: map[string]string{"k": "v"}})
	if first.Rung != point.Push || first.Disks[0].Tracked || first.Parent != "" || first.Tags["k"] != "v" ||
		first.VM != "web" {
		t.Errorf("first point: %+v", first)
	}
	m.disks["vda"][3*granule] ^= 1
	for _, b := range m.bitmap["vda"] {
		b[3] = true
	}
	second := take(protect.Request{})
	if disk := second.Disks[0]; second.Rung != point.Push || !disk.Tracked || disk.Read > 4*granule ||
		second.Parent != first.ID {
		t.Errorf("second point: %+v", second)
	}
	third := take(protect.Request{FullRead: true})
	if third.Rung != point.Compare || third.Disks[0].Tracked || third.Disks[0].Read != int64(len(m.disks["vda"])) ||
		third.RungReason == "" || third.Disks[0].Added > 2*granule {
		t.Errorf("third point: %+v", third)
	}
}

// A full vault is an error that says so, and makes no point; the earlier one stays whole. When
// there is room again the next backup holds all that was written, before and after the one that
// failed, and still reads only what was written since the point that there is.
func TestFullVault(t *testing.T) {
	m := newModel(rand.New(rand.NewPCG(1, 1)), 2)
	write := func() {
		for range 20 {
			m.write()
		}
	}
	faulty := fault.New(mem.New())
	v := newVault(t, faulty)
	d := deps(t, v, m)
	var at map[string][]byte // the disks as they were while the guest's writes were held
	d.OpenGuest = func(context.Context, hypervisor.Machine, point.Consistency) (protect.Guest, error) {
		return &onThaw{do: func() { at = m.snapshot() }}, nil
	}
	take := func() (*point.RecoveryPoint, error) {
		return protect.Backup(context.Background(), d, protect.Request{Machine: m.machine()})
	}
	write()
	first, err := take()
	if err != nil {
		t.Fatal(err)
	}
	sealed := map[point.ID]map[string][]byte{first.ID: at}

	write()
	faulty.FailMethod(fault.Write, blob.ErrNoSpace)
	if _, err := take(); !errors.Is(err, blob.ErrNoSpace) {
		t.Fatalf("%v, want ErrNoSpace", err)
	}
	faulty.FailMethod(fault.Write, nil)
	if points, err := v.Points(context.Background()); err != nil || len(points) != 1 {
		t.Errorf("%d points (%v), want the first alone", len(points), err)
	}

	write()
	second, err := take()
	if err != nil {
		t.Fatal(err)
	}
	sealed[second.ID] = at
	requireSealed(t, v, sealed)
	for _, disk := range second.Disks {
		if !disk.Tracked || second.Parent != first.ID {
			t.Errorf("disk %s: tracked %v, counts from %q (%s)", disk.Name, disk.Tracked, second.Parent, disk.Reason)
		}
	}
}

// While one backup of a machine runs, another is refused, and the error says which process is at
// work.
func TestOneBackupAtATime(t *testing.T) {
	m := newModel(rand.New(rand.NewPCG(1, 1)), 1)
	v := newVault(t, mem.New())
	d := deps(t, v, m)
	var inner error
	d.OpenGuest = func(ctx context.Context, _ hypervisor.Machine, _ point.Consistency) (protect.Guest, error) {
		_, inner = protect.Backup(ctx, d, protect.Request{Machine: m.machine()})
		return &onThaw{do: func() {}}, nil
	}
	if _, err := protect.Backup(context.Background(), d, protect.Request{Machine: m.machine()}); err != nil {
		t.Fatal(err)
	}
	if !errors.Is(inner, capture.ErrBusy) || !strings.Contains(inner.Error(), "process ") {
		t.Errorf("the second backup: %v, want ErrBusy with the process", inner)
	}
	if _, err := protect.CleanUp(context.Background(), d, m.machine(), false); err != nil {
		t.Errorf("after the backup the machine is still locked: %v", err)
	}
}

// What is not as it was in the point before is a warning of the new one.
func TestWarnings(t *testing.T) {
	m := newModel(rand.New(rand.NewPCG(1, 1)), 2)
	v := newVault(t, mem.New())
	d := deps(t, v, m)
	take := func(req protect.Request) *point.RecoveryPoint {
		t.Helper()
		req.Machine = m.machine()
		p, err := protect.Backup(context.Background(), d, req)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	take(protect.Request{})
	m.disks["vda"] = append(m.disks["vda"], make([]byte, granule)...)
	m.addDisk("vdc", granule)
	p := take(protect.Request{Exclude: []string{"vdb"}})
	for i, want := range []string{"disk vdb was left out", "disk vda had ", "disk vdc is new"} {
		if i >= len(p.Warnings) || !strings.HasPrefix(p.Warnings[i], want) {
			t.Errorf("warnings %q, want one that begins %q at %d", p.Warnings, want, i)
		}
	}
	if !slices.Equal(p.ExcludedDisks, []string{"vdb"}) || len(p.Disks) != 2 {
		t.Errorf("excluded %v, %d disks", p.ExcludedDisks, len(p.Disks))
	}
	p = take(protect.Request{})
	if b := p.Disks[1]; b.Name != "vdb" || !b.Tracked {
		t.Errorf("disk %s was left out once and is not tracked any more: %s", b.Name, b.Reason)
	}
	if _, err := protect.Backup(context.Background(), d,
		protect.Request{Machine: m.machine(), Exclude: []string{"vdz"}}); err == nil {
		t.Error("a disk that is not there could be left out")
	}
	_, err := protect.Backup(context.Background(), d,
		protect.Request{Machine: m.machine(), Exclude: []string{"vda", "vdb", "vdc"}})
	if !errors.Is(err, protect.ErrNoDisks) {
		t.Errorf("all disks left out: %v, want ErrNoDisks", err)
	}
}

// A machine that has no disks gets a point of its definition and files, and its disks count from
// where they were when it has some again.
func TestMachineWithoutDisks(t *testing.T) {
	m := newModel(rand.New(rand.NewPCG(1, 1)), 1)
	v := newVault(t, mem.New())
	d := deps(t, v, m)
	take := func(req protect.Request) *point.RecoveryPoint {
		t.Helper()
		p, err := protect.Backup(context.Background(), d, req)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	first := take(protect.Request{Machine: m.machine()})
	bare := m.machine()
	bare.Disks = nil
	p := take(protect.Request{Machine: bare, Consistency: point.Filesystem, Require: true})
	if p.Disks == nil || len(p.Disks) != 0 || p.Rung != point.NoDisks || p.Consistency != point.Filesystem ||
		p.ConsistencyReason == "" || p.Parent != first.ID || p.Time.IsZero() || len(p.Warnings) != 2 {
		t.Errorf("the point of a machine without disks: %+v", p)
	}
	stored, err := v.Point(context.Background(), string(p.ID))
	if err != nil || !errors.Is(stored.RequireDisks(), point.ErrNoDisks) {
		t.Errorf("stored is %+v, %v", stored, err)
	}
	if p := take(protect.Request{Machine: m.machine()}); !p.Disks[0].Tracked {
		t.Errorf("its disk, back again, is not tracked: %s", p.Disks[0].Reason)
	}
}

func TestFind(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	one, two, three := newModel(rng, 1), newModel(rng, 1), newModel(rng, 1)
	two.uuid = "99999999-2222-3333-4444-555555555555"
	three.name, three.uuid = "db", ""
	hosts := []hypervisor.Host{one, two, three}
	for _, tt := range []struct {
		ref string
		uri string
		err error
	}{
		{"db", three.URI(), nil},
		{"web", "", hypervisor.ErrAmbiguous},
		{strings.ToUpper(two.uuid), two.URI(), nil},
		{"", "", hypervisor.ErrNoMachine},
		{"nobody", "", hypervisor.ErrNoMachine},
	} {
		h, _, err := protect.Find(context.Background(), hosts, tt.ref)
		if !errors.Is(err, tt.err) {
			t.Errorf("Find(%q): %v, want %v", tt.ref, err, tt.err)
		}
		if err == nil && h.URI() != tt.uri {
			t.Errorf("Find(%q) is on %s, want %s", tt.ref, h.URI(), tt.uri)
		}
		if errors.Is(err, hypervisor.ErrAmbiguous) && (!strings.Contains(err.Error(), one.uuid) ||
			!strings.Contains(err.Error(), two.uuid)) {
			t.Errorf("%v does not name both", err)
		}
	}
}
