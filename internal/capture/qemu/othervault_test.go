package qemu

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/capture"
)

// killedAtTheEnd captures everything and then dies, before anybody can tell whether the vault
// committed the point. It returns the epoch's bitmap.
func killedAtTheEnd(t *testing.T, v *vm, w *vault) string {
	t.Helper()
	c := v.capturer()
	res, err := c.Capture(t.Context(), "guest", w.plan(v.scratch(), 0), capture.Hooks{}, newVault(t).take)
	if err != nil {
		t.Fatal(err)
	}
	c.open = func(context.Context) (monitor, error) { return nil, errors.New("dead") }
	if err := res.DropNew(t.Context()); err == nil {
		t.Fatal("a dead process has cleaned up")
	}
	return res.Disks[0].Bitmap
}

// Whether a point was committed only its own vault knows: until a run with that vault decides, its
// record of changes stays, whoever else cleans up or captures.
func TestRecordOfAnotherVaultStays(t *testing.T) {
	t.Parallel()
	v, w, rng := newVM(t), newVault(t), rand.New(rand.NewPCG(12, 2))
	cycle(t, v, w, v.capturer(), rng, 0)
	const other = "11111111"
	for name, run := range map[string]func(c *Capturer) error{
		"reconcile without a vault": func(c *Capturer) error {
			_, err := c.Reconcile(t.Context(), "guest", "", nil)
			return err
		},
		"reconcile for another vault": func(c *Capturer) error {
			_, err := c.Reconcile(t.Context(), "guest", other, []string{"hf-11111111-00000001"})
			return err
		},
		"capture for another vault": func(c *Capturer) error {
			plan := newVault(t).plan(v.scratch(), 0)
			plan.Vault = other
			res, err := c.Capture(t.Context(), "guest", plan, capture.Hooks{}, newVault(t).take)
			if err != nil {
				return err
			}
			return res.DropNew(t.Context())
		},
	} {
		bitmap := killedAtTheEnd(t, v, w)
		if err := run(v.capturer()); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		v.requireClean(append(w.keep(), bitmap)...)
		if !v.hasBitmap(bitmap) {
			t.Errorf("%s drops the record of changes of a point that may be committed", name)
		}
		if _, err := v.capturer().Reconcile(t.Context(), "guest", vaultID, append(w.keep(), bitmap)); err != nil {
			t.Fatal(err)
		}
		if !v.hasBitmap(bitmap) {
			t.Errorf("%s, then its own vault: the record of a committed point is dropped", name)
		}
		if _, err := v.capturer().Reconcile(t.Context(), "guest", vaultID, w.keep()); err != nil {
			t.Fatal(err)
		}
		v.requireClean(w.keep()...)
	}
}

func (v *vm) hasBitmap(name string) bool {
	var nodes []node
	v.execute("query-named-block-nodes", nil, &nodes)
	return slices.ContainsFunc(nodes, func(n node) bool { return n.bitmap(name) != nil })
}
