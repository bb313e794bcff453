package vault

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/holdfast-vm/holdfast/internal/blob"
	"github.com/holdfast-vm/holdfast/internal/point"
)

// The format of a manifest, docs/formats/point.md: a sealed object of JSON.
const (
	pointsPrefix = "points/"
	maxManifest  = 64 << 20 // bytes of JSON; a domain definition has a few tens of KiB
)

var manifests = sealed{pointsPrefix, "HFPOINT1", "holdfast point v1", "point"}

func (v *Vault) sealPoint(p *point.RecoveryPoint) ([]byte, error) {
	id, err := hex.DecodeString(string(p.ID))
	if err != nil || len(id) != 16 {
		return nil, fmt.Errorf("point ID %q is not 32 hexadecimal digits", p.ID)
	}
	var text bytes.Buffer
	enc := json.NewEncoder(&text)
	enc.SetEscapeHTML(false) // definitions are XML
	if err := enc.Encode(p); err != nil {
		return nil, fmt.Errorf("encode point %s: %w", p.ID, err)
	}
	plain := text.Bytes()
	if len(plain) > maxManifest {
		return nil, fmt.Errorf("point %s: its manifest of %d bytes is too large", p.ID, len(plain))
	}
	return v.seal(manifests, id, plain)
}

func (v *Vault) openPoint(name string, raw []byte) (*point.RecoveryPoint, error) {
	plain, err := v.unseal(manifests, name, raw)
	if err != nil {
		return nil, err
	}
	var p point.RecoveryPoint
	if err := json.Unmarshal(plain, &p); err != nil {
		return nil, fmt.Errorf("%w: %s: %v", ErrCorrupt, name, err)
	}
	return &p, nil
}

// readAhead is how many manifests are read at once: most of the time of a small object is waiting for it.
const readAhead = 16

// eachPoint calls visit with every manifest's name and point, or with the error that keeps it from being read, in the order of names.
func (v *Vault) eachPoint(ctx context.Context, visit func(name string, p *point.RecoveryPoint, err error) error) error {
	names, err := v.pointNames(ctx, "")
	if err != nil {
		return err
	}
	return v.eachOf(ctx, names, v.readPoint, visit)
}

// pointNames returns the objects of the points whose ID begins with prefix, in ascending order. Other objects there are no points.
func (v *Vault) pointNames(ctx context.Context, prefix string) ([]string, error) {
	var names []string
	for name, err := range blob.Names(ctx, v.store, pointsPrefix+prefix, "") {
		if err != nil {
			return nil, fmt.Errorf("list points: %w", err)
		}
		names = append(names, name)
	}
	return names, nil
}

// eachOf calls visit with what read makes of manifests, in the order of names. Those that are gone are left out.
func (v *Vault) eachOf(ctx context.Context, names []string, read func(context.Context, string) (*point.RecoveryPoint, error), visit func(string, *point.RecoveryPoint, error) error) error {
	for batch := range slices.Chunk(names, 16*readAhead) {
		got, errs := make([]*point.RecoveryPoint, len(batch)), make([]error, len(batch))
		var g errgroup.Group
		g.SetLimit(readAhead)
		for i, name := range batch {
			g.Go(func() error {
				got[i], errs[i] = read(ctx, name)
				return nil
			})
		}
		_ = g.Wait() // errors are in errs
		for i, name := range batch {
			if errors.Is(errs[i], blob.ErrNotExist) {
				continue // deleted since it was listed
			}
			if err := visit(name, got[i], errs[i]); err != nil {
				return err
			}
		}
	}
	return nil
}

func (v *Vault) readPoint(ctx context.Context, name string) (*point.RecoveryPoint, error) {
	raw, err := blob.Get(ctx, v.store, name)
	if err != nil {
		return nil, err
	}
	return v.openPoint(name, raw)
}

// Points returns all points, oldest first, which takes reading the manifests of machines' points: Summaries is for who needs no definitions. A manifest
// that cannot be read is an error: `vault check` says what to do.
func (v *Vault) Points(ctx context.Context) ([]*point.RecoveryPoint, error) {
	var points []*point.RecoveryPoint
	for p, err := range v.points(ctx, nil, v.knownPoint) {
		if err != nil {
			return nil, err
		}
		points = append(points, p)
	}
	return points, nil
}

// EachPoint yields the points whose summaries match, oldest first, and keeps few of them in memory. An error ends the sequence.
func (v *Vault) EachPoint(ctx context.Context, match func(summary *point.RecoveryPoint) bool) iter.Seq2[*point.RecoveryPoint, error] {
	return v.points(ctx, match, v.readPoint)
}

