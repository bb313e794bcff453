package pause_test

import (
	"encoding/json"
	"errors"
	"os/exec"
	"path/filepath"
	"reflect"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/hypervisor/pause"
	"github.com/holdfast-vm/holdfast/internal/qmp"
)

// machine starts a QEMU with two processors that run.
func machine(t *testing.T, name string) (*exec.Cmd, *qmp.Client) {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "q")
	cmd := exec.Command("qemu-system-x86_64", "-nodefaults", "-display", "none", "-accel", "tcg", "-m", "32", "-smp",
		"2",
		"-name", name, "-qmp", "unix:"+socket+",server=on,wait=off")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	for {
		c, err := qmp.Dial(t.Context(), socket)
		if err == nil {
			t.Cleanup(func() { c.Close() })
			return cmd, c
		}
	}
}

func execute(t *testing.T, c *qmp.Client, command string, result any) {
	t.Helper()
	if err := c.Execute(t.Context(), command, nil, result); err != nil {
		t.Fatal(err)
	}
}

func threads(t *testing.T, c *qmp.Client) (out []int) {
	t.Helper()
	var cpus []struct {
		Thread int `json:"thread-id"`
	}
	execute(t, c, "query-cpus-fast", &cpus)
	for _, cpu := range cpus {
		out = append(out, cpu.Thread)
	}
	return out
}

// A pause is ours as long as nobody has let the machine run, whatever else QEMU was asked
// meanwhile; once it has run, the next pause is somebody else's.
func TestWhosePause(t *testing.T) {
	cmd, c := machine(t, "one,debug-threads=on")
	named, given := pause.Of(cmd.Process.Pid, nil), pause.Of(cmd.Process.Pid, threads(t, c))
	if len(named.Threads) != 2 || !reflect.DeepEqual(named.Threads, given.Threads) || named.Ran == 0 ||
		named.Boot == "" {
		t.Fatalf("marks %+v and %+v", named, given)
	}
	about := named.Again()
	execute(t, c, "stop", nil)
	stopped := about.Standing()
	for range 20 {
		for _, command := range []string{"query-cpus-fast", "query-block", "query-named-block-nodes", "query-status"} {
			execute(t, c, command, nil)
		}
	}
	for name, m := range map[string]pause.Mark{"about to be stopped": about, "stopped": stopped,
		"stored":           stored(t, stopped),
		"nothing is known": {}} {
		if err := m.Holds(named.Again()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}

	execute(t, c, "cont", nil)
	for {
		if d := named.Again().Ran - stopped.Ran; d > 5e6 {
			break
		}
		execute(t, c, "system_reset", nil) // the firmware has something to do
	}
	execute(t, c, "stop", nil)
	about.Ran -= 3e9 // it was noted when the machine had run for three seconds less
	for name, m := range map[string]pause.Mark{"about to be stopped": about, "stopped": stopped,
		"stored": stored(t, stopped)} {
		if err := m.Holds(named.Again()); !errors.Is(err, pause.ErrOthers) {
			t.Errorf("%s, and somebody let it run and stopped it: %v", name, err)
		}
	}
}

// A machine that was started anew is not the one that was stopped.
func TestAnotherRun(t *testing.T) {
	cmd, _ := machine(t, "one,debug-threads=on")
	other, _ := machine(t, "one,debug-threads=on")
	m := pause.Of(cmd.Process.Pid, nil).Standing()
	m.Domain = 3
	anew := pause.Of(other.Process.Pid, nil)
	domain := m
	domain.Domain = 4
	boot := m
	boot.Boot = "another"
	process := m
	process.Started++ // its ID was given again
	for name, now := range map[string]pause.Mark{"process": anew, "domain": domain, "boot": boot, "start": process,
		"only the domain is known": {Domain: 4}} {
		if err := m.Holds(now); !errors.Is(err, pause.ErrOthers) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := m.Holds(pause.Mark{Domain: 3}); err != nil {
		t.Errorf("only the domain is known: %v", err)
	}
	if gone := pause.Of(1<<22+1, nil); !reflect.DeepEqual(gone, pause.Mark{}) {
		t.Errorf("of no process: %+v", gone)
	}
}

func stored(t *testing.T, m pause.Mark) (out pause.Mark) {
	t.Helper()
	text, err := json.Marshal(m)
	if err == nil {
		err = json.Unmarshal(text, &out)
	}
	if err != nil {
		t.Fatal(err)
	}
	return out
}
