package cli

import (
	"regexp"
	"slices"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/child"
)

// A process in the background is told all that this one is told by its environment, except for the
// secret itself.
func TestTheBackgroundKnowsTheEnvironment(t *testing.T) {
	names := slices.Compact(slices.Sorted(slices.Values(regexp.MustCompile(`HOLDFAST_[A-Z_]+`).FindAllString(environmentHelp, -1))))
	if len(names) < 8 {
		t.Fatalf("the help names only %q", names)
	}
	for _, name := range names {
		t.Setenv(name, "some value")
		got := slices.Contains(child.Self("version").Env, name+"=some value")
		if want := name != passphraseEnv; got != want {
			t.Errorf("a process in the background gets %s: %v, want %v", name, got, want)
		}
		if slices.Contains(child.Command("true").Env, name+"=some value") {
			t.Errorf("another program gets %s", name)
		}
	}
}
