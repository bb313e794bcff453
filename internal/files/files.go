// Package files lists, finds and fetches files inside a recovery point, without mounting anything
// and without root.
//
// A [Point] is opened from its disks. A [Place] is a file in it: `vda1:/path` is in one volume,
// `/path` is what the machine itself would find there, with its file systems mounted as its
// /etc/fstab says. [Get] writes files below a directory and nowhere else, whatever names the guest
// has made up: every step is a single name in a directory that is held open, and no symbolic link
// is followed. A file appears complete or not at all. What cannot be read is reported, and the
// rest is done.
//
// Errors carry what they are: filesystem.ErrCorrupt and what reading the disks returned for damage,
// filesystem.ErrUnsupported, fs.ErrNotExist, [ErrExists]. A Point is safe for concurrent use.
package files

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/holdfast-vm/holdfast/internal/filesystem"
	"github.com/holdfast-vm/holdfast/internal/filesystem/lvm"
	"github.com/holdfast-vm/holdfast/internal/filesystem/volume"
)

var (
	// ErrExists reports that something stands where a file was to be written.
	ErrExists = errors.New("it exists already")
	// ErrNoRoom reports a file that cannot fit where it is to go; nothing of it was written.
	ErrNoRoom = errors.New("it does not fit there")
	// ErrName reports a place that cannot be understood.
	ErrName = errors.New("neither VOLUME:/path nor /path")
	// ErrNoVolume reports that no volume has a name.
	ErrNoVolume = errors.New("there is no such volume")
	// ErrNoFile reports a path that leads to nothing in the point. It is [fs.ErrNotExist], too.
	ErrNoFile error = noFile{}
)

// Point is the disks of a recovery point, looked at as files.
type Point struct {
	volumes *volume.Volumes
	size    int64 // bytes of all disks
}

// Open looks at disks, whose readers must be safe for concurrent use and stay open. Ctx ends
// whatever is done with the point.
func Open(ctx context.Context, disks []volume.Disk) *Point {
	p := Of(volume.Scan(ctx, disks))
	p.size = 0
	for _, d := range disks {
		p.size = plus(p.size, d.Size)
	}
	return p
}

// Of returns the point whose volumes are known already.
func Of(v *volume.Volumes) *Point {
	p := &Point{volumes: v}
	for _, vol := range v.List {
		p.size = plus(p.size, vol.Size)
	}
	return p
}

// Volumes returns what was found.
func (p *Point) Volumes() *volume.Volumes { return p.volumes }

// Place is a file in a point.
type Place struct {
	Tree   *volume.Tree
	Node   volume.Node
	Volume string // the name it was asked for in; "" is the machine's own tree
	Path   string // absolute, clean
}

type noFile struct{}

func (noFile) Error() string        { return "no such file or directory in the point" }
func (noFile) Is(target error) bool { return target == fs.ErrNotExist }

// String returns the place as it is typed.
func (p Place) String() string { return Join(p.Volume, p.Path) }

// Join returns how a path of a volume, or with "" of the machine's tree, is typed.
func Join(vol, path string) string {
	if vol == "" {
		return path
	}
	return vol + ":" + path
}

// Locate finds the file that name means. Symbolic links on its way are followed, the last one too
// if follow says so.
func (p *Point) Locate(name string, follow bool) (Place, error) {
	vol, path, err := p.split(name)
	if err != nil {
		return Place{}, err
	}
	t, err := p.Tree(vol)
	if err != nil {
		return Place{}, fmt.Errorf("find %s: %w", name, err)
	}
	n, err := t.Resolve(path, follow)
	if err != nil {
		var perr *fs.PathError
		if errors.As(err, &perr) {
			err = perr.Err
		}
		if errors.Is(err, fs.ErrNotExist) {
			err = ErrNoFile
		}
		return Place{}, fmt.Errorf("find %s: %w", name, err)
	}
	return Place{Tree: t, Node: n, Volume: vol, Path: clean(path)}, nil
}

