package remember

import (
	"os"
	"path/filepath"

	"github.com/holdfast-vm/holdfast/internal/vault/sweep"
)

// looks is what an observer saw of a vault when garbage was collected.
type looks struct {
	m    Memory
	path string
}

// Looks returns where a collection of garbage keeps what it saw of the vault with this ID, for the
// next one; nil where nothing is remembered. It returns no errors: what is lost costs time.
func (m Memory) Looks(id string) sweep.Memory {
	if m.dir == "" || !isHex(id, 32) {
		return nil
	}
	return looks{m, filepath.Join(m.dir, id+".looks")}
}

// Load implements [sweep.Memory].
func (l looks) Load() ([]byte, error) {
	raw, err := os.ReadFile(l.path)
	if err != nil {
		return nil, nil //nolint:nilerr // it looks as if nobody had looked
	}
	return raw, nil
}

// Store implements [sweep.Memory].
func (l looks) Store(raw []byte) error {
	_ = l.m.write(l.path, raw)
	return nil
}
