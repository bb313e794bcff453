package qemu

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-vm/holdfast/internal/hypervisor"
	"github.com/holdfast-vm/holdfast/internal/hypervisor/pause"
)

// stopped returns when the copy of a disk has met an error.
func (i *instant) stopped(t hypervisor.HydrationTarget) {
	i.Helper()
	await(i.T, "the error of the copy of "+t.Disk, func() bool {
		now, err := i.h.Hydration(i.Context(), i.m, t)
		i.ok(err)
		return now.Err != nil
	})
}

func (i *instant) requireState(want hypervisor.State) {
	i.Helper()
	if m := machine(i.T, i.h); m.State != want {
		i.Errorf("the machine is %s, want %s", m.State, want)
	}
}

// goOn lets all copies go on and waits until they are ready. A copy that hits the dead connection
// again is resumed again.
func (i *instant) goOn() {
	i.Helper()
	for _, t := range i.targets {
		await(i.T, "the copy of "+t.Disk, func() bool {
			i.ok(i.h.Hydrate(i.Context(), i.m, t, 0))
			now, err := i.h.Hydration(i.Context(), i.m, t)
			i.ok(err)
			return now.Err == nil && (now.Local || now.Ready && now.Done == now.Total)
		})
	}
}

// Without the export a machine whose copies lack something goes on where it was and the error says
// what is left. With a new export it moves, also if "cont" has made QEMU forget that the copy
// waits.
func TestMoveWithoutExport(t *testing.T) {
	i := newInstant(t)
	i.hydrateAll(0)
	i.awaitReady()
	i.endExports()
	i.failToWrite("sdb", 3*mib+4096)
	err := i.h.FinishHydration(t.Context(), i.m, i.settlement())
	if err == nil || errors.Is(err, hypervisor.ErrStandsStill) || !strings.Contains(err.Error(), "sdb") {
		t.Errorf("without the export: %v", err)
	}
	// its firmware may have read a disk, and waits for the export
	if paused, err := i.h.Continue(t.Context(), i.m); err != nil || paused {
		t.Errorf("the machine stands still: %v, %v", paused, err)
	}
	settled, err := i.h.Settled(t.Context(), i.m, i.settlement())
	if err != nil || settled["vda"] || settled["sdb"] || settled["vdb"] {
		t.Errorf("the definition is settled for %v, %v", settled, err)
	}
	i.stopped(i.targets[1])
	i.exportAgain()
	_, err = i.h.Continue(t.Context(), i.m)
	i.ok(err)
	i.goOn()
	i.write("sdb", 3*mib, 5)
	i.ok(i.h.FinishHydration(t.Context(), i.m, i.settlement()))
	i.requireState(hypervisor.Running)
	i.requireSettled()
}

// A copy that has copied everything moves the machine without the export, and what was written up
// to the last moment is in it.
func TestMoveNeedsNoExport(t *testing.T) {
	i := newInstant(t)
	i.hydrateAll(0)
	i.awaitReady()
	i.endExports()
	for n, disk := range []string{"vda", "sdb", "vdb"} {
		i.write(disk, 2*mib, byte(n+1))
	}
	i.ok(i.h.FinishHydration(t.Context(), i.m, i.settlement()))
	i.requireState(hypervisor.Running)
	i.requireSettled()
}

// A copy that was told to complete and could not does not move the machine when it can: it waits
// for the next call.
func TestNoMoveByItself(t *testing.T) {
	i := newInstant(t)
	i.hydrateAll(0)
	i.awaitReady()
	c, err := i.h.Client(t.Context())
	i.ok(err)
	sdb := i.targets[1]
	i.ok(c.Execute(t.Context(), "stop", nil, nil))
	i.endExports()
	i.failToWrite("sdb", 3*mib+4096)
	i.stopped(sdb)
	// and then who gave the order is killed
	i.ok(c.Execute(t.Context(), "job-complete", map[string]any{"id": jobID("sdb")}, nil))
	i.ok(c.Execute(t.Context(), "cont", nil, nil))
	i.exportAgain()
	await(t, "the end of the copy", func() bool {
		i.ok(i.h.Hydrate(t.Context(), i.m, sdb, 0))
		job, err := findJob(t.Context(), c, "sdb")
		i.ok(err)
		return job.Status == "pending"
	})
	i.ok(i.h.HydrationRate(t.Context(), i.m, sdb, 0))
	if now, err := i.h.Hydration(t.Context(), i.m, sdb); err != nil || now.Local || !now.Ready ||
		now.Done != now.Total {
		t.Errorf("the copy that has ended is %+v, %v", now, err)
	}
	i.ok(i.h.FinishHydration(t.Context(), i.m, i.settlement()))
	i.requireState(hypervisor.Running)
	i.requireSettled()
}

