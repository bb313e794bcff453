package guest

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-vm/holdfast/internal/guest/guesttest"
	"github.com/holdfast-vm/holdfast/internal/hypervisor"
	"github.com/holdfast-vm/holdfast/internal/point"
)

func bubbleOpener(g *guesttest.Guest) Opener {
	open := pipeOpener(g)
	return func(ctx context.Context) (hypervisor.Agent, error) { return open(ctx, "") }
}

// leave makes a note for machine m as a guard that died left it.
func leave(t *testing.T, dir string) {
	t.Helper()
	c, err := newClaim(dir, Leftover{Machine: "m"})
	if err != nil {
		t.Fatal(err)
	}
	c.f.Close()
}

func TestNothingLeftNothingOpened(t *testing.T) {
	open := func(context.Context) (hypervisor.Agent, error) {
		t.Error("the agent was opened")
		return nil, hypervisor.ErrNoAgent
	}
	leave(t, t.TempDir())
	if did, err := ThawLeftover(t.Context(), open, t.TempDir(), "m"); did || err != nil {
		t.Errorf("ThawLeftover() = %v, %v", did, err)
	}
	if left, err := Leftovers(filepath.Join(t.TempDir(), "none")); err != nil || len(left) != 0 {
		t.Errorf("Leftovers() = %v, %v", left, err)
	}
}

func TestThawLeftover(t *testing.T) {
	for _, tt := range []struct {
		name  string
		guest *guesttest.Guest
		held  bool
		did   bool
	}{
		{"held", plain(), true, true},
		{"thawed meanwhile", plain(), false, false},
		{"the first thaw is lost", faulty(plain(), "guest-fsfreeze-thaw", guesttest.Fault{Kind: guesttest.Ignore}),
			true, true},
		{"the channel closes", faulty(plain(), "guest-fsfreeze-thaw", guesttest.Fault{Kind: guesttest.Hangup}), true,
			true},
		{"noise", faulty(plain(), "guest-fsfreeze-status", guesttest.Fault{Kind: guesttest.Junk}), true, true},
		{"a hook fails", with(plain(), func(g *guesttest.Guest) {
			g.ThawFails = "fsfreeze hook has failed with status 1"
		}), true, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				dir := t.TempDir()
				leave(t, dir)
				if tt.held {
					tt.guest.Freeze()
				}
				did, err := ThawLeftover(t.Context(), bubbleOpener(tt.guest), dir, "m")
				if did != tt.did || err != nil || !tt.guest.Thawed() || !noNote(dir)() {
					t.Errorf("ThawLeftover() = %v, %v; thawed %v", did, err, tt.guest.Thawed())
				}
			})
		})
	}
}

// Openers that return a concrete type hand out its nil with their error.
func TestOpenerFailsAtFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir, g, failures := t.TempDir(), plain(), 3
		leave(t, dir)
		g.Freeze()
		open := func(ctx context.Context) (hypervisor.Agent, error) {
			if failures--; failures >= 0 {
				return (*Conn)(nil), hypervisor.ErrNoAgent
			}
			return bubbleOpener(g)(ctx)
		}
		if did, err := ThawLeftover(t.Context(), open, dir, "m"); !did || err != nil || !g.Thawed() {
			t.Errorf("ThawLeftover() = %v, %v; thawed %v", did, err, g.Thawed())
		}
	})
}

func TestLeftoverThatDoesNotAnswerStaysNoted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, dir := plain(), t.TempDir()
		g.Freeze()
		g.Kill()
		leave(t, dir)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if did, err := ThawLeftover(ctx, bubbleOpener(g), dir, "m"); did || !errors.Is(err, ErrSilent) ||
			!errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("ThawLeftover() = %v, %v", did, err)
		}
		g.Revive(false)
		if left, err := Leftovers(dir); err != nil || len(left) != 1 {
			t.Fatalf("Leftovers() = %v, %v", left, err)
		}
		if did, err := ThawLeftover(t.Context(), bubbleOpener(g), dir, "m"); !did || err != nil || !g.Thawed() {
			t.Errorf("ThawLeftover() = %v, %v", did, err)
		}
	})
}

func TestOneClaimPerMachine(t *testing.T) {
	dir := t.TempDir()
	c, err := newClaim(dir, Leftover{Machine: "m"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := newClaim(dir, Leftover{Machine: "m"}); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a second claim: %v", err)
	}
	if _, _, err := openClaim(claimFile(dir, "m")); !errors.Is(err, ErrHeldByUs) {
		t.Errorf("taking over a live claim: %v", err)
	}
	other, err := newClaim(dir, Leftover{Machine: "n"})
	if err != nil {
		t.Fatal(err)
	}
	for machine, c := range map[string]*claim{"m": c, "n": other} {
		if err := c.remove(claimFile(dir, machine)); err != nil {
			t.Error(err)
		}
	}
	if !noNote(dir)() {
		t.Error("notes are left")
	}
}

func TestUnreadableNotesAreNoMachines(t *testing.T) {
	dir := t.TempDir()
	leave(t, dir)
	for name, text := range map[string]string{"0000.held": "", "1111.held": "{", "2222.held": "[]", "readme": "x"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if left, err := Leftovers(dir); err != nil || len(left) != 1 || left[0].Machine != "m" {
		t.Errorf("Leftovers() = %v, %v", left, err)
	}
}

func TestStateDir(t *testing.T) {
	t.Setenv(StateEnv, "/somewhere")
	if got := StateDir(); got != "/somewhere" {
		t.Errorf("StateDir() = %s", got)
	}
	t.Setenv(StateEnv, "")
	if got := StateDir(); filepath.Base(got) == "somewhere" || !filepath.IsAbs(got) {
		t.Errorf("StateDir() = %s", got)
	}
}

// stuckAgent is a driver that heeds no context: what it is asked to freeze never returns.
type stuckAgent struct {
	hypervisor.Agent
	forever chan struct{}
}

func (s stuckAgent) Command(ctx context.Context, name string, args any) ([]byte, error) {
	if name == "guest-fsfreeze-freeze" {
		if _, err := s.Agent.Command(ctx, name, args); err != nil {
			return nil, err
		}
		<-s.forever
	}
	return s.Agent.Command(ctx, name, args)
}

// A driver that hangs is left behind, and the guest is released through a new one.
func TestDriverThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, forever := plain(), make(chan struct{})
		open := bubbleOpener(g)
		a := &attempt{want: point.Filesystem, claim: func() error { return nil }, dismiss: func() error { return nil }}
		a.open = func(ctx context.Context) (hypervisor.Agent, error) {
			agent, err := open(ctx)
			return stuckAgent{agent, forever}, err
		}
		a.prepare(t.Context())
		a.hold(t.Context())
		if a.out.Level != point.Crash || !g.Held() {
			t.Errorf("got %+v, held %v", a.out, g.Held())
		}
		if err := a.release(t.Context()); err != nil || !g.Thawed() {
			t.Errorf("release: %v, thawed %v", err, g.Thawed())
		}
		close(forever)
		a.close()
	})
}