func (v *Vault) points(ctx context.Context, match func(*point.RecoveryPoint) bool, read func(context.Context, string) (*point.RecoveryPoint, error)) iter.Seq2[*point.RecoveryPoint, error] {
	return func(yield func(*point.RecoveryPoint, error) bool) {
		all, err := v.summaries(ctx, match)
		if err != nil {
			yield(nil, err)
			return
		}
		slices.SortFunc(all, func(a, b *summary) int { return point.ByTime(&a.RecoveryPoint, &b.RecoveryPoint) })
		for batch := range slices.Chunk(all, 16*readAhead) {
			points, err := v.completed(ctx, batch, read)
			if err != nil {
				yield(nil, err)
				return
			}
			for _, p := range points {
				if !yield(p, nil) {
					return
				}
			}
		}
	}
}

// completed returns the points of summaries. Those that are gone are left out.
func (v *Vault) completed(ctx context.Context, batch []*summary, read func(context.Context, string) (*point.RecoveryPoint, error)) ([]*point.RecoveryPoint, error) {
	points := make([]*point.RecoveryPoint, 0, len(batch))
	var names []string
	for _, s := range batch {
		if s.whole {
			points = append(points, owned(&s.RecoveryPoint))
		} else {
			names = append(names, pointsPrefix+string(s.ID))
		}
	}
	err := v.eachOf(ctx, names, read, func(name string, p *point.RecoveryPoint, err error) error {
		if err != nil {
			return unreadable(name, err)
		}
		points = append(points, p)
		return nil
	})
	slices.SortFunc(points, point.ByTime)
	return points, err
}

func unreadable(name string, err error) error {
	return fmt.Errorf("read point %s: %w", strings.TrimPrefix(name, pointsPrefix), err)
}

// Point returns the point named by ref: an ID, an unambiguous prefix of one, or NAME@latest. It returns ErrNoPoint or
// ErrAmbiguous.
func (v *Vault) Point(ctx context.Context, ref string) (*point.RecoveryPoint, error) {
	if vm, ok := strings.CutSuffix(ref, "@latest"); ok {
		return v.latest(ctx, vm)
	}
	if ref == "" || len(ref) > 32 || strings.Trim(ref, "0123456789abcdef") != "" {
		return nil, fmt.Errorf("%w: %q is neither the beginning of an ID nor NAME@latest", ErrNoPoint, ref)
	}
	if isID(ref) {
		return v.pointOf(ctx, point.ID(ref))
	}
	names, err := v.pointNames(ctx, ref)
	if err != nil {
		return nil, err
	}
	names = slices.DeleteFunc(names, func(n string) bool { return !isID(strings.TrimPrefix(n, pointsPrefix)) })
	switch len(names) {
	case 0:
		return nil, fmt.Errorf("%w: none begins with %q", ErrNoPoint, ref)
	case 1:
		p, err := v.knownPoint(ctx, names[0])
		if err != nil {
			return nil, unreadable(ref, err)
		}
		return p, nil
	}
	for i, n := range names {
		names[i] = strings.TrimPrefix(n, pointsPrefix)[:12]
	}
	return nil, fmt.Errorf("%w: %q may be %s", ErrAmbiguous, ref, strings.Join(names, ", "))
}

// pointOf returns the point with an ID, without looking at any other.
func (v *Vault) pointOf(ctx context.Context, id point.ID) (*point.RecoveryPoint, error) {
	if err := v.requirePoint(ctx, id); err != nil {
		return nil, err
	}
	p, err := v.knownPoint(ctx, pointsPrefix+string(id))
	if err != nil {
		return nil, unreadable(string(id), err)
	}
	return p, nil
}

// latest returns the newest point of a machine, snapshots of its disks left out.
func (v *Vault) latest(ctx context.Context, vm string) (*point.RecoveryPoint, error) {
	for try := 0; ; try++ {
		points, err := v.Summaries(ctx, point.Newest(func(s *point.RecoveryPoint) []string {
			if s.VM == vm && !s.IsSnapshot() {
				return []string{vm}
			}
			return nil
		}))
		if err != nil {
			return nil, err
		}
		if len(points) == 0 {
			return nil, fmt.Errorf("%w: %q has none", ErrNoPoint, vm)
		}
		p, err := v.pointOf(ctx, points[len(points)-1].ID)
		if !errors.Is(err, ErrNoPoint) || try == maxStale { // deleted meanwhile: then another is the latest
			return p, err
		}
	}
}

// DeletePoint removes a point and its notes. The space that only it used is freed by the next CollectGarbage. After an error from deleting notes the
// point is gone all the same, and the next CollectGarbage deletes them. It returns ErrHeld, and the point stays, while somebody holds it.
func (v *Vault) DeletePoint(ctx context.Context, id point.ID) error {
	if err := v.requirePoint(ctx, id); err != nil {
		return err
	}
	if err := v.deleteManifest(ctx, id); err != nil {
		return fmt.Errorf("delete point %s: %w", id, err)
	}
	if err := v.deleteNotes(ctx, id); err != nil {
		return fmt.Errorf("point %s is deleted: %w", id, err)
	}
	return nil
}
