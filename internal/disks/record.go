package disks

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-vm/holdfast/internal/durable"
	"github.com/holdfast-vm/holdfast/internal/hypervisor/pause"
)

const (
	recordDir     = ".holdfast"
	recordSuffix  = ".json"
	recordVersion = 1
)

// Disk is the record of a managed disk.
type Disk struct {
	Version int               `json:"version"`
	ID      string            `json:"id"` // 32 hexadecimal digits: another disk of the same name has another
	Name    string            `json:"name"`
	File    string            `json:"file"`   // name of the image in the pool
	Format  string            `json:"format"` // raw or qcow2
	Size    int64             `json:"size"`   // bytes
	Created time.Time         `json:"created"`
	Tags    map[string]string `json:"tags,omitempty"`
	Source  Source            `json:"source"`

	Attached  *Attachment `json:"attached,omitempty"`
	Hydration *Hydration  `json:"hydration,omitempty"` // nil for a disk that depends on nothing
	Doing     *Doing      `json:"doing,omitempty"`     // nil while nothing is being done
}

// Source says where the content of a disk came from.
type Source struct {
	Kind  string `json:"kind"` // "empty", "snapshot", "point" or "file"
	Vault string `json:"vault,omitempty"`
	Point string `json:"point,omitempty"` // ID of the snapshot or point
	Name  string `json:"name,omitempty"`  // of the snapshot
	VM    string `json:"vm,omitempty"`
	Disk  string `json:"disk,omitempty"` // in the point
	File  string `json:"file,omitempty"`
}

// String says it for people.
func (s Source) String() string {
	short := s.Point[:min(len(s.Point), 8)]
	switch s.Kind {
	case "snapshot":
		return fmt.Sprintf("snapshot %s (%s), disk %s", s.Name, short, s.Disk)
	case "point":
		return fmt.Sprintf("point %s of %s, disk %s", short, s.VM, s.Disk)
	case "file":
		return "file " + s.File
	}
	return s.Kind
}

// Attachment says which machine has a disk.
type Attachment struct {
	Host     string    `json:"host"` // URI
	VM       string    `json:"vm"`
	UUID     string    `json:"uuid,omitempty"`
	As       string    `json:"as"` // name of the disk in the machine
	ReadOnly bool      `json:"read_only,omitempty"`
	Since    time.Time `json:"since"`
	// Held is of a command that has stopped the machine for the move to the image, and has not let
	// it go on so far.
	Held *pause.Mark `json:"held,omitempty"`
}

// Hydration says how far the content of a disk has been brought from a vault to the pool. Until it
// is done, File is an overlay over an export, and Final and the disk's Format are those of the
// image to be.
type Hydration struct {
	Export string `json:"export"` // name on the socket
	Socket string `json:"socket"`
	Final  string `json:"final"` // name of the image to be
	Done   int64  `json:"done"`  // bytes
	Total  int64  `json:"total"` // bytes

	Partial *Partial `json:"partial,omitempty"` // our own copy; nil while there is none
	Waits   string   `json:"waits,omitempty"`   // why it is not copied further; "" while it is
}

// Percent returns how much is done, 0 to 100.
func (h *Hydration) Percent() int {
	if h.Total <= 0 {
		return 100
	}
	return int(min(h.Done, h.Total) * 100 / h.Total)
}

// Doing is what is being done to a disk, or was when its process ended.
type Doing struct {
	What  string      `json:"what"` // "create", "attach", "detach", "resize", "delete"
	Since time.Time   `json:"since"`
	To    *Attachment `json:"to,omitempty"`   // of attach
	Size  int64       `json:"size,omitempty"` // of resize, bytes
}

func (p *Pool) recordPath(name string) string {
	return filepath.Join(p.dir, recordDir, name+recordSuffix)
}

// Path returns the absolute path of a disk's image.
func (p *Pool) Path(d *Disk) string { return filepath.Join(p.dir, d.File) }

