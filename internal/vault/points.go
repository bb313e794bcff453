package vault

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sync/errgroup"

	"github.com/holdfast-vm/holdfast/internal/blob"
	"github.com/holdfast-vm/holdfast/internal/point"
)

// The format of a manifest, docs/formats/point.md: magic, point ID (16 bytes), nonce (12), sealed zstd-compressed JSON.
const (
	pointsPrefix = "points/"
	pointMagic   = "HFPOINT1"
	pointHead    = 8 + 16 + 12
	maxManifest  = 64 << 20 // bytes of JSON; a domain definition has a few tens of KiB
)

// Manifests are small and rare: one shared encoder and decoder each serve all goroutines, the decoder one per processor at a time.
var (
	manifestEncoder, _ = zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
	manifestDecoder, _ = zstd.NewReader(nil, zstd.WithDecoderConcurrency(0), zstd.WithDecoderMaxMemory(maxManifest))
)

func (v *Vault) pointAEAD(id []byte) (cipher.AEAD, error) {
	key, err := hkdf.Key(sha256.New, v.sec.points[:], id, "holdfast point v1", 32)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

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
	aead, err := v.pointAEAD(id)
	if err != nil {
		return nil, err
	}
	head := append([]byte(pointMagic), id...)
	nonce := make([]byte, 12)
	rand.Read(nonce)
	head = append(head, nonce...)
	return aead.Seal(head, nonce, manifestEncoder.EncodeAll(plain, nil), head), nil
}

func (v *Vault) openPoint(name string, raw []byte) (*point.RecoveryPoint, error) {
	plain, err := v.unsealPoint(name, raw)
	if err != nil {
		return nil, err
	}
	var p point.RecoveryPoint
	if err := json.Unmarshal(plain, &p); err != nil {
		return nil, fmt.Errorf("%w: %s: %v", ErrCorrupt, name, err)
	}
	return &p, nil
}

// unsealPoint returns the JSON of the point in the object name.
func (v *Vault) unsealPoint(name string, raw []byte) ([]byte, error) {
	id, err := hex.DecodeString(strings.TrimPrefix(name, pointsPrefix))
	if err != nil || len(raw) < pointHead || string(raw[:8]) != pointMagic || string(raw[8:24]) != string(id) {
		return nil, fmt.Errorf("%w: %s is not a point of this format", ErrCorrupt, name)
	}
	aead, err := v.pointAEAD(id)
	if err != nil {
		return nil, err
	}
	packed, err := aead.Open(nil, raw[24:pointHead], raw[pointHead:], raw[:pointHead])
	if err != nil {
		return nil, fmt.Errorf("%w: %s does not authenticate", ErrCorrupt, name)
	}
	plain, err := manifestDecoder.DecodeAll(packed, nil)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %v", ErrCorrupt, name, err)
	}
	return plain, nil
}

// readAhead is how many manifests are read at once: most of the time of a small object is waiting for it.
const readAhead = 16

// eachPoint calls visit with every manifest's name and point, or with the error that keeps it from being read, in the order of names.
func (v *Vault) eachPoint(ctx context.Context, visit func(name string, p *point.RecoveryPoint, err error) error) error {
	return eachManifest(ctx, v, v.readPoint, visit)
}

// eachManifest calls visit with what read makes of every manifest, in the order of names.
func eachManifest[T any](ctx context.Context, v *Vault, read func(ctx context.Context, name string) (T, error), visit func(name string, m T, err error) error) error {
	var names []string
	for info, err := range v.store.List(ctx, pointsPrefix) {
		if err != nil {
			return fmt.Errorf("list points: %w", err)
		}
		names = append(names, info.Name)
	}
	for batch := range slices.Chunk(names, 16*readAhead) {
		got, errs := make([]T, len(batch)), make([]error, len(batch))
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

// Points returns all points, oldest first. A manifest that can not be read is an error: `vault check` says what to do.
func (v *Vault) Points(ctx context.Context) ([]*point.RecoveryPoint, error) {
	var points []*point.RecoveryPoint
	err := eachManifest(ctx, v, v.knownPoint, func(name string, p *point.RecoveryPoint, err error) error {
		if err != nil {
			return fmt.Errorf("read point %s: %w", strings.TrimPrefix(name, pointsPrefix), err)
		}
		points = append(points, p)
		return nil
	})
	slices.SortStableFunc(points, func(a, b *point.RecoveryPoint) int { return a.Time.Compare(b.Time) })
	return points, err
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
	var names []string
	for info, err := range v.store.List(ctx, pointsPrefix+ref) {
		if err != nil {
			return nil, fmt.Errorf("list points: %w", err)
		}
		if isID(strings.TrimPrefix(info.Name, pointsPrefix)) {
			names = append(names, info.Name)
		}
	}
	switch len(names) {
	case 0:
		return nil, fmt.Errorf("%w: none begins with %q", ErrNoPoint, ref)
	case 1:
		p, err := v.knownPoint(ctx, names[0])
		if err != nil {
			return nil, fmt.Errorf("read point %s: %w", ref, err)
		}
		return p, nil
	}
	for i, n := range names {
		names[i] = strings.TrimPrefix(n, pointsPrefix)[:12]
	}
	return nil, fmt.Errorf("%w: %q may be %s", ErrAmbiguous, ref, strings.Join(names, ", "))
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
