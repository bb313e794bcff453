package torture

import (
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-vm/holdfast/internal/point"
	"github.com/holdfast-vm/holdfast/test/vm"
	"github.com/holdfast-vm/holdfast/test/vm/program"
)

// Write, back up, kill something, back up again, restore, verify.
func TestRounds(t *testing.T) {
	program.Hypervisors(t, func(t *testing.T, libvirt bool) {
		seed := program.Number(t, "HOLDFAST_SEED", rand.Uint64N(1e6))
		usual := uint64(6)
		if testing.Short() {
			usual = 2
		}
		count := int(program.Number(t, "HOLDFAST_ROUNDS", usual))
		t.Logf("HOLDFAST_SEED=%d HOLDFAST_ROUNDS=%d", seed, count)
		r := &rounds{lab: newLab(t, libvirt, vm.Options{}), rng: rand.New(rand.NewPCG(seed, 0)),
			least: map[point.ID]floor{}}
		r.first()
		for n := 1; n <= count; n++ {
			r.round(n, n == count)
		}
	})
}

// rounds is a run of rounds on one guest.
type rounds struct {
	*lab
	rng   *rand.Rand
	least map[point.ID]floor // what the points of the vault must hold at least
	usual time.Duration      // of a backup
	story []string           // of the round
}

func (r *rounds) tell(format string, args ...any) {
	r.story = append(r.story, fmt.Sprintf(format, args...))
}

// first takes the first point, of everything.
func (r *rounds) first() {
	r.t.Helper()
	r.writesGoOn(20)
	p := r.takePoint()
	nA, nB := r.verify(p.ID, r.least[p.ID])
	r.t.Logf("first point %s: A=%d B=%d", p.ID.Short(), nA, nB)
}

func (r *rounds) round(n int, last bool) {
	r.t.Helper()
	r.story = nil
	began := time.Now()
	defer func() {
		if r.t.Failed() {
			r.t.Logf("round %d: %s: FAILED", n, strings.Join(r.story, "; "))
		}
	}()
	r.writesGoOn(r.rng.Uint64N(40))
	if r.rng.IntN(4) > 0 {
		r.disturb()
	}
	p := r.takePoint()
	r.clean()
	nA, nB := r.verify(p.ID, r.least[p.ID])
	r.tell("A=%d B=%d", nA, nB)
	if n%3 == 0 {
		r.older()
	}
	if n%10 == 0 || last {
		r.tell("booted, %d rows", r.verifyBoot(p.ID, r.least[p.ID]))
	}
	if n%5 == 0 || last {
		r.tidy()
	}
	r.t.Logf("round %d: %s: ok (%.0f s)", n, strings.Join(r.story, "; "), time.Since(began).Seconds())
}

// level is a random flag of the consistency to ask for.
func (r *rounds) level() string {
	return "--consistency=" + []string{"crash", "filesystem", "application"}[r.rng.IntN(3)]
}

// takePoint takes a point that must succeed.
func (r *rounds) takePoint() point.RecoveryPoint {
	r.t.Helper()
	least, began := r.floor(), time.Now()
	p := r.backup(r.level())
	r.usual = time.Since(began)
	r.least[p.ID] = least
	r.tell("point %s %s by %s in %.1f s", p.ID.Short(), p.Consistency, p.Rung, p.Took)
	if p.RungReason != "" {
		r.tell("%s", p.RungReason)
	}
	for _, d := range p.Disks {
		if d.Bitmap == "" && (r.daemon == nil || d.Name != "vdc") {
			r.t.Fatalf("changes of disk %s are not recorded: %s", d.Name, d.Reason)
		}
	}
	return p
}

// disturb takes a point and does something to it. What it leaves is cleaned up by a reconcile, or
// by the next backup.
func (r *rounds) disturb() {
	r.t.Helper()
	least := r.floor()
	level := r.level()
	cmd := r.start(r.backupArgs(level)...)
	when := r.moment(cmd, level)
	what := []func(*program.Run) string{r.killMain, r.killAllOfIt, r.stopAndGoOn, r.stopAndKill, r.interrupt,
		r.killQEMU, r.restartLibvirtd}[r.rng.IntN(7)]
	r.tell("%s %s", what(cmd), when)
	cmd.Wait(r.t)
	if cmd.Status() > 0 {
		r.tell("it said %q", strings.TrimSpace(cmd.Said()))
	}
	r.writesGoOn(3)
	for _, p := range r.points() {
		if _, known := r.least[p.ID]; !known {
			r.least[p.ID] = least
			r.tell("that was point %s", p.ID.Short())
		}
	}
	if r.rng.IntN(2) == 0 {
		r.must("host", "reconcile")
		r.tell("reconciled")
		r.clean()
	}
}

