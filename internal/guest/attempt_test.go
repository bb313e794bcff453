package guest

import (
	"context"
	"encoding/json"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-vm/holdfast/internal/guest/guesttest"
	"github.com/holdfast-vm/holdfast/internal/hypervisor"
	"github.com/holdfast-vm/holdfast/internal/point"
)

const (
	stockHook = "#!/bin/sh\nFSFREEZE_D=$(dirname -- \"$0\")/fsfreeze-hook.d\nfor f in \"$FSFREEZE_D\"/*; " +
		"do\n\t\"$f\" \"$@\"\ndone\n\nexit 0\n"
	ourHook = "#!/bin/sh\ndir=${FSFREEZE_HOOK_DIR:-/etc/qemu/fsfreeze-hook.d}\nrun \"$hook\" freeze || exit 1\nesac\n"
	cmdline = "/usr/sbin/qemu-ga\x00-F/etc/qemu/fsfreeze-hook\x00"
)

// withHooks is a Linux guest whose agent has the hook, and the programs that it runs.
func withHooks(hook string, programs ...string) *guesttest.Guest {
	return &guesttest.Guest{
		Files: map[string]string{
			"/proc/self/cmdline":      cmdline,
			"/proc/self/environ":      "PATH=/bin\x00",
			"/etc/qemu/fsfreeze-hook": hook,
		},
		Programs: func(_ string, args []string) (string, int) {
			if !slices.Contains(args, "/etc/qemu/fsfreeze-hook.d") {
				return "", 1
			}
			return strings.Join(programs, "\n"), 0
		},
	}
}

// plain is a Linux guest without hooks.
func plain() *guesttest.Guest {
	return &guesttest.Guest{Files: map[string]string{"/proc/self/cmdline": "/usr/sbin/qemu-ga\x00"}}
}

func with(g *guesttest.Guest, change func(*guesttest.Guest)) *guesttest.Guest {
	change(g)
	return g
}

func faulty(g *guesttest.Guest, command string, f ...guesttest.Fault) *guesttest.Guest {
	g.Faults = map[string][]guesttest.Fault{command: f}
	return g
}

// pipeOpener opens the agent of g the way that DialUnix does, over a pipe, on the clock of a
// bubble.
func pipeOpener(g *guesttest.Guest) OpenAgent {
	return func(ctx context.Context, _ string) (hypervisor.Agent, error) {
		ctx, cancel := context.WithTimeout(ctx, syncTimeout)
		defer cancel()
		client, server := net.Pipe()
		go g.ServeConn(server)
		c := newConn(client, "pipe")
		if err := c.sync(ctx); err != nil {
			c.Close()
			return nil, err
		}
		return c, nil
	}
}

// taken is what came of one attempt.
type taken struct {
	Outcome
	last    Outcome // after the guard has ended
	held    bool    // the guest held its writes at the instant
	instant bool    // an instant was taken while the guard said that it held
	report  *point.GuestReport
}

// attemptOn runs a guard as its parent does; the instant takes the given time. With gone set, the
// parent dies instead of asking for the thaw.
func attemptOn(t *testing.T, g *guesttest.Guest, spec GuardSpec, instant time.Duration, gone bool) taken {
	t.Helper()
	requests, in := io.Pipe()
	replies := make(chan reply, 8)
	done := make(chan struct{})
	dir := t.TempDir()
	spec.Machine = "m"
	go func() {
		defer close(done)
		_ = guard(t.Context(), requests, func(r reply) { replies <- r }, pipeOpener(g))
	}()
	enc := json.NewEncoder(in)
	send := func(r request) reply {
		if err := enc.Encode(r); err != nil {
			t.Fatalf("guard went away at %q: %v", r.Do, err)
		}
		return <-replies
	}
	var got taken
	r := send(request{Do: doBegin, Spec: &spec, StateDir: dir})
	got.report = r.Guest
	if r.Now == nowReady {
		r = send(request{Do: doQuiesce})
	}
	if r.Now == nowHeld {
		time.Sleep(instant)
		got.held, got.instant = g.Held(), true
		if gone {
			in.Close()
			r = <-replies
		} else {
			enc.Encode(request{Do: doThaw})
			r = <-replies
		}
	}
	got.Outcome, got.last = r.Outcome, r.Outcome
	in.Close()
	<-done
	for len(replies) > 0 {
		got.last = (<-replies).Outcome
	}
	if files, _ := os.ReadDir(dir); len(files) != 0 && got.last.Stuck == "" {
		t.Errorf("left %v in the state directory", files)
	}
	return got
}

