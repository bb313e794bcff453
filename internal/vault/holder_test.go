package vault

import (
	"os"
	"os/exec"
	"testing"
)

// Only who is proved gone is gone: nobody of another machine, boot of a clone, or namespace.
func TestWhoIsProvedGone(t *testing.T) {
	here := &holder{Machine: "m", Board: "b", Boot: "1", PIDs: "ns"}
	running := func(int) (string, bool) { return "100", true }
	ended := func(int) (string, bool) { return "", false }
	hidden := func(int) (string, bool) { return "", true }
	for _, tt := range []struct {
		name    string
		holder  holder
		started func(int) (string, bool)
		want    bool
	}{
		{"it runs", holder{"m", "b", "1", "ns", 7, "100"}, running, false},
		{"it ended", holder{"m", "b", "1", "ns", 7, "100"}, ended, true},
		{"another has its number", holder{"m", "b", "1", "ns", 7, "99"}, running, true},
		{"what has its number cannot be seen", holder{"m", "b", "1", "ns", 7, "99"}, hidden, false},
		{"another namespace", holder{"m", "b", "1", "other", 7, "100"}, ended, false},
		{"no namespace is known", holder{"m", "b", "1", "", 7, "100"}, ended, false},
		{"another machine", holder{"n", "c", "1", "ns", 7, "100"}, ended, false},
		{"no machine is known", holder{"", "b", "1", "ns", 7, "100"}, ended, false},
		{"the machine was started anew", holder{"m", "b", "0", "ns", 7, "100"}, running, true},
		{"a clone of the machine", holder{"m", "c", "0", "ns", 7, "100"}, ended, false},
		{"the hardware is not known", holder{"m", "", "0", "ns", 7, "100"}, ended, false},
	} {
		if got := tt.holder.goneAsSeenFrom(here, tt.started); got != tt.want {
			t.Errorf("%s: gone is %v", tt.name, got)
		}
	}
}

// This process is not gone, and one that ended is.
func TestProcessesAreToldApart(t *testing.T) {
	if thisProcess().isGone() {
		t.Errorf("this process is gone: %+v", thisProcess())
	}
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	other := hostNow()
	other.PID = cmd.Process.Pid
	other.Start, _ = startOf(other.PID)
	if other.Machine == "" {
		other.Machine = "test"
		t.Skip("the host has no machine ID: nobody can be proved gone")
	}
	if other.isGone() {
		t.Errorf("a process that runs is gone: %+v", other)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil {
		t.Fatal("it ended by itself")
	}
	if !other.isGone() {
		t.Errorf("a process that ended is not gone: %+v", other)
	}
	if _, there := startOf(os.Getpid()); !there {
		t.Error("this process is not there")
	}
}
