package drill

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-vm/holdfast/internal/hypervisor"
	"github.com/holdfast-vm/holdfast/internal/hypervisor/isolation"
	"github.com/holdfast-vm/holdfast/internal/point"
)

// removing is a host that notes what it is asked to remove.
type removing struct {
	Host
	removed []string
	fail    error
	found   []string
}

func (h *removing) Remove(_ context.Context, m hypervisor.Machine) error {
	h.removed = append(h.removed, m.Name)
	return h.fail
}

func (h *removing) Close() error { return nil }

func (h *removing) Isolation(context.Context, hypervisor.Machine) (isolation.Report, error) {
	return isolation.Report{Files: 3, Found: h.found}, nil
}

// What a dead process has left is removed, once; what a living one has is left alone, and what can
// not be removed stays noted.
func TestCleanUp(t *testing.T) {
	state, storage := t.TempDir(), t.TempDir()
	req := Request{Point: &point.RecoveryPoint{Definition: point.Definition{Kind: point.ForLibvirt}}, Host: "qemu:///x",
		Storage: storage, StateDir: state}
	n, err := newNote(req, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	p, err := makePlace(state, n)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(n.path("file"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	h := &removing{fail: errors.New("the host is away")}
	clean := func() []Leftover {
		return CleanUp(t.Context(), state, func(string) (Host, error) { return h, nil })
	}
	if got := clean(); len(got) != 1 || !got[0].Running || got[0].Err != nil || len(h.removed) > 0 {
		t.Fatalf("a drill that runs: %+v, removed %q", got, h.removed)
	}
	p.leave()
	if got := clean(); len(got) != 1 || got[0].Did != "" ||
		!strings.Contains(fmt.Sprint(got[0].Err), "the host is away") {
		t.Fatalf("a host that is away: %+v", got)
	}
	h.fail = hypervisor.ErrNoMachine
	if got := clean(); len(got) != 1 || got[0].Err != nil || got[0].Running || got[0].Machine != n.Name ||
		got[0].UUID != n.UUID || got[0].Host != n.Host || got[0].Did == "" {
		t.Fatalf("a drill that was killed: %+v", got)
	}
	if want := []string{n.Name, n.Name}; !slices.Equal(h.removed, want) {
		t.Errorf("removed %q, want %q", h.removed, want)
	}
	for _, dir := range []string{storage, filepath.Join(state, noteDir)} {
		if left, _ := os.ReadDir(dir); len(left) > 0 {
			t.Errorf("%s still has %v", dir, left)
		}
	}
	if got := clean(); len(got) > 0 {
		t.Errorf("again: %+v", got)
	}
}

// A drill that was killed between any two steps of making or removing its place leaves nothing
// after a clean-up.
func TestCleanUpEveryStep(t *testing.T) {
	full := []string{"lock", "tmp", "json", "dir", "file"} // in the order of being made
	for made := range len(full) + 1 {
		for removed := range len(full) + 1 { // in the order of being removed: the directory first
			state, storage := t.TempDir(), t.TempDir()
			n := note{Name: namePrefix + "1", UUID: "u", Host: "qemu:///x", Dir: filepath.Join(storage, namePrefix+"1")}
			text, err := json.Marshal(n)
			if err != nil {
				t.Fatal(err)
			}
			there := map[string]bool{}
			for _, what := range full[:made] {
				there[what] = true
			}
			there["tmp"] = there["tmp"] && !there["json"]
			for _, what := range []string{"file", "dir", "tmp", "json", "lock"}[:removed] {
				there[what] = false
			}
			base := filepath.Join(state, noteDir, n.Name)
			must := func(err error) {
				if err != nil {
					t.Fatal(err)
				}
			}
			must(os.MkdirAll(filepath.Dir(base), 0o700))
			for what, path := range map[string]string{"lock": base + ".lock", "json": base + ".json",
				"tmp": filepath.Join(filepath.Dir(base), "hf-1-ab.tmp")} {
				if there[what] {
					must(os.WriteFile(path, text, 0o600))
				}
			}
			if there["dir"] {
				must(os.Mkdir(n.Dir, 0o700))
			}
			if there["file"] {
				must(os.WriteFile(n.path("f"), nil, 0o600))
			}
			h := &removing{fail: hypervisor.ErrNoMachine}
			for _, l := range CleanUp(t.Context(), state, func(string) (Host, error) { return h, nil }) {
				if l.Err != nil {
					t.Errorf("%d made, %d removed: %v", made, removed, l.Err)
				}
			}
			for _, dir := range []string{storage, filepath.Dir(base)} {
				if left, _ := os.ReadDir(dir); len(left) > 0 {
					t.Errorf("%d made, %d removed: %s still has %v", made, removed, dir, left)
				}
			}
		}
	}
}

// Drills begin and end while others clean up: none is hurt, and nothing is left.
func TestCleanUpBeside(t *testing.T) {
	state, storage := t.TempDir(), t.TempDir()
	req := Request{Point: &point.RecoveryPoint{Definition: point.Definition{Kind: point.ForLibvirt}}, Host: "qemu:///x",
		Storage: storage, StateDir: state}
	done := make(chan struct{})
	cleaned := make(chan []Leftover)
	go func() {
		var all []Leftover
		defer func() { cleaned <- all }()
		for {
			all = append(all, CleanUp(context.Background(), state, func(string) (Host, error) {
				return &removing{}, nil
			})...)
			select {
			case <-done:
				return
			default:
			}
		}
	}()
	for range 300 {
		n, err := newNote(req, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		p, err := makePlace(state, n)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(n.path("f"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := p.remove(); err != nil {
			t.Fatal(err)
		}
	}
	close(done)
	for _, l := range <-cleaned {
		if l.Err != nil || !l.Running {
			t.Fatalf("%+v", l)
		}
	}
	for _, dir := range []string{storage, filepath.Join(state, noteDir)} {
		if left, _ := os.ReadDir(dir); len(left) > 0 {
			t.Errorf("%s still has %v", dir, left)
		}
	}
}

// A damaged note removes nothing.
func TestCleanUpDamaged(t *testing.T) {
	state, precious := t.TempDir(), t.TempDir()
	if err := os.MkdirAll(filepath.Join(state, noteDir), 0o700); err != nil {
		t.Fatal(err)
	}
	for i, text := range []string{"{", `{"name":"hf-drill-1","dir":"` + precious + `"}`, `{"name":"","dir":"/"}`} {
		file := filepath.Join(state, noteDir, "hf-drill-1.json")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		h := &removing{}
		if got := CleanUp(t.Context(), state, func(string) (Host, error) {
			return h, nil
		}); len(got) != 1 || got[0].Err == nil || len(h.removed) > 0 {
			t.Errorf("note %d: %+v, removed %q", i, got, h.removed)
		}
	}
	if _, err := os.Stat(precious); err != nil {
		t.Error(err)
	}
}

// A way out is a verdict, and the machine is asked nothing more.
func TestNotIsolated(t *testing.T) {
	r := newRun(nil, Request{Point: &point.RecoveryPoint{}}, Options{}.withDefaults())
	r.host = &removing{found: []string{"network n of type user"}}
	err := r.isolated(t.Context())
	var f *failure
	if !errors.As(err, &f) || !strings.Contains(f.reason,
		"was not isolated, and was removed: network n of type user") || r.res.Isolation.Checks != 0 {
		t.Errorf("%v, %+v", err, r.res.Isolation)
	}
	r.host = &removing{}
	if err := r.isolated(t.Context()); err != nil || r.res.Isolation.Checks != 1 {
		t.Errorf("%v, %+v", err, r.res.Isolation)
	}
}
