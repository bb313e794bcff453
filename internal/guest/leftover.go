package guest

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
	"time"

	"golang.org/x/sys/unix"
)

// ErrHeldByUs reports that another Holdfast on this host holds the guest at this moment.
var ErrHeldByUs = errors.New(reasonHeldByUs)

// StateEnv names the environment variable for the directory of state files.
const StateEnv = "HOLDFAST_STATE"

// StateDir returns where it is noted which guests are held: $HOLDFAST_STATE, or /run/holdfast, or a
// per-user directory if not running as root. It must not survive a reboot of the host: held guests
// do not either.
func StateDir() string {
	if dir := os.Getenv(StateEnv); dir != "" {
		return dir
	}
	if os.Geteuid() == 0 {
		return "/run/holdfast"
	}
	if dir := os.Getenv("XDG_RUNTIME_DIR"); dir != "" {
		return filepath.Join(dir, "holdfast")
	}
	return filepath.Join(os.TempDir(), fmt.Sprintf("holdfast-%d", os.Geteuid()))
}

// Leftover is a guest that was noted as held.
type Leftover struct {
	Machine string    `json:"machine"` // as the guard was told
	Agent   string    `json:"agent"`   // how the guard opened its agent
	Since   time.Time `json:"since"`
}

// claim is the note that a guest may be held. The file is locked as long as the process lives that
// holds the guest, so that a live guard can be told from a dead one.
type claim struct {
	f *os.File
}

func claimFile(dir, machine string) string {
	sum := sha256.Sum256([]byte(machine))
	return filepath.Join(dir, hex.EncodeToString(sum[:8])+".held")
}

// newClaim notes l, or returns fs.ErrExist if that machine is noted already.
func newClaim(dir string, l Leftover) (*claim, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("note that the guest is held: %w", err)
	}
	data, err := json.Marshal(l)
	if err != nil {
		return nil, err
	}
	f, err := os.CreateTemp(dir, ".claim-*")
	if err != nil {
		return nil, fmt.Errorf("note that the guest is held: %w", err)
	}
	_, err = f.Write(append(data, '\n'))
	if err == nil {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	}
	if err == nil {
		err = os.Link(f.Name(), claimFile(dir, l.Machine)) // complete and locked when it appears
	}
	os.Remove(f.Name())
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("note that the guest is held: %w", err)
	}
	return &claim{f: f}, nil
}

// openClaim takes over the note of a dead process. It returns ErrHeldByUs if that process lives,
// and fs.ErrNotExist if there is no note.
func openClaim(path string) (*claim, Leftover, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, Leftover{}, err
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = ErrHeldByUs
	}
	var st unix.Stat_t
	if err == nil {
		err = unix.Fstat(int(f.Fd()), &st)
	}
	if err == nil && st.Nlink == 0 {
		err = os.ErrNotExist // removed since we opened it
	}
	var l Leftover
	if err == nil {
		var data []byte
		data, err = io.ReadAll(io.LimitReader(f, 1<<16))
		_ = json.Unmarshal(data, &l) // a note that cannot be read is still a note
	}
	if err != nil {
		f.Close()
		return nil, Leftover{}, err
	}
	return &claim{f: f}, l, nil
}

// remove ends the note at path.
func (c *claim) remove(path string) error {
	err := os.Remove(path)
	c.f.Close()
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove the note that the guest is held: %w", err)
	}
	return nil
}

// Leftovers returns the guests that dead processes have left held, as far as is known. Guests that
// a live guard holds are not among them.
func Leftovers(stateDir string) ([]Leftover, error) {
	files, err := filepath.Glob(filepath.Join(stateDir, "*.held"))
	if err != nil {
		return nil, fmt.Errorf("list held guests in %s: %w", stateDir, err)
	}
	var all []Leftover
	for _, path := range files {
		c, l, err := openClaim(path)
		if errors.Is(err, ErrHeldByUs) || errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("list held guests in %s: %w", stateDir, err)
		}
		c.f.Close()
		if l.Machine != "" {
			all = append(all, l)
		}
	}
	return all, nil
}

// ThawLeftover releases a guest that one of our processes held when it died. It reports whether the
// guest had to be released. The agent is not opened if nothing is noted of the machine, and a guest
// that a live guard holds is left to it. On error the note stays.
func ThawLeftover(ctx context.Context, open Opener, stateDir, machine string) (bool, error) {
	path := claimFile(stateDir, machine)
	c, _, err := openClaim(path)
	if errors.Is(err, ErrHeldByUs) || errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look whether %s is held: %w", machine, err)
	}
	defer c.f.Close()
	l := line{open: open}
	defer l.close()
	did, err := l.thaw(ctx)
	if err != nil {
		return did, fmt.Errorf("thaw %s, which was left held: %w", machine, err)
	}
	return did, c.remove(path)
}

// thaw releases a guest, with retries while ctx lasts.
func (l *line) thaw(ctx context.Context) (did bool, err error) {
	limits := Limits{}.withDefaults(false)
	for wait := 50 * time.Millisecond; ; wait = min(2*wait, 2*time.Second) {
		var frozen bool
		frozen, err = l.frozen(ctx)
		if err == nil && !frozen || errors.Is(err, ErrGone) {
			return did, nil
		}
		if err == nil {
			did = true
			err = l.ask(ctx, limits.Thaw, "guest-fsfreeze-thaw", nil, nil)
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return did, errors.Join(ctx.Err(), err)
		}
	}
}
