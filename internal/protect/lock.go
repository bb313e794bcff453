package protect

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/holdfast-vm/holdfast/internal/capture"
	"github.com/holdfast-vm/holdfast/internal/hypervisor"
)

// lockMachine keeps other processes of this host from backing up m at the same time, until the
// function it returns is called or the process ends. If another one does, it returns
// capture.ErrBusy with its process ID.
func lockMachine(stateDir string, m hypervisor.Machine) (unlock func(), err error) {
	dir := filepath.Join(stateDir, "locks")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("lock the machine: %w", err)
	}
	path := filepath.Join(dir, lockName(m))
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the machine: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		defer f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("%w (process %s)", capture.ErrBusy, holder(path))
		}
		return nil, fmt.Errorf("lock the machine: %w", err)
	}
	if err := f.Truncate(0); err == nil {
		f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
	// The file stays: removing it would let two processes hold locks on two files of one name.
	return func() { f.Close() }, nil
}

// lockName is the same for a machine however often it is found.
func lockName(m hypervisor.Machine) string {
	key := m.UUID
	if key == "" {
		key = m.Host + "\x00" + m.Name
	}
	sum := sha256.Sum256([]byte(key))
	return hex.EncodeToString(sum[:8]) + ".lock"
}

// holder returns the process ID in a lock file, as far as it can be read.
func holder(path string) string {
	data, err := os.ReadFile(path)
	pid := strings.TrimSpace(string(data))
	if _, convErr := strconv.Atoi(pid); err != nil || convErr != nil {
		return "unknown"
	}
	return pid
}