// Tree returns the tree of a volume, or with "" the machine's own.
func (p *Point) Tree(vol string) (*volume.Tree, error) {
	if vol == "" {
		g, err := p.volumes.Guest()
		if err != nil {
			return nil, err
		}
		return g.Tree, nil
	}
	v := p.volumes.Find(vol)
	if v == nil {
		return nil, fmt.Errorf("%q: %w", vol, ErrNoVolume)
	}
	return v.Tree()
}

// split takes a name apart.
func (p *Point) split(name string) (vol, path string, err error) {
	if strings.HasPrefix(name, "/") {
		return "", name, nil
	}
	if p.volumes.Find(name) != nil {
		return name, "/", nil
	}
	vol, path, ok := strings.Cut(name, ":")
	if !ok {
		return "", "", fmt.Errorf("%q: %w", name, ErrName)
	}
	if strings.EqualFold(vol, "C") && p.volumes.Find(vol) == nil {
		vol, path = "", strings.ReplaceAll(path, `\`, "/")
	}
	return vol, "/" + strings.TrimPrefix(path, "/"), nil
}

// clean is path.Clean without its idea of "..", which symbolic links can make wrong.
func clean(path string) string {
	var parts []string
	for part := range strings.SplitSeq(path, "/") {
		if part != "" && part != "." {
			parts = append(parts, part)
		}
	}
	return "/" + strings.Join(parts, "/")
}

// VolumeInfo is a volume as `point ls` shows it. Sizes are in bytes.
type VolumeInfo struct {
	Name      string   `json:"name"`
	Disks     []string `json:"disks"`
	Offset    int64    `json:"offset"` // on its disk; 0 of a logical volume
	Size      int64    `json:"size"`
	Used      int64    `json:"used,omitempty"`
	Type      string   `json:"type,omitempty"`
	Label     string   `json:"label,omitempty"`
	UUID      string   `json:"uuid,omitempty"`
	PartLabel string   `json:"part_label,omitempty"`
	PartUUID  string   `json:"part_uuid,omitempty"`
	Mounted   string   `json:"mounted,omitempty"` // where the machine has it
	State     State    `json:"state"`
	Reason    string   `json:"reason,omitempty"` // why it is not readable
	Notes     []string `json:"notes,omitempty"`
}

// State says whether a volume's files can be read.
type State string

// The states of volumes.
const (
	Readable    State = "readable"
	Unsupported State = "unsupported"
	Damaged     State = "damaged"
	Missing     State = "missing"  // a part of it is on no disk of the point
	NoFiles     State = "no files" // swap, a part of something else, or nothing that is known
)

// Describe opens every volume and says what it is.
func (p *Point) Describe() []VolumeInfo {
	mounted := map[*volume.Volume]string{}
	if g, err := p.volumes.Guest(); err == nil {
		for _, m := range g.Mounts {
			if m.Volume != nil {
				mounted[m.Volume] = m.Path
			}
		}
	}
	var out []VolumeInfo
	for _, v := range p.volumes.List {
		i := VolumeInfo{Name: v.Name, Disks: append([]string{}, v.Disks...), Offset: v.Offset, Size: v.Size,
			Type: v.Type, Label: v.Label, UUID: v.UUID,
			PartLabel: v.PartLabel, PartUUID: v.PartUUID, Mounted: mounted[v], State: Readable}
		info, err := v.Info()
		if err != nil {
			i.State, i.Reason = stateOf(err), reasonOf(v.Name, err)
		} else {
			i.Type, i.Label, i.UUID, i.Used, i.Notes = info.Type, info.Label, info.UUID, info.Used, info.Notes
		}
		out = append(out, i)
	}
	return out
}

// reasonOf returns an error without what the state and the name of the volume say already.
func reasonOf(name string, err error) string {
	text := strings.TrimPrefix(err.Error(), name+": ")
	for _, said := range []error{volume.ErrNoFiles, filesystem.ErrUnsupported, filesystem.ErrCorrupt, lvm.ErrMissing} {
		text = strings.TrimPrefix(text, said.Error()+": ")
	}
	return text
}

func stateOf(err error) State {
	switch {
	case errors.Is(err, volume.ErrNoFiles):
		return NoFiles
	case errors.Is(err, lvm.ErrMissing):
		return Missing
	case errors.Is(err, filesystem.ErrUnsupported):
		return Unsupported
	}
	return Damaged
}
