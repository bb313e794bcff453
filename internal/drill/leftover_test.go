package drill

import (
	"context"
	"errors"
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

// What a dead process has left is removed, once; what a living one has is left alone, and what can not be removed stays noted.
func TestCleanUp(t *testing.T) {
	state, storage := t.TempDir(), t.TempDir()
	req := Request{Point: &point.RecoveryPoint{Definition: point.Definition{Kind: "libvirt"}}, Host: "qemu:///x", Storage: storage, StateDir: state}
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
	clean := func() ([]string, error) {
		return CleanUp(t.Context(), state, func(string) (Host, error) { return h, nil })
	}
	if did, err := clean(); len(did) > 0 || err != nil || len(h.removed) > 0 {
		t.Fatalf("a drill that runs: %q, %v, removed %q", did, err, h.removed)
	}
	p.leave()
	if did, err := clean(); len(did) > 0 || err == nil || !strings.Contains(err.Error(), "the host is away") {
		t.Fatalf("a host that is away: %q, %v", did, err)
	}
	h.fail = hypervisor.ErrNoMachine
	if did, err := clean(); len(did) != 1 || err != nil || !strings.Contains(did[0], n.Name) {
		t.Fatalf("a drill that was killed: %q, %v", did, err)
	}
	if want := []string{n.Name, n.Name}; !slices.Equal(h.removed, want) {
		t.Errorf("removed %q, want %q", h.removed, want)
	}
	for _, dir := range []string{storage, filepath.Join(state, noteDir)} {
		if left, _ := os.ReadDir(dir); len(left) > 0 {
			t.Errorf("%s still has %v", dir, left)
		}
	}
	if did, err := clean(); len(did) > 0 || err != nil {
		t.Errorf("again: %q, %v", did, err)
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
		if did, err := CleanUp(t.Context(), state, func(string) (Host, error) { return h, nil }); err == nil || len(did) > 0 || len(h.removed) > 0 {
			t.Errorf("note %d: %q, %v, removed %q", i, did, err, h.removed)
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
	if !errors.As(err, &f) || !strings.Contains(f.reason, "was not isolated, and was removed: network n of type user") || r.res.Isolation.Checks != 0 {
		t.Errorf("%v, %+v", err, r.res.Isolation)
	}
	r.host = &removing{}
	if err := r.isolated(t.Context()); err != nil || r.res.Isolation.Checks != 1 {
		t.Errorf("%v, %+v", err, r.res.Isolation)
	}
}
