package libvirt

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-vm/holdfast/internal/capture"
	"github.com/holdfast-vm/holdfast/internal/durable"
	"github.com/holdfast-vm/holdfast/internal/hypervisor/libvirt/rpc"
	"github.com/holdfast-vm/holdfast/internal/hypervisor/pause"
)

// record notes what a capture may have changed. Each is written before the change.
type record struct {
	Machine    string      `json:"machine"`
	Since      time.Time   `json:"since"`
	Checkpoint string      `json:"checkpoint,omitempty"` // begun, and not known to be committed
	Read       bool        `json:"read,omitempty"`       // all was read: the vault may have committed the point
	Scratch    []string    `json:"scratch,omitempty"`
	Job        bool        `json:"job,omitempty"`   // our backup job may run
	Pause      *pause.Mark `json:"pause,omitempty"` // the machine may stand still because of us
}

// stateFile is the record of one machine and the lock on it. It is not safe for concurrent use.
type stateFile struct {
	lock   *os.File
	path   string
	record record
	closed bool
}

// openState locks the state of a machine, or returns capture.ErrBusy.
func openState(dir string, dom rpc.Domain) (*stateFile, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make state directory: %w", err)
	}
	path := filepath.Join(dir, "libvirt-"+hex.EncodeToString(dom.UUID[:]))
	lock, err := lockFile(path + ".lock")
	if err != nil {
		return nil, err
	}
	if _, err := durable.Sweep(durable.OS{}, dir); err != nil {
		lock.Close()
		return nil, fmt.Errorf("remove notes that were not written to their end: %w", err)
	}
	st := &stateFile{lock: lock, path: path + ".json"}
	text, err := os.ReadFile(st.path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		lock.Close()
		return nil, fmt.Errorf("read what an earlier capture noted: %w", err)
	default:
		if err := json.Unmarshal(text, &st.record); err != nil {
			lock.Close()
			return nil, fmt.Errorf("read what an earlier capture noted in %s: %w", st.path, err)
		}
	}
	if !st.unfinished() {
		st.record = record{Machine: dom.Name}
	}
	return st, nil
}

// lockFile opens and locks a file that its last owner may be removing at this moment.
func lockFile(path string) (*os.File, error) {
	for {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return nil, fmt.Errorf("lock the machine: %w", err)
		}
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if errors.Is(err, unix.EWOULDBLOCK) {
			f.Close()
			return nil, capture.ErrBusy
		}
		if err != nil {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		mine, errMine := f.Stat()
		named, errNamed := os.Stat(path)
		if errMine == nil && errNamed == nil && os.SameFile(mine, named) {
			return f, nil
		}
		f.Close()
	}
}

// unfinished reports whether the record names anything to undo.
func (st *stateFile) unfinished() bool {
	r := st.record
	return r.Checkpoint != "" || len(r.Scratch) > 0 || r.Job || r.Pause != nil
}

// note changes the record and writes it, whole or not at all, durably.
func (st *stateFile) note(change func(*record)) error {
	change(&st.record)
	st.record.Since = time.Now().UTC()
	text, err := json.Marshal(st.record)
	if err == nil {
		err = durable.WriteReplace(durable.OS{}, st.path, text)
	}
	if err != nil {
		return fmt.Errorf("note what is about to be done: %w", err)
	}
	return nil
}

// close gives up the lock; with clean it first removes the files.
func (st *stateFile) close(clean bool) {
	if st.closed {
		return
	}
	st.closed = true
	if clean {
		os.Remove(st.path)
		os.Remove(st.lock.Name())
	}
	st.lock.Close()
}
