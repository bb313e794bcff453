package pack

import (
	"context"
	"fmt"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/blob"
	"github.com/holdfast-vm/holdfast/internal/blob/dir"
	"github.com/holdfast-vm/holdfast/internal/vault/chunk"
)

// nowhere is a store that takes everything and keeps nothing.
type nowhere struct{ blob.Store }

func (nowhere) Create(context.Context, string) (blob.Writer, error) { return nowhere{}, nil }
func (nowhere) Write(p []byte) (int, error)                         { return len(p), nil }
func (nowhere) Commit(context.Context) error                        { return nil }
func (nowhere) Abort()                                              {}
func (nowhere) Delete(context.Context, string) error                { return nil }

// BenchmarkPack fills packs of chunks of 64 KiB and commits them.
func BenchmarkPack(b *testing.B) {
	onDisk, err := dir.Create(b.TempDir() + "/store")
	if err != nil {
		b.Fatal(err)
	}

	for name, store := range map[string]blob.Store{"nowhere": nowhere{}, "dir": onDisk} {
		for _, rows := range []int{1, 16, 1000} {
			b.Run(fmt.Sprintf("%s/%d", name, rows), func(b *testing.B) { fillPacks(b, store, rows) })
		}
	}
}

func fillPacks(b *testing.B, store blob.Store, rows int) {
	ctx := context.Background()
	p := noise(1, chunk.DefaultSize)
	b.SetBytes(int64(rows * len(p)))
	b.ReportAllocs()
	for n := 0; b.Loop(); n++ {
		w := testSecret.Begin(store, testVault, testID(n))
		for i := range rows {
			if _, err := w.Append(ctx, Data, chunk.ID{byte(i), byte(i >> 8), 1}, len(p), p, chunk.Plain); err != nil {
				b.Fatal(err)
			}
		}
		o, _, err := w.Commit(ctx)
		if err == nil {
			err = store.Delete(ctx, o.Name())
		}
		if err != nil {
			b.Fatal(err)
		}
	}
}
