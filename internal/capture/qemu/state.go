package qemu

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/holdfast-vm/holdfast/internal/capture"
	"github.com/holdfast-vm/holdfast/internal/hypervisor"
)

// record is what the state file of a machine says of its unfinished capture.
type record struct {
	Machine string `json:"machine"`
	Vault   string `json:"vault"`
	Epoch   string `json:"epoch"`
	Scratch string `json:"scratch"` // directory
	Prefix  string `json:"prefix"`  // of the names of scratch files
	// Read says that everything was read: the vault may have committed the point.
	Read bool `json:"read,omitempty"`
}

// stateFile is the locked state file of one machine. An empty one says that nothing is unfinished.
type stateFile struct{ f *os.File }

// lockState opens the state file of m, or returns capture.ErrBusy while somebody has it.
func lockState(dir string, m hypervisor.Machine) (*stateFile, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make state directory: %w", err)
	}
	path := filepath.Join(dir, stateName(m))
	for {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return nil, fmt.Errorf("open state file: %w", err)
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			f.Close()
			if errors.Is(err, syscall.EWOULDBLOCK) {
				return nil, capture.ErrBusy
			}
			return nil, fmt.Errorf("lock state file %s: %w", path, err)
		}
		if sameFile(f, path) {
			return &stateFile{f}, nil
		}
		f.Close() // it was removed by the one who had the lock before
	}
}

// stateName is the same for a machine however often it is started, under whatever socket.
func stateName(m hypervisor.Machine) string {
	key := m.UUID
	if key == "" {
		key = m.Host + "\x00" + m.Name
	}
	id := sha256.Sum256([]byte(key))
	return fmt.Sprintf("capture-%s-%s.json", fileName(m.Name), hex.EncodeToString(id[:4]))
}

func sameFile(f *os.File, path string) bool {
	a, errA := f.Stat()
	b, errB := os.Stat(path)
	return errA == nil && errB == nil && os.SameFile(a, b)
}

// fileName keeps of a machine's name what is harmless in a file's.
func fileName(s string) string {
	clean := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_' {
			return r
		}
		return '_'
	}, s)
	return clean[:min(len(clean), 80)]
}

func scratchPrefix(p capture.Plan) string {
	return fmt.Sprintf("hf-%s-%s-%s-", fileName(p.Machine), p.Vault, p.Epoch)
}

// begin notes the capture that follows.
func (s *stateFile) begin(p capture.Plan) error {
	return s.write(record{Machine: p.Machine, Vault: p.Vault, Epoch: p.Epoch, Scratch: p.Scratch.Dir,
		Prefix: scratchPrefix(p)})
}

// captured notes that everything was read. A record truncated by a kill meanwhile counts as absent,
// and its epoch stays until a run with its vault.
func (s *stateFile) captured() error {
	r, err := s.read()
	if err != nil || r == nil {
		return err
	}
	r.Read = true
	return s.write(*r)
}

func (s *stateFile) write(r record) error {
	line, err := json.Marshal(r)
	if err == nil {
		err = s.f.Truncate(0)
	}
	if err == nil {
		_, err = s.f.WriteAt(line, 0)
	}
	if err != nil {
		return fmt.Errorf("write state file: %w", err)
	}
	return nil
}

// read returns the unfinished capture, nil if there is none. A record truncated by a kill during
// begin counts as absent: nothing had started.
func (s *stateFile) read() (*record, error) {
	line, err := io.ReadAll(io.NewSectionReader(s.f, 0, 1<<20))
	if err != nil {
		return nil, fmt.Errorf("read state file: %w", err)
	}
	var r record
	if json.Unmarshal(line, &r) != nil || r.Prefix == "" {
		return nil, nil
	}
	return &r, nil
}

// recover removes what an unfinished capture left, in QEMU if m is not nil and on disk, except for
// the record of changes if a point may count from it: vault and keep are what is known of points.
// The file then says that nothing is unfinished.
func (s *stateFile) recover(ctx context.Context, m monitor, vault string, keep []string) ([]string, error) {
	r, err := s.read()
	if err != nil {
		return nil, err
	}
	var done []string
	if m != nil {
		if done, err = sweep(ctx, m); err != nil {
			return done, err
		}
	}
	if r == nil {
		return done, nil
	}
	epoch := capture.BitmapName(r.Vault, r.Epoch)
	if m != nil && capture.MayDrop(epoch, r.Read, vault, keep) {
		more, err := sweepBitmaps(ctx, m, func(name string) bool { return name == epoch })
		done = append(done, more...)
		if err != nil {
			return done, err
		}
	} else if m != nil && !slices.Contains(keep, epoch) {
		done = append(done, capture.Undecided(epoch))
	}
	more, err := removeScratch(r)
	done = append(done, more...)
	if err != nil {
		return done, err
	}
	return done, s.f.Truncate(0)
}

func removeScratch(r *record) ([]string, error) {
	entries, err := os.ReadDir(r.Scratch)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("look for scratch files: %w", err)
	}
	var done []string
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), r.Prefix) {
			continue
		}
		path := filepath.Join(r.Scratch, e.Name())
		if err := os.Remove(path); err != nil {
			return done, fmt.Errorf("remove scratch file: %w", err)
		}
		done = append(done, "removed scratch file "+path)
	}
	return done, nil
}

// finish removes the file and gives up the lock.
func (s *stateFile) finish() error {
	return errors.Join(os.Remove(s.f.Name()), s.f.Close())
}

// release gives up the lock, and leaves the file to the next Reconcile if it names anything
// unfinished.
func (s *stateFile) release() error {
	if r, err := s.read(); err == nil && r == nil {
		return s.finish()
	}
	return s.f.Close()
}
