package protect_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/holdfast-vm/holdfast/internal/capture"
	"github.com/holdfast-vm/holdfast/internal/extent"
	"github.com/holdfast-vm/holdfast/internal/guest"
	"github.com/holdfast-vm/holdfast/internal/hypervisor"
	"github.com/holdfast-vm/holdfast/internal/point"
)

const granule = 16 << 10

var errMade = errors.New("made to fail")

// model is a machine that keeps changed block tracking as QEMU does: bitmaps that record writes
// until they are removed.
type model struct {
	rng     *rand.Rand
	name    string
	uuid    string
	state   hypervisor.State
	agent   bool
	order   []string
	disks   map[string][]byte
	bitmap  map[string]map[string]map[int64]bool // disk → name → dirty granules
	files   []point.File
	notHeld []point.Omission
	held    bool

	failAt string // step of the capture that fails
	killed bool   // the failure is a kill: nothing is cleaned up
}

func newModel(rng *rand.Rand, disks int) *model {
	m := &model{rng: rng, name: "web", uuid: "11111111-2222-3333-4444-555555555555", state: hypervisor.Running,
		agent: true,
		disks: map[string][]byte{}, bitmap: map[string]map[string]map[int64]bool{}}
	for i := range disks {
		m.addDisk("vd"+string(rune('a'+i)), int64(1+rng.IntN(20))*granule+int64(rng.IntN(3))*512)
	}
	return m
}

func (m *model) addDisk(name string, size int64) {
	m.order = append(m.order, name)
	m.disks[name] = make([]byte, size)
	m.bitmap[name] = map[string]map[int64]bool{}
}

// write lets the guest write somewhere, recorded in every bitmap of the disk.
func (m *model) write() {
	name := m.order[m.rng.IntN(len(m.order))]
	d := m.disks[name]
	off := m.rng.Int64N(int64(len(d)))
	n := min(1+m.rng.Int64N(3*granule), int64(len(d))-off)
	fill := byte(m.rng.IntN(4)) // often zeros
	for i := off; i < off+n; i++ {
		d[i] = fill
	}
	for _, b := range m.bitmap[name] {
		for g := off / granule; g <= (off+n-1)/granule; g++ {
			b[g] = true
		}
	}
}

func (m *model) machine() hypervisor.Machine {
	out := hypervisor.Machine{Name: m.name, UUID: m.uuid, State: m.state, Host: m.URI(), Agent: m.agent}
	for _, n := range m.order {
		out.Disks = append(out.Disks, hypervisor.Disk{Name: n, Size: int64(len(m.disks[n])), Format: "raw"})
	}
	return out
}

func (m *model) snapshot() map[string][]byte {
	out := map[string][]byte{}
	for n, d := range m.disks {
		out[n] = slices.Clone(d)
	}
	return out
}

// The hypervisor.Host of the model.

func (m *model) URI() string { return "fake:" + m.name }

func (m *model) Machines(context.Context) ([]hypervisor.Machine, error) {
	return []hypervisor.Machine{m.machine()}, nil
}

func (m *model) Define(context.Context, hypervisor.Rebuild) (hypervisor.Rebuilt, error) {
	return hypervisor.Rebuilt{}, errMade
}

func (m *model) Describe(context.Context, hypervisor.Machine) (hypervisor.Description, error) {
	return hypervisor.Description{Definition: point.Definition{Kind: point.ForQEMU}, Files: m.files,
		NotHeld: m.notHeld}, nil
}

func (m *model) NotHeld(context.Context, hypervisor.Machine) ([]point.Omission, error) {
	return m.notHeld, nil
}

func (m *model) OpenAgent(context.Context, hypervisor.Machine) (hypervisor.Agent, error) {
	return nil, hypervisor.ErrNoAgent
}

func (m *model) Close() error { return nil }

// The capture.Capturer of the model.

func (m *model) Reconcile(_ context.Context, _ string, vault string, keep []string) ([]string, error) {
	var did []string
	for disk, bitmaps := range m.bitmap {
		for name := range bitmaps {
			if vault != "" && !slices.Contains(keep, name) {
				delete(bitmaps, name)
				did = append(did, fmt.Sprintf("removed %s of %s", name, disk))
			}
		}
	}
	return did, nil
}

// step fails if it is the one that is to fail.
func (m *model) step(name string) error {
	if m.failAt == name {
		return errMade
	}
	return nil
}

