package restore

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-vm/holdfast/internal/durable"
	"github.com/holdfast-vm/holdfast/internal/hypervisor"
	"github.com/holdfast-vm/holdfast/internal/hypervisor/pause"
	"github.com/holdfast-vm/holdfast/internal/point"
)

var (
	// ErrNoInstant reports that no instant restore of that name is under way in the directory.
	ErrNoInstant = errors.New("no instant restore of that name is under way here")
	// ErrInstantBusy reports that another process works on the instant restore.
	ErrInstantBusy = errors.New("another holdfast works on this instant restore")
	// ErrAbandoned reports that the instant restore was given up and all of it removed.
	ErrAbandoned = errors.New("the instant restore was abandoned")
	// ErrTooLate reports that the machine does not depend on us any more, so that there is
	// nothing to abandon.
	ErrTooLate = errors.New("the machine's disks are local already")
)

// InstantStep is how far an instant restore is. The steps follow each other, except for abandoning,
// and for switching, which may lead back.
type InstantStep string

// Steps of an instant restore.
const (
	// overlays, files and the definition are made; the machine has never run
	InstantPreparing  InstantStep = "preparing"
	InstantHydrating  InstantStep = "hydrating"  // the machine may run, on overlays; its disks are copied
	InstantSwitching  InstantStep = "switching"  // the machine stands still and moves to the copies
	InstantCleaning   InstantStep = "cleaning"   // the machine depends on nothing; what we left is removed
	InstantAbandoning InstantStep = "abandoning" // everything is removed
)

const instantVersion = 1

// InstantState is all that is known of an instant restore. It lies beside the machine's disks until
// the machine does not need us any more.
type InstantState struct {
	Version      int                 `json:"version"`
	Name         string              `json:"name"` // of the machine
	Host         string              `json:"host"` // URI
	Vault        string              `json:"vault"`
	Storage      string              `json:"storage"` // absolute path
	Point        point.RecoveryPoint `json:"point"`
	UUID         string              `json:"uuid,omitempty"` // of the machine
	SameIdentity bool                `json:"same_identity"`
	Identity     string              `json:"identity"`
	Networks     map[string]string   `json:"networks,omitempty"`
	Start        bool                `json:"start"`
	Accel        string              `json:"accel,omitempty"` // kvm or tcg; "" means what ran the machine before
	Began        time.Time           `json:"began"`
	Hold         string              `json:"hold,omitempty"` // words by which the vault knows who needs the point

	Step      InstantStep       `json:"step"`
	Socket    string            `json:"socket"` // of the export
	Disks     []InstantDisk     `json:"disks"`
	Files     map[string]string `json:"files,omitempty"` // point file "role/name" → path
	Made      []string          `json:"made"`            // what may be removed when it is abandoned, in the order of making
	Warnings  []string          `json:"warnings,omitempty"`
	StartWith string            `json:"start_with,omitempty"` // command that starts the machine
	Started   bool              `json:"started"`              // the machine has been started by us
	Ended     bool              `json:"ended,omitempty"`      // it was seen to be off after that
	Held      *pause.Mark       `json:"held,omitempty"`       // of the move that stopped the machine
	Problem   string            `json:"problem,omitempty"`    // that hydration waits on
}

// InstantDisk is a disk of an instant restore.
type InstantDisk struct {
	hypervisor.HydrationTarget
	Used  int64 `json:"used"` // bytes to fetch at least
	Local bool  `json:"local"`
	Done  int64 `json:"done"` // bytes
	Total int64 `json:"total"`
}

// InstantWish is what others ask of the process that hydrates.
type InstantWish struct {
	Paused  bool  `json:"paused,omitempty"`
	Rate    int64 `json:"rate,omitempty"` // bytes a second; 0 means no limit
	Abandon bool  `json:"abandon,omitempty"`
}

const (
	stateSuffix  = ".instant.json"
	wishSuffix   = ".instant-wish.json"
	lockSuffix   = ".instant.lock"
	socketSuffix = ".instant.sock"
	maxSocket    = 107 // bytes in the path of a unix socket
)

// instantPlace is where the notes of an instant restore lie.
type instantPlace struct {
	fs        durable.FS
	dir, name string
}

func placeOf(fsys durable.FS, dir, name string) (instantPlace, error) {
	if name == "" || strings.ContainsAny(name, "/\x00\n") || strings.HasPrefix(name, ".") {
		return instantPlace{}, fmt.Errorf("%q cannot be the name of a machine", name)
	}
	dir, err := filepath.Abs(dir)
	return instantPlace{fsys, dir, name}, err
}

func (p instantPlace) path(suffix string) string { return filepath.Join(p.dir, p.name+suffix) }

// load returns the state, or ErrNoInstant.
func (p instantPlace) load() (InstantState, error) {
	var st InstantState
	data, err := durable.ReadFile(p.fs, p.path(stateSuffix))
	if errors.Is(err, fs.ErrNotExist) {
		return st, fmt.Errorf("%w: %s in %s", ErrNoInstant, p.name, p.dir)
	}
	if err == nil {
		err = json.Unmarshal(data, &st)
	}
	if err != nil {
		return st, fmt.Errorf("read the state of instant restore %s: %w", p.name, err)
	}
	if st.Version != instantVersion || st.Name != p.name {
		return st, fmt.Errorf("state of instant restore %s is of version %d for %q, this holdfast knows version %d",
			p.name, st.Version, st.Name, instantVersion)
	}
	return st, nil
}

