package libvirt_test

import (
	"slices"

	"github.com/holdfast-vm/holdfast/internal/capture"
)

// Whether a point was committed only its own vault knows: until a run with that vault decides, its
// record of changes stays, whoever else cleans up or captures. What was never read whole cannot
// have been committed, and goes.
func testRecordOfAnotherVault(l *lab) {
	l.commit(l.capture(l.plan(), capture.Hooks{}))
	first := l.current()
	const other = "11111111"
	for _, tt := range []struct {
		name string
		run  func() error
	}{
		{"reconcile without a vault", func() error {
			_, err := l.capturer.Reconcile(l.ctx, "one", "", nil)
			return err
		}},
		{"reconcile for another vault", func() error {
			_, err := l.capturer.Reconcile(l.ctx, "one", other, []string{"hf-11111111-00000001"})
			return err
		}},
		{"capture for another vault", func() error {
			p := l.plan()
			p.Vault = other
			for i := range p.Disks {
				p.Disks[i].LastBitmap = ""
			}
			r, err := l.capturer.Capture(l.ctx, "one", p, capture.Hooks{}, l.sink)
			if err != nil {
				return err
			}
			return r.DropNew(l.ctx)
		}},
	} {
		bitmap := l.killedAt("uncommitted")
		l.ok(tt.run())
		names, err := l.client.Checkpoints(l.ctx, l.dom)
		l.ok(err)
		if !slices.Contains(names, bitmap) {
			l.Errorf("%s drops the record of changes of a point that may be committed: %q", tt.name, names)
			continue
		}
		if _, err := l.capturer.Reconcile(l.ctx, "one", vault, []string{first, bitmap}); err != nil {
			l.Error(err)
		}
		if names, err = l.client.Checkpoints(l.ctx, l.dom); err != nil || !slices.Contains(names, bitmap) {
			l.Errorf("%s, then its own vault: %q, %v", tt.name, names, err)
		}
		if _, err := l.capturer.Reconcile(l.ctx, "one", vault, []string{first}); err != nil {
			l.Error(err)
		}
		l.clean(first)

		l.killedAt("frozen")
		l.ok(tt.run())
		l.clean(first)
	}
}