func TestLevels(t *testing.T) {
	const (
		app   = point.Application
		files = point.Filesystem
		crash = point.Crash
	)
	win := func(change func(*guesttest.Guest)) *guesttest.Guest {
		return with(&guesttest.Guest{Windows: true}, change)
	}
	nothing := func(*guesttest.Guest) {}
	tests := []struct {
		name    string
		guest   *guesttest.Guest
		want    point.Consistency
		limits  Limits
		instant time.Duration
		level   point.Consistency
		reason  string
	}{
		{"hooks of our dispatcher", withHooks(ourHook, "/etc/qemu/fsfreeze-hook.d/10-db.sh", "/x/old~"), app, Limits{},
			0, app, "the hooks of applications succeeded: 10-db.sh"},
		{"our dispatcher without hooks", withHooks(ourHook), app, Limits{}, 0, files,
			"no hooks of applications are installed in /etc/qemu/fsfreeze-hook.d"},
		{"our dispatcher with another directory", with(withHooks(ourHook, "/x/a"), func(g *guesttest.Guest) {
			g.Files["/proc/self/environ"] = "FSFREEZE_HOOK_DIR=/opt/hooks\x00"
		}), app, Limits{}, 0, files, "whether there are hooks in /opt/hooks is not known"},
		{"programs are not allowed", with(withHooks(ourHook, "/x/a"), func(g *guesttest.Guest) {
			g.Disabled = []string{"guest-exec"}
		}), app, Limits{}, 0, files, "guest-exec"},
		{"the dispatcher of distributions", withHooks(stockHook, "/x/a"), app, Limits{}, 0, files,
			"ignores hooks that fail"},
		{"a hook of the administrator", withHooks("#!/bin/sh\nfreeze-all \"$1\" || exit 1\n"), app, Limits{}, 0, app,
			"the hook /etc/qemu/fsfreeze-hook succeeded"},
		{"no hook", plain(), app, Limits{}, 0, files, "started without --fsfreeze-hook"},
		{"a hook in the configuration", with(withHooks("exec freeze-all \"$1\"\n"), func(g *guesttest.Guest) {
			g.Files["/proc/self/cmdline"] = "qemu-ga\x00-d\x00"
			g.Files["/etc/qemu/qemu-ga.conf"] = "[general]\nfsfreeze-hook = /etc/qemu/fsfreeze-hook\n"
		}), app, Limits{}, 0, app, "the hook /etc/qemu/fsfreeze-hook succeeded"},
		{"the configuration cannot be read", faulty(plain(), "guest-file-open", guesttest.Fault{}, guesttest.Fault{
			Kind:  guesttest.Refuse,
			Error: "failed to open file '/etc/qemu/qemu-ga.conf' (mode: 'r'): Permission denied",
		}), app, Limits{}, 0, files,
			"whether hooks of applications ran is not known: guest-file-open: guest agent: failed to open file"},
		{"files cannot be read", with(withHooks(ourHook, "/x/a"), func(g *guesttest.Guest) {
			g.Disabled = []string{"guest-file-open"}
		}), app, Limits{}, 0, files, "guest-file-open"},
		{"the system is not known", with(withHooks(ourHook, "/x/a"), func(g *guesttest.Guest) {
			g.NoOSInfo = true
		}), app, Limits{}, 0, files, "does not say what system"},
		{"no more than file systems", withHooks(ourHook, "/x/a"), files, Limits{}, 0, files,
			"3 file systems were flushed and held; no more was asked for"},
		{"one file system", with(plain(), func(g *guesttest.Guest) {
			g.Volumes = 1
		}), files, Limits{}, 0, files, "1 file system was"},
		{"evidence does not come in time",
			faulty(withHooks(ourHook, "/x/a"), "guest-file-read", guesttest.Fault{Kind: guesttest.Ignore}), app,
			Limits{}, 0, files, "is not known"},

		{"a hook fails", with(withHooks(ourHook, "/x/a"), func(g *guesttest.Guest) {
			g.FreezeFails, g.HookRan = "fsfreeze hook has failed with status 1", true
		}), app, Limits{}, 0, crash, "could not quiesce: fsfreeze hook has failed with status 1"},
		{"a hook fails at the thaw", with(withHooks(ourHook, "/x/a"), func(g *guesttest.Guest) {
			g.ThawFails = "fsfreeze hook has failed with status 1"
		}), app, Limits{}, 0, files, "a hook in the guest failed at the thaw"},
		{"the thaw fails", with(plain(), func(g *guesttest.Guest) {
			g.ThawFails = "ioctl: Input/output error"
		}), files, Limits{}, 0, crash, "did not hold its writes until the thaw"},
		{"somebody else releases a file system", with(plain(), func(g *guesttest.Guest) {
			g.Slips = 1
		}), files, Limits{}, 0, crash, "only 2 of 3 file systems"},
		{"nothing to hold", with(plain(), func(g *guesttest.Guest) {
			g.Volumes = -1
		}), files, Limits{}, 0, crash, "quiesced none"},
		{"freeze is not allowed", with(plain(), func(g *guesttest.Guest) {
			g.Disabled = []string{"guest-fsfreeze-freeze"}
		}), files, Limits{}, 0, crash, "does not allow guest-fsfreeze-freeze"},
		{"thaw is not allowed", with(plain(), func(g *guesttest.Guest) {
			g.Disabled = []string{"guest-fsfreeze-thaw"}
		}), files, Limits{}, 0, crash, "does not allow guest-fsfreeze-thaw"},
		{"a slow freeze", with(plain(), func(g *guesttest.Guest) {
			g.FreezeTakes = 9 * time.Second
		}), files, Limits{}, 0, files, "flushed and held"},
		{"a freeze that is too slow", with(plain(), func(g *guesttest.Guest) {
			g.FreezeTakes = 25 * time.Second
		}), files, Limits{}, 0, crash, "did not quiesce within 10s"},
		{"the instant takes too long", plain(), files, Limits{}, 9 * time.Second, crash,
			"released after 8s, as the instant"},

		{"freeze is done but not answered",
			faulty(plain(), "guest-fsfreeze-freeze", guesttest.Fault{Kind: guesttest.Mute}), files, Limits{}, 0, crash,
			"did not quiesce within"},
		{"freeze is ignored", faulty(plain(), "guest-fsfreeze-freeze", guesttest.Fault{Kind: guesttest.Ignore}), files,
			Limits{}, 0, crash, "did not quiesce within"},
		{"the answer to freeze comes late",
			faulty(plain(), "guest-fsfreeze-freeze", guesttest.Fault{Kind: guesttest.Late}), files, Limits{}, 0, crash,
			"did not quiesce within"},
		{"noise at freeze", faulty(plain(), "guest-fsfreeze-freeze", guesttest.Fault{Kind: guesttest.Junk}), files,
			Limits{}, 0, crash, "not an answer of a guest agent"},
		{"half an answer to freeze", faulty(plain(), "guest-fsfreeze-freeze", guesttest.Fault{Kind: guesttest.Partial}),
			files, Limits{}, 0, crash, "did not quiesce within"},
		{"too long an answer to freeze",
			faulty(plain(), "guest-fsfreeze-freeze", guesttest.Fault{Kind: guesttest.Huge}), files, Limits{}, 0, crash,
			"longer than"},
		{"the channel closes at freeze",
			faulty(plain(), "guest-fsfreeze-freeze", guesttest.Fault{Kind: guesttest.HangupLate}), files, Limits{}, 0,
			crash, "lost while the guest was to quiesce"},
		{"the channel closes at thaw", faulty(plain(), "guest-fsfreeze-thaw", guesttest.Fault{Kind: guesttest.Hangup}),
			files, Limits{}, 0, crash, "lost while the guest was held"},
		{"the channel closes after the thaw",
			faulty(plain(), "guest-fsfreeze-thaw", guesttest.Fault{Kind: guesttest.HangupLate}), files, Limits{}, 0,
			crash, "lost while the guest was held"},
		{"the thaw is not answered", faulty(plain(), "guest-fsfreeze-thaw", guesttest.Fault{Kind: guesttest.Mute}),
			files, Limits{}, 0, crash, "lost while the guest was held"},
		{"the thaw is ignored", faulty(plain(), "guest-fsfreeze-thaw", guesttest.Fault{Kind: guesttest.Ignore},
			guesttest.Fault{Kind: guesttest.Ignore}), files, Limits{}, 0, crash, "lost while the guest was held"},
		{"the thaw is refused", faulty(plain(), "guest-fsfreeze-thaw",
			guesttest.Fault{Kind: guesttest.Refuse, Error: "not now"}), files, Limits{}, 0, crash, "not now"},
		{"noise at thaw", faulty(plain(), "guest-fsfreeze-thaw", guesttest.Fault{Kind: guesttest.Junk}), files,
			Limits{}, 0, crash, "lost while the guest was held"},

		{"Windows", win(nothing), app, Limits{}, time.Second, app, "VSS writers were frozen"},
		{"Windows, no more than file systems", win(nothing), files, Limits{}, time.Second, app,
			"VSS writers were frozen"},
		{"a slow VSS", win(func(g *guesttest.Guest) {
			g.FreezeTakes = 45 * time.Second
		}), app, Limits{}, 0, app, "VSS writers were frozen"},
		{"a VSS that is too slow", win(func(g *guesttest.Guest) {
			g.FreezeTakes = 70 * time.Second
		}), app, Limits{}, 0, crash, "did not quiesce within 1m0s"},
		{"VSS gave up before the thaw", win(nothing), app, Limits{Hold: 20 * time.Second}, 12 * time.Second, crash,
			"couldn't hold writes: fsfreeze is limited up to 10 seconds"},
		{"a writer failed", win(func(g *guesttest.Guest) {
			g.FreezeFails = "DoSnapshotSet exited without Frozen event"
		}), app, Limits{}, 0, crash, "vssadmin list writers"},
		{"VSS was aborted", win(func(g *guesttest.Guest) { g.Slips = 3 }), app, Limits{}, 0, crash, "only 0 of 3"},
		{"no VSS provider", win(func(g *guesttest.Guest) {
			g.FreezeFails = "this feature or command is not currently supported"
		}), app, Limits{}, 0, crash, "not currently supported"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				got := attemptOn(t, tt.guest, GuardSpec{Want: tt.want, Limits: tt.limits}, tt.instant, false)
				synctest.Wait()
				if got.Level != tt.level || !strings.Contains(got.Reason, tt.reason) {
					t.Errorf("got %s (%s), want %s (%s)", got.Level, got.Reason, tt.level, tt.reason)
				}
				if !tt.guest.Thawed() || got.last.Stuck != "" {
					t.Errorf("the guest is still held, Stuck is %q", got.last.Stuck)
				}
				if got.Level != crash && !got.held {
					t.Errorf("level %s of an instant at which nothing was held", got.Level)
				}
			})
		})
	}
}

