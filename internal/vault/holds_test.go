package vault_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/vault"
)

// A point that is held stays, also through garbage collection, until all who hold it have released
// it.
func TestHeldPointStays(t *testing.T) {
	ctx := context.Background()
	_, _, v := memVault(t)
	p := backUpWhole(t, v, randomDisk(7, 1))
	for _, who := range []string{"web in /a", "web in /b", "web in /a"} {
		if err := v.Hold(ctx, p.ID, who); err != nil {
			t.Fatal(err)
		}
	}
	for _, release := range []string{"", "web in /none", "web in /a"} {
		if release != "" {
			if err := v.Release(ctx, p.ID, release); err != nil {
				t.Fatal(err)
			}
		}
		if err := v.PurgePoint(ctx, p.ID); !errors.Is(err, vault.ErrHeld) ||
			!strings.Contains(err.Error(), "web in /b") {
			t.Errorf("deleting it: %v", err)
		}
		if _, err := v.CollectGarbage(ctx, vault.GCOptions{}); err != nil {
			t.Fatal(err)
		}
		if _, err := v.Point(ctx, string(p.ID)); err != nil {
			t.Fatalf("after %q was released: %v", release, err)
		}
	}
	if err := v.Release(ctx, p.ID, ""); err != nil {
		t.Fatal(err)
	}
	if err := v.PurgePoint(ctx, p.ID); err != nil {
		t.Fatal(err)
	}
	if err := v.Hold(ctx, p.ID, "late"); !errors.Is(err, vault.ErrNoPoint) {
		t.Errorf("holding what is gone: %v", err)
	}
}
