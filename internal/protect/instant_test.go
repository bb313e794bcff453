package protect_test

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/blob/mem"
	"github.com/holdfast-vm/holdfast/internal/guest"
	"github.com/holdfast-vm/holdfast/internal/hypervisor"
	"github.com/holdfast-vm/holdfast/internal/point"
	"github.com/holdfast-vm/holdfast/internal/protect"
	"github.com/holdfast-vm/holdfast/internal/vault"
)

func TestConsistency(t *testing.T) {
	full := guest.Outcome{Level: point.Application, Reason: "hooks ran"}
	files := guest.Outcome{Level: point.Filesystem, Reason: "no hooks"}
	crash := guest.Outcome{Level: point.Crash, Reason: "VSS expired"}
	for _, tt := range []struct {
		name           string
		want           point.Consistency
		require, agent bool
		state          hypervisor.State
		promised, kept guest.Outcome
		level          point.Consistency // "" means ErrConsistency
		reason         string
	}{
		{"application", "", true, true, hypervisor.Running, full, full, point.Application, "hooks ran"},
		{"lower is recorded", "", false, true, hypervisor.Running, files, files, point.Filesystem, "no hooks"},
		{"lower than required", point.Application, true, true, hypervisor.Running, files, files, "", "no hooks"},
		{"lost while held", point.Application, false, true, hypervisor.Running, full, crash, point.Crash,
			"VSS expired"},
		{"lost while held, required", point.Application, true, true, hypervisor.Running, full, crash, "",
			"VSS expired"},
		{"crash asked for", point.Crash, true, true, hypervisor.Running, full, full, point.Crash, "asked for"},
		{"no agent", "", false, false, hypervisor.Running, full, full, point.Crash, "no guest agent"},
		{"no agent, required", point.Filesystem, true, false, hypervisor.Running, full, full, "", "no guest agent"},
		{"paused", "", false, true, hypervisor.Paused, full, full, point.Crash, "paused"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := newModel(rand.New(rand.NewPCG(1, 1)), 1)
			m.agent, m.state = tt.agent, tt.state
			v := newVault(t, mem.New())
			d := deps(t, v, m)
			g := &fakeGuest{promised: tt.promised, kept: tt.kept, held: &m.held,
				out: guest.Outcome{Level: point.Crash, Reason: "not yet"}}
			d.OpenGuest = func(context.Context, hypervisor.Machine, point.Consistency) (protect.Guest, error) {
				return g, nil
			}
			p, err := protect.Backup(context.Background(), d,
				protect.Request{Machine: m.machine(), Consistency: tt.want, Require: tt.require})
			if m.held {
				t.Error("the guest still holds its writes")
			}
			if tt.level == "" {
				requireRefused(t, v, m, err, tt.reason)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if p.Consistency != tt.level || !strings.Contains(p.ConsistencyReason, tt.reason) {
				t.Errorf("level %s (%s), want %s (%s)", p.Consistency, p.ConsistencyReason, tt.level, tt.reason)
			}
		})
	}
}

// requireRefused fails unless no point was made and no record of changes was begun.
func requireRefused(t *testing.T, v *vault.Vault, m *model, err error, reason string) {
	t.Helper()
	if !errors.Is(err, protect.ErrConsistency) || !strings.Contains(err.Error(), reason) {
		t.Errorf("error %v, want ErrConsistency with %q", err, reason)
	}
	points, err := v.Points(context.Background())
	if err != nil || len(points) != 0 {
		t.Errorf("the vault has %d points (%v), want none", len(points), err)
	}
	for disk, b := range m.bitmap {
		if len(b) != 0 {
			t.Errorf("disk %s has bitmaps %v", disk, b)
		}
	}
}

// Files that the machine writes are as they were at the instant; what cannot be read is a warning.
func TestFilesBelongToTheInstant(t *testing.T) {
	dir := t.TempDir()
	m := newModel(rand.New(rand.NewPCG(1, 1)), 1)
	for name, role := range map[string]string{"vars.fd": "nvram", "kernel": "kernel"} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, bytes.Repeat([]byte(role), 20000), 0o600); err != nil {
			t.Fatal(err)
		}
		m.files = append(m.files, point.File{Role: role, Path: path, Name: name, Mode: 0o600})
	}
	m.files = append(m.files, point.File{Role: "tpm", Path: filepath.Join(dir, "gone"), Name: "gone"})
	v := newVault(t, mem.New())
	d := deps(t, v, m)
	d.OpenGuest = func(context.Context, hypervisor.Machine, point.Consistency) (protect.Guest, error) {
		return &onThaw{do: func() { // the machine goes on at once
			if err := os.WriteFile(filepath.Join(dir, "vars.fd"), []byte("later"), 0o600); err != nil {
				t.Error(err)
			}
		}}, nil
	}
	p, err := protect.Backup(context.Background(), d, protect.Request{Machine: m.machine()})
	if err != nil {
		t.Fatal(err)
	}
	if len(p.Files) != 2 || !slices.ContainsFunc(p.Warnings, func(w string) bool {
		return strings.Contains(w, "gone")
	}) {
		t.Fatalf("files %+v, warnings %q", p.Files, p.Warnings)
	}
	for _, f := range p.Files {
		if got, want := readTree(t, v, f.Root, f.Size), bytes.Repeat([]byte(f.Role), 20000); !bytes.Equal(got, want) {
			t.Errorf("%s file holds %d bytes %.20q…, want %d", f.Role, len(got), got, len(want))
		}
	}
}
