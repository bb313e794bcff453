package restore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/holdfast-vm/holdfast/internal/hypervisor"
	"github.com/holdfast-vm/holdfast/internal/point"
	"github.com/holdfast-vm/holdfast/internal/vault"
)

// Host is what a restore needs of a host.
type Host interface {
	URI() string
	Machines(ctx context.Context) ([]hypervisor.Machine, error)
	// Prospect says how the machine of r will run, and refuses one that cannot be built, or not be
	// started if it is to be. Paths in r need not be there.
	Prospect(ctx context.Context, r hypervisor.Rebuild) (hypervisor.Prospect, error)
	Define(ctx context.Context, r hypervisor.Rebuild) (hypervisor.Rebuilt, error)
}

// MachineRequest says which machine to bring back, as what and where.
type MachineRequest struct {
	Point    *point.RecoveryPoint
	Name     string            // of the machine to make
	Storage  string            // directory for its disks and files; made if absent
	Format   string            // of the disks; "" means that of the source where it is raw or qcow2, else qcow2
	Networks map[string]string // old network or bridge → new
	InPlace  bool              // insist on the identity of the lost machine
	Start    bool
	Keys     Keys
	Accel    string // what runs the machine, kvm or tcg; "" means what did, if a test guest runs so
	Progress func(stage string, done, total int64)
	// Trouble tries how a machine would run; nil means [accel.Trouble].
	Trouble func(context.Context, hypervisor.Prospect) error
}

// RestoredMachine says what was made.
type RestoredMachine struct {
	hypervisor.Rebuilt
	SameIdentity bool           `json:"same_identity"` // UUID and MAC addresses are those of the lost machine
	Identity     string         `json:"identity"`      // why, in words
	Disks        []RestoredDisk `json:"disks"`
	Files        []string       `json:"files,omitempty"`
}

// Machine writes the disks and files of a point into a directory and has the host define a machine
// of them.
//
// It takes the identity of the lost machine if it is to have the lost one's name and the host has
// no machine of that name or UUID; else the machine is a new one. Errors that callers decide by:
// hypervisor.ErrNoDefinition, diskimage.ErrExists, hypervisor.ErrExists.
func Machine(ctx context.Context, v *vault.Vault, host Host, req MachineRequest) (RestoredMachine, error) {
	if err := req.check(host.URI()); err != nil {
		return RestoredMachine{}, err
	}
	var out RestoredMachine
	var err error
	if out.SameIdentity, out.Identity, err = identity(ctx, host, req); err != nil {
		return out, err
	}
	if err := req.runsHere(ctx, host); err != nil {
		return out, err
	}
	w := &workplace{dir: req.Storage, name: req.Name}
	if err := w.open(); err != nil {
		w.remove()
		return out, err
	}
	if err := w.restore(ctx, v, host, req, &out); err != nil {
		w.remove()
		return out, err
	}
	return out, nil
}

