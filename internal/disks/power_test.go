package disks

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/durable"
)

// fillKilled has a command that fills a disk end at one of its steps; any other error than that,
// and than the death of its file system, fails the test.
func fillKilled(t *testing.T, p *Pool, at int, c pieces) (steps int) {
	t.Helper()
	p.step = func(string) error {
		if steps++; steps > at {
			return errCrash
		}
		return nil
	}
	_, err := p.Hydrate(context.Background(), "data", HydrateRequest{Content: c, Serve: unserved})
	if err != nil && !errors.Is(err, errCrash) {
		t.Fatal(err)
	}
	return steps
}

// What the record of a killed process said is built on only once it is on disk: wherever the first
// process was killed before a record, or the name of an image, was durable, and wherever the
// second, the disk is there after power loss.
func TestPowerFailsAfterKills(t *testing.T) {
	ctx := context.Background()
	never := 1 << 30
	for first := 0; ; first++ {
		died := false
		for second, steps := 0, 1; second <= steps; second++ {
			f := new(durable.Forgetful)
			c := sparse(mib + 512)
			p := newPool(t, shortDir(t), newModel())
			_, err := p.CreateOverlay(ctx, CreateRequest{Name: "data", Format: "raw", Content: c})
			ok(t, err)
			p.fs = f
			f.KillAtSync(filepath.Join(p.dir, recordDir), first, errCrash)
			fillKilled(t, p, never, c)
			died = f.Restart() || died
			p = newPool(t, p.dir, newModel())
			p.fs = f
			steps = fillKilled(t, p, second, c)
			ok(t, f.LosePower())
			requireDisk(t, p.dir, c, first, second)
		}
		if !died {
			return
		}
	}
}

// The name of a copy that is complete is on disk before the record names it and the overlay is
// removed.
func TestPowerFailsAfterACopyGotItsName(t *testing.T) {
	ctx := context.Background()
	f := new(durable.Forgetful)
	c := sparse(mib + 512)
	p := newPool(t, shortDir(t), newModel())
	_, err := p.CreateOverlay(ctx, CreateRequest{Name: "data", Format: "raw", Content: c})
	ok(t, err)
	p.checkpoint = 0
	p.step = func(at string) error {
		if at == "hydrate: copied" {
			return errCrash
		}
		return nil
	}
	if _, err := p.Hydrate(ctx, "data", HydrateRequest{Content: c, Serve: unserved}); !errors.Is(err, errCrash) {
		t.Fatal(err)
	}
	d, err := p.Disk("data")
	ok(t, err)
	f.Renamed(filepath.Join(p.dir, d.Hydration.Partial.File), filepath.Join(p.dir, d.Hydration.Final))
	p = newPool(t, p.dir, newModel())
	p.fs = f
	p.step = func(at string) error {
		if at == "hydrate: recorded" { // the power fails when the overlay has gone
			return errors.Join(os.Remove(filepath.Join(p.dir, d.File)), errCrash)
		}
		return nil
	}
	if _, err := p.Hydrate(ctx, "data", HydrateRequest{Content: c, Serve: unserved}); !errors.Is(err, errCrash) {
		t.Fatal(err)
	}
	ok(t, f.LosePower())
	requireDisk(t, p.dir, c, 0, 0)
}

// A disk that was being created when its process was killed is complete, or gone, and either for
// good.
func TestPowerFailsAfterACreationWasFinished(t *testing.T) {
	ctx := context.Background()
	for _, tt := range []struct {
		name   string
		harm   func(f *durable.Forgetful, path string) error
		exists bool
	}{
		{"its name is not on disk", func(f *durable.Forgetful, path string) error {
			f.Renamed(path+".new", path)
			return nil
		}, true},
		{"it has no header yet", func(_ *durable.Forgetful, path string) error { return os.Truncate(path, 0) }, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := new(durable.Forgetful)
			c := sparse(mib)
			p := newPool(t, shortDir(t), newModel())
			p.step = func(at string) error {
				if at == "create: written" {
					return errCrash
				}
				return nil
			}
			if _, err := p.CreateOverlay(ctx, CreateRequest{Name: "data", Format: "raw", Content: c}); !errors.Is(err,
				errCrash) {
				t.Fatal(err)
			}
			d, err := p.Disk("data")
			ok(t, err)
			ok(t, tt.harm(f, p.Path(d)))
			p = newPool(t, p.dir, newModel())
			p.fs = f
			_, err = p.Reconcile(ctx, "data")
			ok(t, err)
			ok(t, f.LosePower())
			_, err = p.Disk("data")
			if tt.exists {
				requireDisk(t, p.dir, c, 0, 0)
			} else if !errors.Is(err, ErrNoDisk) {
				t.Errorf("a disk without an image: %v", err)
			}
		})
	}
}

// requireDisk has a third process fill the disk, which must be there.
func requireDisk(t *testing.T, dir string, c pieces, first, second int) {
	t.Helper()
	p := newPool(t, dir, newModel())
	d, err := p.Hydrate(context.Background(), "data", HydrateRequest{Content: c, Serve: unserved})
	if err != nil {
		t.Fatalf("killed at record %d and step %d, then the power failed: %v", first, second, err)
	}
	requireBytes(t, p.Path(d), "raw", c.bytes(t))
}
