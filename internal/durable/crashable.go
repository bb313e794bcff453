package durable

import (
	"errors"
	"io/fs"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
)

// ErrPowerLost is what every call of a [Crashable] returns from the instant its power failed.
var ErrPowerLost = errors.New("power lost")

// Never is a call number that is never reached.
const Never = -1

// Crashable is a file system in memory for tests, as treacherous as POSIX allows. The power fails
// at a chosen mutating call, and [Crashable.AfterCrash] shows what a disk might hold then.
//
// Mutating calls are counted from 0: all of [FS] but Open, Stat and ReadDir, and all of [File] but
// Close.
type Crashable struct {
	mu      sync.Mutex
	root    *node
	calls   int
	crashAt int
	failAt  int
	failErr error
	space   int64 // bytes that still fit; negative: any number
	noLinks bool
	dead    bool
}

// NewCrashable returns an empty file system whose power fails at the n-th mutating call, counted
// from 0; [Never] means never. The call that meets the failure may or may not have had its effect.
func NewCrashable(n int) *Crashable {
	return &Crashable{root: newDir(), crashAt: n, failAt: Never, space: -1}
}

// Calls returns how many mutating calls were made.
func (c *Crashable) Calls() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.calls
}

// CrashAt changes the call at which power fails, counted like [Crashable.Calls].
func (c *Crashable) CrashAt(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.crashAt = n
}

// Restart lets the next process use the file system: it was not the power that failed, but the one
// before that was killed. What that one wrote is seen, and is not more durable than before.
func (c *Crashable) Restart() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dead, c.crashAt = false, Never
	c.root.release()
}

// FailAt makes the n-th mutating call return err and have no effect. All others go on as ever.
func (c *Crashable) FailAt(n int, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.failAt, c.failErr = n, err
}

// SetSpace makes the disk full, with ENOSPC, after n more bytes; removing a file gives back its
// bytes. Negative means unlimited, which is what a new file system is.
func (c *Crashable) SetSpace(n int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.space = n
}

// DenyLinks makes Link fail with EPERM, as file systems do that have no hard links.
func (c *Crashable) DenyLinks() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.noLinks = true
}

// mutate does one counted call. If power fails at it, its effect is among what may survive.
func (c *Crashable) mutate(effect func() error) error {
	return c.call(effect, true)
}

// sync is mutate for calls that promise durability: they must not have kept the promise when power
// fails at them.
func (c *Crashable) sync(effect func() error) error {
	return c.call(effect, false)
}

func (c *Crashable) call(effect func() error, mayHappen bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.dead {
		return ErrPowerLost
	}
	n := c.calls
	c.calls++
	switch n {
	case c.crashAt:
		if mayHappen {
			_ = effect()
		}
		c.dead = true
		return ErrPowerLost
	case c.failAt:
		return c.failErr
	}
	return effect()
}

// look does one call that changes nothing.
func (c *Crashable) look(call func() error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.dead {
		return ErrPowerLost
	}
	return call()
}

// Create implements [FS].
func (c *Crashable) Create(name string) (File, error) {
	f := &crashFile{fs: c, name: name, node: &node{held: true}}
	if err := c.mutate(func() error { return c.add("create", name, f.node) }); err != nil {
		return nil, err
	}
	return f, nil
}

// Mkdir implements [FS].
func (c *Crashable) Mkdir(name string) error {
	return c.mutate(func() error { return c.add("mkdir", name, newDir()) })
}

// Link implements [FS].
func (c *Crashable) Link(from, to string) error {
	return c.mutate(func() error {
		if c.noLinks {
			return failed("link", to, syscall.EPERM)
		}
		n, err := c.file("link", from)
		if err != nil {
			return err
		}
		return c.add("link", to, n)
	})
}

// add gives n a name that was free.
func (c *Crashable) add(op, name string, n *node) error {
	dir, base, err := c.parent(op, name)
	if err != nil {
		return err
	}
	if dir.now[base] != nil {
		return failed(op, name, syscall.EEXIST)
	}
	dir.change(base, n, nil)
	return nil
}

// RenameNew implements [FS].
func (c *Crashable) RenameNew(from, to string) error {
	return c.mutate(func() error {
		if n, _ := c.find("rename", to); n != nil {
			return failed("rename", to, syscall.EEXIST)
		}
		return c.rename(from, to)
	})
}

