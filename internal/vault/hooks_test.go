package vault_test

import (
	"bytes"
	"context"
	"iter"
	"strings"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/blob"
	"github.com/holdfast-vm/holdfast/internal/blob/mem"
	"github.com/holdfast-vm/holdfast/internal/vault"
)

// hooked calls before when an object whose name begins with prefix is about to be stored.
type hooked struct {
	*mem.Store
	prefix string
	before func()
}

func (h *hooked) Create(ctx context.Context, name string) (blob.Writer, error) {
	if strings.HasPrefix(name, h.prefix) {
		h.before()
	}
	return h.Store.Create(ctx, name)
}

// listed calls before when objects whose name begins with prefix are about to be listed.
type listed struct {
	*mem.Store
	prefix string
	before func()
}

func (l *listed) List(ctx context.Context, prefix, after string) iter.Seq2[blob.Info, error] {
	if prefix == l.prefix {
		l.before()
	}
	return l.Store.List(ctx, prefix, after)
}

// A vault that was opened long ago reads points that others committed since, and points whose packs
// were rewritten since.
func TestReadersSeeWhatOthersDid(t *testing.T) {
	ctx := context.Background()
	store := mem.New()
	key := newVault(t, store)
	reader, writer := openVault(t, store, key), openVault(t, store, key)
	d := randomDisk(5, 20)
	first := backUpWhole(t, writer, d)
	requireContent(t, reader, first, d.data)
	half := &disk{data: bytes.Clone(d.data[:5*testChunk])}
	second := backUpWhole(t, writer, half)
	deletePoint(t, writer, first.ID)
	if _, err := writer.CollectGarbage(ctx, vault.GCOptions{Full: true}); err != nil {
		t.Fatal(err)
	}
	requireContent(t, reader, second, half.data)
}

// A point that is committed while a collection, or a check, is at work is no damage.
func TestPointsCommittedMeanwhileAreNoDamage(t *testing.T) {
	ctx := context.Background()
	store := mem.New()
	key := newVault(t, store)
	writer := openVault(t, store, key)
	backUpWhole(t, writer, randomDisk(8, 5))
	seed := uint64(9)
	hook := &listed{Store: store, prefix: "pack/", before: func() {
		seed++
		backUpWhole(t, openVault(t, store, key), randomDisk(seed, 5))
	}}
	v := openVault(t, hook, key)
	if _, err := v.CollectGarbage(ctx, vault.GCOptions{Full: true}); err != nil {
		t.Fatal(err)
	}
	if r, err := v.Check(ctx, vault.CheckOptions{}); err != nil || len(r.Damage) > 0 {
		t.Fatalf("%+v %v", r.Damage, err)
	}
}