// moment waits for a moment of the running backup and says which.
func (r *rounds) moment(cmd *program.Run, level string) string {
	r.t.Helper()
	type moment struct {
		name string
		come func() bool
	}
	moments := []moment{
		{"when noted", r.noted},
		{"when the vault grew", r.grows(filepath.Join(r.vault, "*", "*"))},
		{"when the point was stored", r.grows(filepath.Join(r.vault, "points", "*"))},
	}
	if !strings.HasSuffix(level, "crash") {
		moments = append(moments, moment{"when the guest was held", func() bool { return r.has(r.state, "*.held") }})
	}
	if r.daemon != nil {
		moments = append(moments, moment{"when scratch was there", func() bool { return r.has(r.scratch, "*") }})
	}
	if i := r.rng.IntN(2 * len(moments)); i < len(moments) {
		came := false
		program.Eventually(func() bool {
			ended := cmd.Ended()
			came = moments[i].come()
			return came || ended
		})
		if came {
			return moments[i].name
		}
		return "after its end"
	}
	delay := time.Duration(r.rng.Int64N(int64(r.usual + r.usual/4)))
	select {
	case <-time.After(delay):
		return fmt.Sprintf("after %d ms", delay.Milliseconds())
	case <-cmd.Done:
		return "after its end"
	}
}

func (r *rounds) killMain(cmd *program.Run) string {
	cmd.Signal(syscall.SIGKILL)
	return "killed holdfast"
}

func (r *rounds) killAllOfIt(cmd *program.Run) string {
	r.t.Helper()
	r.killAll()
	if !program.Eventually(func() bool { return len(r.processes()) == 0 }) {
		r.t.Fatalf("killed, and still there: %v", r.processes())
	}
	cmd.Wait(r.t)
	if r.has(r.state, "*.held") { // nobody is left who would release the guest
		r.must("host", "reconcile")
		return "killed holdfast and its guard, reconciled:"
	}
	return "killed holdfast and its guard"
}

func (r *rounds) interrupt(cmd *program.Run) string {
	cmd.Signal(syscall.SIGTERM)
	return "interrupted holdfast"
}

func (r *rounds) stopAndGoOn(cmd *program.Run) string {
	r.stopped(cmd)
	cmd.Signal(syscall.SIGCONT)
	return "stopped holdfast for a while"
}

func (r *rounds) stopAndKill(cmd *program.Run) string {
	r.stopped(cmd)
	cmd.Signal(syscall.SIGKILL)
	return "stopped and killed holdfast"
}

// stopped stops holdfast until the guest has written for a while.
func (r *rounds) stopped(cmd *program.Run) {
	r.t.Helper()
	cmd.Signal(syscall.SIGSTOP)
	r.writesGoOn(10 + r.rng.Uint64N(50))
}

func (r *rounds) killQEMU(cmd *program.Run) string {
	r.t.Helper()
	if err := r.vm.Kill(); err != nil {
		r.t.Fatal(err)
	}
	cmd.Wait(r.t)
	r.reboot()
	return "killed QEMU"
}

func (r *rounds) restartLibvirtd(cmd *program.Run) string {
	if r.daemon == nil {
		return "left alone"
	}
	r.daemon.Restart()
	return "killed libvirtd"
}

// older verifies a random point of the vault.
func (r *rounds) older() {
	r.t.Helper()
	all := r.points()
	p := all[r.rng.IntN(len(all))]
	nA, nB := r.verify(p.ID, r.least[p.ID])
	r.tell("older %s A=%d B=%d", p.ID.Short(), nA, nB)
}

// tidy deletes random points, collects the garbage and reads all that the vault holds.
func (r *rounds) tidy() {
	r.t.Helper()
	all := r.points()
	for range len(all) / 3 {
		i := r.rng.IntN(len(all))
		r.must("point", "delete", string(all[i].ID))
		delete(r.least, all[i].ID)
		all = append(all[:i], all[i+1:]...)
	}
	r.must("vault", "gc")
	r.must("vault", "check", "--read-data")
	there := r.points()
	for _, p := range there {
		if _, known := r.least[p.ID]; !known {
			r.t.Fatalf("point %s was deleted and is there", p.ID)
		}
	}
	if len(there) != len(r.least) {
		r.t.Fatalf("%d points are there, want %d", len(there), len(r.least))
	}
	r.tell("tidied, %d points left", len(there))
}
