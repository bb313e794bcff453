package vault

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/holdfast-vm/holdfast/internal/blob/mem"
	"github.com/holdfast-vm/holdfast/internal/point"
	"github.com/holdfast-vm/holdfast/internal/vault/keys"
	"github.com/holdfast-vm/holdfast/internal/vault/log"
	"github.com/holdfast-vm/holdfast/internal/vault/state"
)

// A point that was brought back after a collection had found that its time was over is not purged,
// and one that is to be kept for longer neither.
func TestExpiryLeavesWhatWasBroughtBack(t *testing.T) {
	ctx := t.Context()
	store := mem.New()
	identity, _, err := keys.NewIdentity()
	if err != nil {
		t.Fatal(err)
	}
	key := Key{Identity: identity}
	if _, err := Init(ctx, store, InitOptions{Keys: []NamedKey{{Name: "x", Key: key}}}); err != nil {
		t.Fatal(err)
	}
	open := func() *Vault {
		v, err := Open(ctx, store, key, Options{})
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	collector, other := open(), open()
	var ids []point.ID
	for range 3 {
		s, err := other.Begin(ctx, "")
		if err != nil {
			t.Fatal(err)
		}
		p := &point.RecoveryPoint{ID: point.NewID(), VM: "vm", Time: time.Now()}
		if err := s.Commit(ctx, p); err != nil {
			t.Fatal(err)
		}
		ids = append(ids, p.ID)
		deleteUntil(ctx, t, other, p.ID, time.Now().Add(-time.Hour))
	}
	due, err := collector.due(ctx, time.Now())
	if err != nil || len(due) != 3 {
		t.Fatalf("%d points are due: %v", len(due), err)
	}
	if err := other.UndeletePoint(ctx, ids[0]); err != nil {
		t.Fatal(err)
	}
	deleteUntil(ctx, t, other, ids[1], time.Now().Add(time.Hour))
	for i, want := range []error{errBroughtBack, errBroughtBack, nil} {
		if err := collector.purge(ctx, ids[i], stillDue); !errors.Is(err, want) {
			t.Errorf("purging point %d: %v, want %v", i, err, want)
		}
	}
	if _, err := collector.Point(ctx, string(ids[0])); err != nil {
		t.Errorf("the point that was brought back: %v", err)
	}
}

// deleteUntil deletes a point softly as somebody did at another time.
func deleteUntil(ctx context.Context, t *testing.T, v *Vault, id point.ID, until time.Time) {
	t.Helper()
	sid, err := stateID(id)
	if err != nil {
		t.Fatal(err)
	}
	_, err = v.journal.Append(ctx, func(context.Context, *state.State) ([]log.Op, error) {
		d := state.Delete{Points: []state.ID{sid}, Until: until.UnixMilli()}
		return []log.Op{d.Op()}, nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