// Replace implements [FS].
func (c *Crashable) Replace(from, to string) error {
	return c.mutate(func() error { return c.rename(from, to) })
}

func (c *Crashable) rename(from, to string) error {
	n, err := c.file("rename", from)
	if err != nil {
		return err
	}
	toDir, toBase, err := c.parent("rename", to)
	if err != nil {
		return err
	}
	old := toDir.now[toBase]
	if old == n {
		return nil
	}
	if old != nil && old.dir {
		return failed("rename", to, syscall.EISDIR)
	}
	fromDir, fromBase, err := c.parent("rename", from)
	if err != nil {
		return err
	}
	added := toDir.change(toBase, n, nil)
	fromDir.change(fromBase, nil, added)
	c.reclaim(old)
	return nil
}

// Remove implements [FS].
func (c *Crashable) Remove(name string) error {
	return c.mutate(func() error { return c.remove(name) })
}

func (c *Crashable) remove(name string) error {
	n, err := c.file("remove", name)
	if err != nil {
		return err
	}
	dir, base, err := c.parent("remove", name)
	if err != nil {
		return err
	}
	dir.change(base, nil, nil)
	c.reclaim(n)
	return nil
}

// reclaim gives back the space of a file that lost its last name.
func (c *Crashable) reclaim(n *node) {
	if n != nil && n.links == 0 && c.space >= 0 {
		c.space += int64(len(n.data))
	}
}

// RemoveAbandoned implements [FS].
func (c *Crashable) RemoveAbandoned(name string) (bool, error) {
	removed := false
	err := c.mutate(func() error {
		n, err := c.file("remove", name)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil || n.held {
			return err
		}
		removed = true
		return c.remove(name)
	})
	return removed && err == nil, err
}

// SyncDir implements [FS].
func (c *Crashable) SyncDir(name string) error {
	return c.sync(func() error {
		n, err := c.find("sync", name)
		if err != nil {
			return err
		}
		if !n.dir {
			return failed("sync", name, syscall.ENOTDIR)
		}
		for len(n.pending) > 0 {
			n.pending[0].settle()
		}
		return nil
	})
}

// Open implements [FS].
func (c *Crashable) Open(name string) (Reader, error) {
	r := &crashReader{fs: c}
	err := c.look(func() (err error) {
		r.node, err = c.file("open", name)
		return err
	})
	if err != nil {
		return nil, err
	}
	return r, nil
}

// Stat implements [FS].
func (c *Crashable) Stat(name string) (info Info, err error) {
	err = c.look(func() error {
		n, err := c.find("stat", name)
		if err == nil {
			info = n.info()
		}
		return err
	})
	return info, err
}

// ReadDir implements [FS].
func (c *Crashable) ReadDir(name string) (entries []Entry, err error) {
	err = c.look(func() error {
		n, err := c.find("readdir", name)
		if err != nil {
			return err
		}
		if !n.dir {
			return failed("readdir", name, syscall.ENOTDIR)
		}
		for base, child := range n.now {
			entries = append(entries, Entry{Name: base, Dir: child.dir})
		}
		return nil
	})
	return entries, err
}

// find returns what has the name.
func (c *Crashable) find(op, name string) (*node, error) {
	n := c.root
	for part := range strings.SplitSeq(strings.Trim(filepath.Clean(name), "/"), "/") {
		if part == "" {
			continue
		}
		if !n.dir {
			return nil, failed(op, name, syscall.ENOTDIR)
		}
		if n = n.now[part]; n == nil {
			return nil, failed(op, name, syscall.ENOENT)
		}
	}
	return n, nil
}

// file is find for files only.
func (c *Crashable) file(op, name string) (*node, error) {
	n, err := c.find(op, name)
	if err == nil && n.dir {
		return nil, failed(op, name, syscall.EISDIR)
	}
	return n, err
}

// parent returns the directory of name and the last part of it.
func (c *Crashable) parent(op, name string) (*node, string, error) {
	name = filepath.Clean(name)
	dir, err := c.find(op, filepath.Dir(name))
	if err == nil && !dir.dir {
		err = failed(op, name, syscall.ENOTDIR)
	}
	return dir, filepath.Base(name), err
}

func failed(op, name string, errno syscall.Errno) error {
	return &fs.PathError{Op: op, Path: name, Err: errno}
}
