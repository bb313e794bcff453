package diskimage

import (
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"

	"github.com/holdfast-vm/holdfast/internal/directio"
	"github.com/holdfast-vm/holdfast/internal/extent"
	"github.com/holdfast-vm/holdfast/internal/qcow2"
)

// tempName returns a name beside path that nobody else has.
func tempName(path string) string {
	name := filepath.Base(path)
	return filepath.Join(filepath.Dir(path), fmt.Sprintf(".%.200s.%s.hf", name, rand.Text()[:8]))
}

type qcow2Contents struct{ *qcow2.Writer }

func (c qcow2Contents) finish() error { return c.Close() }
func (c qcow2Contents) drop() error   { return c.Writer.Abort() }
func (c qcow2Contents) sync() error   { return c.Sync() }
func (c qcow2Contents) leave() error  { return c.Leave() }

// rawContents is a sparse file of the disk's size.
type rawContents struct {
	f    *directio.File
	size int64
}

func newRawContents(path string, size int64, data extent.Set) (contents, error) {
	f, err := directio.Create(path)
	if err != nil {
		return nil, err
	}
	c := &rawContents{f, size}
	if err = f.Truncate(size); err == nil {
		err = f.Reserve(data)
	}
	if err != nil {
		c.drop()
		return nil, err
	}
	return c, nil
}

func (c *rawContents) WriteAt(p []byte, off int64) (int, error) {
	if err := within(p, off, c.size); err != nil {
		return 0, err
	}
	return c.f.WriteAt(p, off)
}

// within reports a write that leaves the disk.
func within(p []byte, off, size int64) error {
	if off < 0 || off > size-int64(len(p)) {
		return fmt.Errorf("%d bytes at %d leave the disk of %d bytes", len(p), off, size)
	}
	return nil
}

func (c *rawContents) finish() error {
	if err := c.f.Sync(); err != nil {
		c.f.Close()
		return err
	}
	return c.f.Close()
}

func (c *rawContents) sync() error  { return c.f.Sync() }
func (c *rawContents) leave() error { return c.f.Close() }

func (c *rawContents) drop() error {
	c.f.Close()
	return os.Remove(c.f.Name())
}
