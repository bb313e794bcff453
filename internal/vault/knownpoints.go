package vault

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/holdfast-vm/holdfast/internal/blob"
	"github.com/holdfast-vm/holdfast/internal/point"
)

// knownPoints keeps manifests that were read, in memory and nowhere else: they never change, and decoding one takes longer than reading it.
// Most of a manifest is a definition that it shares with the points beside it.
type knownPoints struct {
	mu     sync.Mutex
	points map[string]*point.RecoveryPoint // by object name
	texts  map[string]string
	cost   int // bytes, about
}

// maxKnown is how many bytes of manifests are kept.
const maxKnown = 64 << 20

func (k *knownPoints) get(name string) *point.RecoveryPoint {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.points[name]
}

// put keeps p, which the caller must not change. When there is no room all others are dropped, those that were deleted among them.
func (k *knownPoints) put(name string, p *point.RecoveryPoint) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.points == nil || k.cost > maxKnown {
		k.points, k.texts, k.cost = make(map[string]*point.RecoveryPoint), make(map[string]string), 0
	}
	for _, text := range []*string{&p.Definition.InactiveXML, &p.Definition.LiveXML, &p.Definition.MigratableXML, &p.Definition.CPU} {
		if same, ok := k.texts[*text]; ok {
			*text = same
			continue
		}
		k.texts[*text] = *text
		k.cost += len(*text)
	}
	k.cost += 2048 + 512*(len(p.Disks)+len(p.Files)+len(p.Definition.Networks))
	k.points[name] = p
}

// knownPoint reads a point of which it is known that its object exists, from memory if it was read before. The point is the caller's.
func (v *Vault) knownPoint(ctx context.Context, name string) (*point.RecoveryPoint, error) {
	p := v.known.get(name)
	if p == nil {
		var err error
		if p, err = v.readPoint(ctx, name); err != nil {
			return nil, err
		}
		v.known.put(name, p)
	}
	own := *p
	own.Tags, own.Disks, own.Files, own.Warnings = maps.Clone(p.Tags), slices.Clone(p.Disks), slices.Clone(p.Files), slices.Clone(p.Warnings)
	return &own, nil
}

// pointHeading is what finding the latest point of a machine takes of a manifest.
type pointHeading struct {
	vm   string
	kind point.Kind
	time time.Time
}

// latest returns the newest point of a machine, snapshots of its disks left out.
func (v *Vault) latest(ctx context.Context, vm string) (*point.RecoveryPoint, error) {
	var best string
	var at time.Time
	err := eachManifest(ctx, v, v.heading, func(name string, h pointHeading, err error) error {
		if err != nil {
			return fmt.Errorf("read point %s: %w", strings.TrimPrefix(name, pointsPrefix), err)
		}
		if h.vm == vm && h.kind != point.Snapshot && (best == "" || !h.time.Before(at)) {
			best, at = name, h.time
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if best == "" {
		return nil, fmt.Errorf("%w: %q has none", ErrNoPoint, vm)
	}
	return v.knownPoint(ctx, best)
}

// heading reads a manifest no further than it must.
func (v *Vault) heading(ctx context.Context, name string) (pointHeading, error) {
	if p := v.known.get(name); p != nil {
		return pointHeading{p.VM, p.Kind, p.Time}, nil
	}
	raw, err := blob.Get(ctx, v.store, name)
	if err != nil {
		return pointHeading{}, err
	}
	plain, err := v.unsealPoint(name, raw)
	if err != nil {
		return pointHeading{}, err
	}
	h, err := parseHeading(plain)
	if err != nil {
		return h, fmt.Errorf("%w: %s: %v", ErrCorrupt, name, err)
	}
	return h, nil
}

// parseHeading reads JSON up to the last of the fields that it looks for: the kind, which most points lack, is written before the others.
func parseHeading(text []byte) (h pointHeading, err error) {
	d := json.NewDecoder(bytes.NewReader(text))
	if open, err := d.Token(); err != nil || open != json.Delim('{') {
		return h, fmt.Errorf("it is no object: %v", err)
	}
	for found := 0; found < 2 && d.More(); {
		key, err := d.Token()
		if err != nil {
			return h, err
		}
		var to any = &json.RawMessage{}
		switch key {
		case "kind":
			to = &h.kind
		case "vm":
			to = &h.vm
			found++
		case "time":
			to = &h.time
			found++
		}
		if err := d.Decode(to); err != nil {
			return h, err
		}
	}
	return h, nil
}