func (m *model) Capture(ctx context.Context, _ string, plan capture.Plan, hooks capture.Hooks,
	sink capture.Sink) (*capture.Result, error) {
	if m.state == hypervisor.Off {
		return nil, capture.ErrOff
	}
	if err := m.step("begin"); err != nil {
		return nil, err
	}
	result := &capture.Result{Rung: point.Push, Instant: time.Now()}
	at, err := m.instant(ctx, plan, hooks)
	abort := func(context.Context) error {
		if m.killed {
			return nil
		}
		for _, d := range plan.Disks {
			delete(m.bitmap[d.Name], capture.BitmapName(plan.Vault, plan.Epoch))
		}
		return nil
	}
	if err != nil {
		return nil, errors.Join(err, abort(ctx))
	}
	for i, d := range plan.Disks {
		m.write() // the guest goes on
		r, err := m.read(ctx, d, at, plan, sink)
		if err == nil && i == 0 {
			err = m.step("sink")
		}
		if err != nil {
			return nil, errors.Join(err, abort(ctx))
		}
		result.Disks = append(result.Disks, r)
	}
	result.DropNew = abort
	result.DropOlder = func(context.Context) error {
		if m.killed || m.step("commit") != nil {
			return errMade
		}
		for _, d := range plan.Disks {
			for name := range m.bitmap[d.Name] {
				if !plan.NoEpoch && name != capture.BitmapName(plan.Vault, plan.Epoch) && !slices.Contains(plan.Keep,
					name) {
					delete(m.bitmap[d.Name], name)
				}
			}
		}
		return nil
	}
	return result, nil
}

// frozen is the state of a disk at the instant, and what the older epoch knows of it.
type frozen struct {
	data  []byte
	dirty map[int64]bool // nil: not tracked
}

// instant takes all disks and begins the new epoch.
func (m *model) instant(ctx context.Context, plan capture.Plan, hooks capture.Hooks) (map[string]frozen, error) {
	if err := hooks.Quiesce(ctx); err != nil {
		return nil, errors.Join(err, hooks.Thaw(ctx))
	}
	at := map[string]frozen{}
	for _, d := range plan.Disks {
		f := frozen{data: slices.Clone(m.disks[d.Name])}
		if old, ok := m.bitmap[d.Name][d.LastBitmap]; ok && d.LastSize == int64(len(f.data)) {
			f.dirty = map[int64]bool{}
			for g := range old {
				f.dirty[g] = true
			}
		}
		if !plan.NoEpoch {
			m.bitmap[d.Name][capture.BitmapName(plan.Vault, plan.Epoch)] = map[int64]bool{}
		}
		at[d.Name] = f
	}
	err := errors.Join(m.step("instant"), hooks.Frozen(ctx))
	return at, errors.Join(err, hooks.Thaw(ctx))
}

// read hands one disk to the sink in several batches, some of them stale and overwritten later, as
// slices are.
func (m *model) read(ctx context.Context, d capture.DiskPlan, at map[string]frozen, plan capture.Plan,
	sink capture.Sink) (capture.DiskResult, error) {
	f := at[d.Name]
	size := int64(len(f.data))
	out := capture.DiskResult{Name: d.Name, Size: size, Tracked: f.dirty != nil}
	if !plan.NoEpoch {
		out.Bitmap = capture.BitmapName(plan.Vault, plan.Epoch)
	}
	todo := extent.Of(extent.Extent{Len: size})
	if f.dirty != nil {
		todo = nil
		for g := range f.dirty {
			todo = todo.Union(extent.Set{{Off: g * granule, Len: min(granule, size-g*granule)}})
		}
	} else {
		out.Reason = "no record of changes"
	}
	out.Read = todo.Bytes()
	whole := f.dirty == nil
	if m.rng.IntN(2) == 0 && len(todo) > 0 { // a slice first, a part of which was written again before the instant
		slice := todo.Clip(extent.Extent{Len: size / 2 / granule * granule})
		again := slice.Clip(extent.Extent{Len: granule})
		stale := slices.Clone(f.data)
		for i := range min(granule, len(stale)) {
			stale[i] ^= 0x55
		}
		if err := m.batch(ctx, d.Name, size, slice, stale, false, sink); err != nil {
			return out, err
		}
		todo, whole = todo.Subtract(slice).Union(again), false
	}
	return out, m.batch(ctx, d.Name, size, todo, f.data, whole, sink)
}

func (m *model) batch(ctx context.Context, disk string, size int64, todo extent.Set, data []byte, whole bool,
	sink capture.Sink) error {
	read := capture.Read{Disk: disk, Size: size, Whole: whole, Source: bytes.NewReader(data)}
	for _, e := range todo {
		for off := e.Off; off < e.End(); off += granule {
			part := extent.Extent{Off: off, Len: min(granule, e.End()-off)}
			if allZero(data[part.Off:part.End()]) && m.rng.IntN(2) == 0 {
				read.Zero = read.Zero.Append(part)
			} else {
				read.Data = read.Data.Append(part)
			}
		}
	}
	return sink(ctx, read)
}

func allZero(p []byte) bool {
	for _, b := range p {
		if b != 0 {
			return false
		}
	}
	return true
}

// fakeGuest is a guest whose outcomes are told beforehand.
type fakeGuest struct {
	promised, kept guest.Outcome
	held           *bool
	out            guest.Outcome
	closed         int
}

func (g *fakeGuest) Quiesce(context.Context) error { *g.held = true; g.out = g.promised; return nil }
func (g *fakeGuest) Thaw(context.Context) error    { *g.held = false; g.out = g.kept; return nil }
func (g *fakeGuest) Outcome() guest.Outcome        { return g.out }
func (g *fakeGuest) Guest() *point.GuestReport     { return &point.GuestReport{OS: "Debian"} }
func (g *fakeGuest) Close() error                  { g.closed++; *g.held = false; return nil }