func TestGuestHeldBySomebodyElseIsLeftAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := plain()
		g.Freeze()
		got := attemptOn(t, g, GuardSpec{Want: point.Application}, 0, false)
		if got.Level != point.Crash || !strings.Contains(got.Reason, "somebody else holds") {
			t.Errorf("got %s (%s)", got.Level, got.Reason)
		}
		if !g.Held() || g.Calls("guest-fsfreeze-thaw") != 0 {
			t.Errorf("held is %v after %d thaws", g.Held(), g.Calls("guest-fsfreeze-thaw"))
		}
	})
}

func TestSilentAgent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := plain()
		g.Kill()
		got := attemptOn(t, g, GuardSpec{Want: point.Application}, 0, false)
		if got.Level != point.Crash || got.Reason != ErrSilent.Error() {
			t.Errorf("got %s (%s)", got.Level, got.Reason)
		}
	})
}

// An agent that dies while the guest is held is waited for; what it knows when it is back makes no
// difference.
func TestAgentDiesBetweenFreezeAndThaw(t *testing.T) {
	for _, thawed := range []bool{false, true} {
		for _, kind := range []guesttest.Kind{guesttest.Die, guesttest.DieLate} {
			synctest.Test(t, func(t *testing.T) {
				g := faulty(plain(), "guest-fsfreeze-thaw", guesttest.Fault{Kind: kind})
				time.AfterFunc(100*time.Second, func() { g.Revive(thawed) })
				got := attemptOn(t, g, GuardSpec{Want: point.Filesystem}, 0, false)
				if got.Level != point.Crash || !strings.Contains(got.Reason, "lost while the guest was held") {
					t.Errorf("got %s (%s)", got.Level, got.Reason)
				}
				if got.Stuck == "" || got.last.Stuck != "" || !g.Thawed() {
					t.Errorf("stuck %q at first and %q in the end, thawed %v", got.Stuck, got.last.Stuck, g.Thawed())
				}
			})
		}
	}
}

func TestParentIsGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := plain()
		got := attemptOn(t, g, GuardSpec{Want: point.Filesystem}, time.Second, true)
		if got.Level != point.Crash || !strings.Contains(got.Reason, "before the instant was taken") || !g.Thawed() {
			t.Errorf("got %s (%s), thawed %v", got.Level, got.Reason, g.Thawed())
		}
		if got.Held > 2*time.Second {
			t.Errorf("held for %v after the parent was gone", got.Held)
		}
	})
}

// A guard whose agent never comes back gives up after the time for that, and leaves the note.
func TestGuardGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := faulty(plain(), "guest-fsfreeze-thaw", guesttest.Fault{Kind: guesttest.Die})
		start := time.Now()
		got := attemptOn(t, g, GuardSpec{Want: point.Filesystem, Limits: Limits{Retry: time.Minute}}, 0, false)
		if took := time.Since(start); got.last.Stuck == "" || took < time.Minute || took > 2*time.Minute {
			t.Errorf("stuck %q after %v", got.last.Stuck, took)
		}
	})
}

func TestReportComesWithTheQuiesce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		got := attemptOn(t, plain(), GuardSpec{Want: point.Filesystem}, 0, false)
		if got.report == nil || got.report.Hostname != "guest1" || got.report.OS != "Debian GNU/Linux 12 (bookworm)" {
			t.Errorf("report is %+v", got.report)
		}
	})
}

