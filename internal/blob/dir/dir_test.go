package dir_test

import (
	"testing"

	"github.com/holdfast-vm/holdfast/internal/blob"
	"github.com/holdfast-vm/holdfast/internal/blob/blobtest"
	"github.com/holdfast-vm/holdfast/internal/blob/dir"
	"github.com/holdfast-vm/holdfast/internal/durable"
)

func TestContract(t *testing.T) {
	blobtest.Run(t, func(t *testing.T) blob.Store { return create(t) })
}

func TestContractInMemory(t *testing.T) {
	blobtest.Run(t, func(t *testing.T) blob.Store { return onCrashable(t, durable.NewCrashable(durable.Never)) })
}

// Without hard links names are given by renaming.
func TestContractWithoutLinks(t *testing.T) {
	blobtest.Run(t, func(t *testing.T) blob.Store {
		fsys := durable.NewCrashable(durable.Never)
		fsys.DenyLinks()
		return onCrashable(t, fsys)
	})
}

func create(t *testing.T) *dir.Store {
	t.Helper()
	s, err := dir.Create(t.TempDir() + "/parent/store")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

const root = "/srv/store"

func onCrashable(t *testing.T, fsys *durable.Crashable) *dir.Store {
	t.Helper()
	if err := durable.MkdirAll(fsys, root); err != nil {
		t.Fatal(err)
	}
	return dir.On(fsys, root)
}