// A machine that died in the middle is not moved to targets that may lack what it wrote.
func TestMoveOfDeadMachine(t *testing.T) {
	i := newInstant(t)
	i.hydrateAll(0)
	i.awaitReady()
	offline := i.settlement()
	offline.Off = true
	if err := i.h.FinishHydration(t.Context(), i.m, offline); err == nil {
		t.Error("a machine that runs was taken for one that is off")
	}
	i.ok(i.h.Remove(t.Context(), i.m))
	if err := i.h.FinishHydration(t.Context(), i.m, i.settlement()); !errors.Is(err, hypervisor.ErrOff) {
		t.Errorf("the move of a dead machine: %v", err)
	}
	settled, err := i.h.Settled(t.Context(), i.m, i.settlement())
	if err != nil || settled["vda"] || settled["sdb"] || settled["vdb"] {
		t.Errorf("the definition is settled for %v, %v", settled, err)
	}
}

// A machine that was paused stays paused, and one whose start script cannot be changed stands
// still until it can.
func TestMoveStandsStill(t *testing.T) {
	i := newInstant(t)
	i.hydrateAll(0)
	i.awaitReady()
	var held *pause.Mark
	note := func(m pause.Mark) error { held = &m; return nil }
	wrong := i.settlement()
	wrong.StorageDir, wrong.Note = wrong.StorageDir+"/none", note
	if err := i.h.FinishHydration(t.Context(), i.m, wrong); !errors.Is(err, hypervisor.ErrStandsStill) {
		t.Errorf("without its start script: %v", err)
	}
	i.requireState(hypervisor.Paused)
	if paused, err := i.h.Continue(t.Context(), i.m); err != nil || !paused {
		t.Errorf("of a machine that was stopped it is said: %v, %v", paused, err)
	}
	if held == nil || !held.Stopped || held.Ran == 0 {
		t.Fatalf("noted is %+v", held)
	}
	others := *held
	others.Ran -= int64(time.Second) // it has run since, and an administrator has stopped it
	for name, h := range map[string]*pause.Mark{"nothing is noted": nil, "the machine has run since": &others} {
		s := i.settlement()
		s.Held = h
		i.ok(i.h.FinishHydration(context.Background(), i.m, s))
		if m := machine(t, i.h); m.State != hypervisor.Paused {
			t.Errorf("%s: it goes on", name)
		}
	}
	i.ok(i.h.GoOn(t.Context(), i.m, others))
	i.requireState(hypervisor.Paused)
	stay := i.settlement()
	stay.StayPaused, stay.Held = true, held
	i.ok(i.h.FinishHydration(context.Background(), i.m, stay))
	i.requireState(hypervisor.Paused)
	i.ok(i.h.GoOn(t.Context(), i.m, *held))
	i.requireState(hypervisor.Running)
	i.requireSettled()
}

// What a killed process had stopped for the move goes on with the next.
func TestMoveAfterKill(t *testing.T) {
	i := newInstant(t)
	i.hydrateAll(0)
	i.awaitReady()
	c, err := i.h.Client(t.Context())
	i.ok(err)
	_, mark, err := markOf(t.Context(), c)
	i.ok(err)
	i.ok(c.Execute(t.Context(), "stop", nil, nil))
	mark = mark.Standing()
	s := i.settlement()
	s.Held = &mark
	i.ok(i.h.FinishHydration(t.Context(), i.m, s))
	i.requireState(hypervisor.Running)
	i.requireSettled()
}
