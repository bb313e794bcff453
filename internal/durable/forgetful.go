package durable

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
)

// Forgetful is the file system of the machine, [OS], for tests in which a process is killed,
// another goes on, and then the power fails: names that were given and not synced are lost then,
// while what was removed stays away. That is the worst that may happen to files which others, such
// as QEMU, must be able to open; what happens to files in memory, [Crashable] knows better.
type Forgetful struct {
	OS

	mu      sync.Mutex
	pending map[string][]func() error // by directory: how to take back the names given since it was synced
	killDir string
	killIn  int // syncs of killDir until the process is killed
	kill    error
	killed  bool
}

// KillAtSync has the n-th sync of a directory from now on, counted from 0, do nothing and return
// err, as all calls do from then on: the process was killed there.
func (f *Forgetful) KillAtSync(dir string, n int, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.killDir, f.killIn, f.kill, f.killed = filepath.Clean(dir), n, err, false
}

// Restart lets another process use the file system, which finds it as the killed one has left it.
// It reports whether one was killed.
func (f *Forgetful) Restart() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	was := f.killed
	f.killDir, f.killed = "", false
	return was
}

// Renamed tells of a rename within a directory that was not made by calls of f, and not synced.
func (f *Forgetful) Renamed(from, to string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.remember(to, func() error { return os.Rename(to, from) })
}

// LosePower takes back every name that was given and not synced, unless it was removed since.
func (f *Forgetful) LosePower() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	var failed error
	for _, undo := range f.pending {
		for _, u := range slices.Backward(undo) {
			failed = errors.Join(failed, u())
		}
	}
	f.pending = nil
	return failed
}

// remember keeps how to take a name back. The lock is held.
func (f *Forgetful) remember(name string, undo func() error) {
	if f.pending == nil {
		f.pending = map[string][]func() error{}
	}
	dir := filepath.Dir(name)
	f.pending[dir] = append(f.pending[dir], func() error {
		if _, err := os.Lstat(name); errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return undo()
	})
}

// call does one call of the process, unless it was killed.
func (f *Forgetful) call(do func() error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.killed {
		return f.kill
	}
	return do()
}

// name gives a file a name and remembers what had it.
func (f *Forgetful) name(to string, give func() error) error {
	return f.call(func() error {
		old, err := os.ReadFile(to)
		existed := err == nil
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := give(); err != nil {
			return err
		}
		f.remember(to, func() error {
			if !existed {
				return os.Remove(to)
			}
			return os.WriteFile(to, old, 0o600)
		})
		return nil
	})
}

// Create implements [FS].
func (f *Forgetful) Create(name string) (file File, err error) {
	err = f.call(func() error {
		file, err = OS{}.Create(name)
		return err
	})
	return file, err
}

// Link implements [FS].
func (f *Forgetful) Link(from, to string) error {
	return f.name(to, func() error { return OS{}.Link(from, to) })
}

// RenameNew implements [FS].
func (f *Forgetful) RenameNew(from, to string) error {
	return f.name(to, func() error { return OS{}.RenameNew(from, to) })
}

// Replace implements [FS].
func (f *Forgetful) Replace(from, to string) error {
	return f.name(to, func() error { return OS{}.Replace(from, to) })
}

// Remove implements [FS].
func (f *Forgetful) Remove(name string) error {
	return f.call(func() error { return OS{}.Remove(name) })
}

// SyncDir implements [FS].
func (f *Forgetful) SyncDir(name string) error {
	return f.call(func() error {
		if name = filepath.Clean(name); name == f.killDir {
			if f.killIn--; f.killIn < 0 {
				f.killed = true
				return f.kill
			}
		}
		if err := (OS{}).SyncDir(name); err != nil {
			return err
		}
		delete(f.pending, name)
		return nil
	})
}