// check refuses what cannot end well before anything is written.
func (r MachineRequest) check(uri string) error {
	if err := hypervisor.Buildable(r.Point.Definition, uri); err != nil {
		return err
	}
	if r.Name == "" || strings.ContainsAny(r.Name, "/\x00\n") || strings.HasPrefix(r.Name, ".") {
		return fmt.Errorf("%q cannot be the name of a machine", r.Name)
	}
	for _, d := range r.Point.Disks {
		err := r.Keys.check(d)
		if err == nil {
			err = r.target(d, "").check()
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// target says how the image of a disk is written at path.
func (r MachineRequest) target(d point.Disk, path string) target {
	t := target{path: path, format: machineFormat(d, r.Format), secret: r.Keys.of(d).Bytes}
	if t.encrypts() && r.Format == "" {
		t.format = "qcow2"
	}
	return t
}

// identity decides whether the lost machine itself comes back, and says why.
func identity(ctx context.Context, host Host, req MachineRequest) (same bool, why string, err error) {
	machines, err := host.Machines(ctx)
	if nobodyThere(err) && req.Point.Definition.Kind == point.ForQEMU {
		err = nil // the new machine will be what listens there
	}
	if err != nil {
		return false, "", fmt.Errorf("look for machines of that name: %w", err)
	}
	for _, m := range machines {
		if m.Name == req.Name {
			return false, "", fmt.Errorf("machine %s (UUID %s) %w", m.Name, m.UUID, hypervisor.ErrExists)
		}
		if req.Point.Definition.Kind == point.ForQEMU { // a plain QEMU's socket has room for one
			return false, "", fmt.Errorf("%w: %s (UUID %s)", ErrSocketTaken, m.Name, m.UUID)
		}
	}
	taken := slices.IndexFunc(machines, func(m hypervisor.Machine) bool {
		return m.UUID != "" && strings.EqualFold(m.UUID, req.Point.MachineUUID)
	})
	switch {
	case taken >= 0 && req.InPlace:
		return false, "", fmt.Errorf("%w: %s has the identity (UUID %s) of the machine that is to come back in place",
			hypervisor.ErrExists, machines[taken].Name, machines[taken].UUID)
	case req.InPlace:
		return true, "in place of the lost machine, as asked", nil
	case req.Name != req.Point.VM:
		return false, fmt.Sprintf("a new machine with its own UUID and MAC addresses, since it is not named %s",
			req.Point.VM), nil
	case taken >= 0:
		return false, fmt.Sprintf("a new machine with its own UUID and MAC addresses, since %s has those of the lost "+
			"one", machines[taken].Name), nil
	}
	return true, "in place of the lost machine: same UUID and MAC addresses", nil
}

// restore does the work; what it makes, it notes in w.
func (w *workplace) restore(ctx context.Context, v *vault.Vault, host Host, req MachineRequest,
	out *RestoredMachine) error {
	rebuild := hypervisor.Rebuild{
		Point: req.Point, Name: req.Name, SameIdentity: out.SameIdentity, StorageDir: w.dir, Networks: req.Networks,
		Start: req.Start, Accel: req.Accel,
		Disks: map[string]string{}, Formats: map[string]string{}, Files: map[string]string{},
		KeyFiles: map[string]string{},
	}
	targets := map[string]target{}
	for _, d := range req.Point.Disks {
		to := req.target(d, "")
		to.path = w.diskPath(d.Name, to.format)
		targets[d.Name] = to
	}
	if err := w.requireFree(slices.Collect(maps.Values(targets)), req.Point.Files); err != nil {
		return err
	}
	for _, d := range req.Point.Disks {
		to := targets[d.Name]
		if err := writeDisk(ctx, v, d, to, req.Progress); err != nil {
			return fmt.Errorf("restore disk %s to %s: %w", d.Name, to.path, err)
		}
		w.made(to.path)
		rebuild.Disks[d.Name], rebuild.Formats[d.Name] = to.path, to.format
		if to.encrypts() {
			rebuild.KeyFiles[d.Name] = req.Keys.of(d).File
		}
		out.Disks = append(out.Disks, RestoredDisk{Disk: d.Name, File: to.path, Format: to.format, Size: d.Size,
			Used: d.Used, Encrypted: to.encrypts()})
	}
	for _, f := range req.Point.Files {
		path, err := w.writeFile(ctx, v, f)
		if err != nil {
			return fmt.Errorf("restore %s file %s: %w", f.Role, f.Name, err)
		}
		rebuild.Files[f.Role+"/"+f.Name] = path
		out.Files = append(out.Files, path)
	}
	var err error
	out.Rebuilt, err = host.Define(ctx, rebuild)
	if err != nil {
		return fmt.Errorf("define machine %s: %w", req.Name, err)
	}
	return nil
}

// nobodyThere reports whether no process listens on a socket.
func nobodyThere(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED)
}

func machineFormat(d point.Disk, asked string) string {
	switch {
	case asked != "":
		return asked
	case d.Source.Format == "raw":
		return "raw"
	}
	return "qcow2"
}

// workplace is the directory of a machine that is being restored.
type workplace struct {
	dir, name string
	files     []string // made here, in order
}

// open makes the directory if it is not there.
func (w *workplace) open() error {
	dir, err := filepath.Abs(w.dir)
	if err != nil {
		return err
	}
	w.dir = dir
	return w.openDirs(dir, 0o711) // the hypervisor's user must get through
}

// openDirs makes a directory and the parents it lacks, noting each.
func (w *workplace) openDirs(dir string, mode fs.FileMode) error {
	if info, err := os.Stat(dir); err == nil && info.IsDir() {
		return nil
	}
	if parent := filepath.Dir(dir); parent != dir {
		if err := w.openDirs(parent, mode); err != nil {
			return err
		}
	}
	if err := os.Mkdir(dir, mode); err != nil {
		return err
	}
	w.made(dir)
	return nil
}

func (w *workplace) made(path string) { w.files = append(w.files, path) }

// remove takes back what was made, newest first. A directory that holds anything else stays.
func (w *workplace) remove() {
	for _, f := range slices.Backward(w.files) {
		os.Remove(f)
	}
}

func (w *workplace) diskPath(disk, format string) string {
	return filepath.Join(w.dir, w.name+"-"+disk+"."+format)
}