// Disk returns the record of a disk.
func (p *Pool) Disk(name string) (*Disk, error) {
	if err := CheckName(name); err != nil {
		return nil, err
	}
	data, err := durable.ReadFile(p.fs, p.recordPath(name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %q in pool %s", ErrNoDisk, name, p.dir)
	}
	if err != nil {
		return nil, fmt.Errorf("read the record of disk %s: %w", name, err)
	}
	d, err := parseRecord(data)
	if err == nil && d.Name != name {
		err = fmt.Errorf("it is that of %q", d.Name)
	}
	if err != nil {
		return nil, fmt.Errorf("read the record of disk %s (%s): %w", name, p.recordPath(name), err)
	}
	return d, nil
}

// durableDisk is Disk for those who build on what the record says. The process that wrote it may
// have been killed before it had made it durable.
func (p *Pool) durableDisk(name string) (*Disk, error) {
	d, err := p.Disk(name)
	if err != nil {
		return nil, err
	}
	if err := p.fs.SyncDir(filepath.Join(p.dir, recordDir)); err != nil {
		return nil, fmt.Errorf("make the record of disk %s durable: %w", name, err)
	}
	return d, nil
}

// parseRecord reads a record that anybody may have written: nothing in it leads out of the pool.
func parseRecord(data []byte) (*Disk, error) {
	var d Disk
	if err := json.Unmarshal(data, &d); err != nil {
		return nil, err
	}
	if d.Version != recordVersion {
		return nil, fmt.Errorf("its version is %d, this program knows %d", d.Version, recordVersion)
	}
	files := []string{d.File}
	if d.Hydration != nil {
		files = append(files, d.Hydration.Final)
	}
	for _, f := range files {
		if f == "" || f != filepath.Base(f) || strings.HasPrefix(f, ".") {
			return nil, fmt.Errorf("%q is no file of the pool", f)
		}
	}
	if d.Hydration != nil && d.Hydration.Partial != nil {
		if err := d.Hydration.Partial.check(d.Hydration.Final); err != nil {
			return nil, err
		}
	}
	if d.Size < 0 || d.ID == "" || CheckName(d.Name) != nil || d.Format != "raw" && d.Format != "qcow2" {
		return nil, errors.New("its fields contradict each other")
	}
	return &d, nil
}

// save replaces the record of a disk.
func (p *Pool) save(d *Disk) error {
	data, err := encode(d)
	if err == nil {
		err = durable.WriteReplace(p.fs, p.recordPath(d.Name), data)
	}
	if err != nil {
		return fmt.Errorf("write the record of disk %s: %w", d.Name, err)
	}
	return nil
}

// saveNew writes the first record of a disk, or returns ErrExists.
func (p *Pool) saveNew(d *Disk) error {
	data, err := encode(d)
	if err == nil {
		err = durable.WriteNew(p.fs, p.recordPath(d.Name), data)
	}
	if errors.Is(err, fs.ErrExist) {
		return ErrExists
	}
	if err != nil {
		return fmt.Errorf("write its record: %w", err)
	}
	return nil
}

func encode(d *Disk) ([]byte, error) {
	d.Version = recordVersion
	data, err := json.MarshalIndent(d, "", "  ")
	return append(data, '\n'), err
}

// Disks returns the records of all disks by name. Those that cannot be read are joined in the
// error beside them.
func (p *Pool) Disks() ([]*Disk, error) {
	entries, err := p.fs.ReadDir(filepath.Join(p.dir, recordDir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list the disks of pool %s: %w", p.dir, err)
	}
	var out []*Disk
	var bad []error
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name, recordSuffix)
		if !ok || e.Dir || CheckName(name) != nil {
			continue
		}
		d, err := p.Disk(name)
		switch {
		case errors.Is(err, ErrNoDisk): // deleted since it was listed
		case err != nil:
			bad = append(bad, err)
		default:
			out = append(out, d)
		}
	}
	slices.SortFunc(out, func(a, b *Disk) int { return strings.Compare(a.Name, b.Name) })
	return out, errors.Join(bad...)
}