// save makes the state durable.
func (p instantPlace) save(st *InstantState, write func(durable.FS, string, []byte) error) error {
	data, err := json.MarshalIndent(st, "", "  ")
	if err == nil {
		err = write(p.fs, p.path(stateSuffix), data)
	}
	if err != nil {
		return fmt.Errorf("save the state of instant restore %s: %w", p.name, err)
	}
	return nil
}

// wish returns what is asked of the process that hydrates.
func (p instantPlace) wish() (InstantWish, error) {
	var w InstantWish
	data, err := durable.ReadFile(p.fs, p.path(wishSuffix))
	if errors.Is(err, fs.ErrNotExist) {
		return w, nil
	}
	if err == nil {
		err = json.Unmarshal(data, &w)
	}
	if err != nil {
		return w, fmt.Errorf("read the wishes for instant restore %s: %w", p.name, err)
	}
	return w, nil
}

func (p instantPlace) setWish(w InstantWish) error {
	data, err := json.Marshal(w)
	if err == nil {
		err = durable.WriteReplace(p.fs, p.path(wishSuffix), data)
	}
	if err != nil {
		return fmt.Errorf("write the wishes for instant restore %s: %w", p.name, err)
	}
	return nil
}

// lock keeps other processes out until unlock is called or the process ends; it returns
// ErrInstantBusy if one is in.
func (p instantPlace) lock() (unlock func(remove bool), err error) {
	path := p.path(lockSuffix)
	for {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return nil, fmt.Errorf("lock instant restore %s: %w", p.name, err)
		}
		whole := unix.Flock_t{Type: unix.F_WRLCK}
		if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &whole); err != nil {
			f.Close()
			if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
				return nil, fmt.Errorf("%w: %s", ErrInstantBusy, p.name)
			}
			return nil, fmt.Errorf("lock instant restore %s: %w", p.name, err)
		}
		if sameFile(f, path) {
			return func(remove bool) {
				if remove {
					os.Remove(path)
				}
				f.Close()
			}, nil
		}
		f.Close() // removed by the one who had it before
	}
}

func sameFile(f *os.File, path string) bool {
	a, errA := f.Stat()
	b, errB := os.Stat(path)
	return errA == nil && errB == nil && os.SameFile(a, b)
}

// Instants returns the instant restores that are under way in a directory, by name.
func Instants(dir string) ([]InstantState, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("look for instant restores: %w", err)
	}
	var out []InstantState
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), stateSuffix)
		if !ok || e.IsDir() {
			continue
		}
		st, err := ReadInstant(dir, name)
		if errors.Is(err, ErrNoInstant) {
			continue // done meanwhile
		}
		if err != nil {
			return nil, err
		}
		out = append(out, st)
	}
	slices.SortFunc(out, func(a, b InstantState) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

// ReadInstant returns the state of an instant restore, or ErrNoInstant.
func ReadInstant(dir, name string) (InstantState, error) {
	p, err := placeOf(durable.OS{}, dir, name)
	if err != nil {
		return InstantState{}, err
	}
	return p.load()
}

// InstantServed reports whether a process works on an instant restore.
func InstantServed(dir, name string) (bool, error) {
	w, err := WatchInstant(dir, name)
	if err != nil {
		return false, err
	}
	defer w.Close()
	return w.Served()
}

// InstantWatch looks whether a process works on an instant restore, to its very end.
type InstantWatch struct {
	name string
	f    *os.File // of the lock; nil if there was none
}

// WatchInstant returns a watch over the process that works on an instant restore now.
func WatchInstant(dir, name string) (*InstantWatch, error) {
	p, err := placeOf(durable.OS{}, dir, name)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(p.path(lockSuffix))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("look who serves instant restore %s: %w", name, err)
	}
	return &InstantWatch{name, f}, nil
}

// Served reports whether the process is at work still.
func (w *InstantWatch) Served() (bool, error) {
	if w.f == nil {
		return false, nil
	}
	whole := unix.Flock_t{Type: unix.F_RDLCK} // only asked for: taking it would be in the way of one that begins
	if err := unix.FcntlFlock(w.f.Fd(), unix.F_OFD_GETLK, &whole); err != nil {
		return false, fmt.Errorf("look who serves instant restore %s: %w", w.name, err)
	}
	return whole.Type != unix.F_UNLCK, nil
}

// Close ends the watch.
func (w *InstantWatch) Close() error {
	if w.f == nil {
		return nil
	}
	return w.f.Close()
}

// ReadInstantWish returns what is asked of the process that hydrates.
func ReadInstantWish(dir, name string) (InstantWish, error) {
	p, err := placeOf(durable.OS{}, dir, name)
	if err != nil {
		return InstantWish{}, err
	}
	return p.wish()
}

// SetInstantWish asks the process that hydrates, or the next one, to pause, go on, or keep to a
// rate.
func SetInstantWish(dir, name string, w InstantWish) error {
	p, err := placeOf(durable.OS{}, dir, name)
	if err != nil {
		return err
	}
	if _, err := p.load(); err != nil {
		return err
	}
	return p.setWish(w)
}

// instantSocket returns the path of the export's socket: beside the disks, or in runDir where that
// path is too long for a socket.
func (p instantPlace) instantSocket(runDir string) (string, error) {
	if path := p.path(socketSuffix); len(path) <= maxSocket {
		return path, nil
	}
	path := filepath.Join(runDir, "instant-"+shortHash(p.path(""))+".sock")
	if len(path) > maxSocket {
		return "", fmt.Errorf("%s is too long for the path of a socket", path)
	}
	return path, nil
}