// While the guest is not held yet, which may last long, its agent's socket is free for others.
func TestAgentIsNotOccupiedBeforeTheQuiesce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := plain()
		requests, in := io.Pipe()
		replies := make(chan reply, 8)
		open, opened, closed := pipeOpener(g), 0, 0
		counting := func(ctx context.Context, name string) (hypervisor.Agent, error) {
			opened++
			agent, err := open(ctx, name)
			return closeCounter{agent, &closed}, err
		}
		done := make(chan error)
		go func() { done <- guard(t.Context(), requests, func(r reply) { replies <- r }, counting) }()
		enc := json.NewEncoder(in)
		enc.Encode(request{Do: doBegin, Spec: &GuardSpec{Machine: "m", Want: point.Filesystem}, StateDir: t.TempDir()})
		<-replies
		time.Sleep(time.Hour)
		synctest.Wait()
		if opened != 1 || closed != 1 {
			t.Errorf("before the quiesce: opened %d times, closed %d times", opened, closed)
		}
		enc.Encode(request{Do: doQuiesce})
		<-replies
		enc.Encode(request{Do: doThaw})
		r := <-replies
		in.Close()
		if err := <-done; err != nil || r.Outcome.Level != point.Filesystem || !g.Thawed() || opened != 2 ||
			closed != 2 {
			t.Errorf("got %+v, %v; opened %d times, closed %d times", r, err, opened, closed)
		}
	})
}

