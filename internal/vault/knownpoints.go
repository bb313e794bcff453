package vault

import (
	"context"
	"maps"
	"slices"
	"sync"

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
	return owned(p), nil
}

// owned returns a copy of p that its owner may change.
func owned(p *point.RecoveryPoint) *point.RecoveryPoint {
	own := *p
	own.Tags, own.Disks, own.Files, own.Warnings = maps.Clone(p.Tags), slices.Clone(p.Disks), slices.Clone(p.Files), slices.Clone(p.Warnings)
	return &own
}