type closeCounter struct {
	hypervisor.Agent
	n *int
}

func (c closeCounter) Close() error {
	*c.n++
	return c.Agent.Close()
}

// Whatever goes wrong and wherever: the guest is released, no longer held than allowed, and a level
// above crash is the truth.
func TestAnyFaultEndsInATrueLevelAndAThawedGuest(t *testing.T) {
	commands := []string{"guest-sync-delimited", "guest-info", "guest-get-osinfo", "guest-file-open", "guest-file-read",
		"guest-exec",
		"guest-exec-status", "guest-fsfreeze-status", "guest-fsfreeze-freeze", "guest-fsfreeze-thaw"}
	levels := map[point.Consistency]int{}
	for seed := range uint64(200) {
		rng := rand.New(rand.NewPCG(seed, 7))
		g := withHooks(ourHook, "/x/db.sh")
		g.Windows = rng.IntN(3) == 0
		g.FreezeTakes = time.Duration(rng.IntN(14)) * time.Second
		g.Faults = map[string][]guesttest.Fault{}
		dies := false
		for range rng.IntN(4) {
			cmd := commands[rng.IntN(len(commands))]
			f := guesttest.Fault{Kind: guesttest.Kind(rng.IntN(int(guesttest.Late) + 1)),
				Delay: time.Duration(rng.IntN(5000)) * time.Millisecond, Error: "no"}
			dies = dies || f.Kind == guesttest.Die || f.Kind == guesttest.DieLate
			g.Faults[cmd] = append(make([]guesttest.Fault, rng.IntN(4)), f)
		}
		instant := time.Duration(rng.IntN(11)) * time.Second
		gone := rng.IntN(8) == 0
		synctest.Test(t, func(t *testing.T) {
			if dies {
				timer := time.AfterFunc(90*time.Second, func() { g.Revive(seed%2 == 0) })
				defer timer.Stop()
			}
			got := attemptOn(t, g, GuardSpec{Want: point.Application}, instant, gone)
			time.Sleep(100 * time.Second) // what the agent was busy with, and its revival
			synctest.Wait()
			levels[got.Level]++
			if !g.Thawed() || got.last.Stuck != "" {
				t.Errorf("seed %d: still held, stuck %q, after %v", seed, got.last.Stuck, g.Commands())
			}
			if got.Level != point.Crash && (!got.held || gone) {
				t.Errorf("seed %d: %s (%s), but nothing was held at the instant", seed, got.Level, got.Reason)
			}
			if got.Reason == "" {
				t.Errorf("seed %d: no reason for %s", seed, got.Level)
			}
		})
	}
	for _, l := range []point.Consistency{point.Application, point.Filesystem, point.Crash} {
		if levels[l] < 5 {
			t.Errorf("only %d attempts ended at %s: the faults are not what they should be", levels[l], l)
		}
	}
}
