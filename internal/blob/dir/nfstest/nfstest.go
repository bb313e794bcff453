// Package nfstest is a network file system for tests: clients that mount one directory, each with
// caches of its own, and a server whose answers get lost.
//
// It passes through to a directory, by FUSE, and behaves as NFS may. A client keeps what it was
// told of names, those that were absent too, of attributes, and of what is in a directory; it never
// asks again by itself, as if no cache ever ran out. It asks again where the protocol promises it:
// names and lists of a directory when that is opened and has changed, attributes of a file when it
// is opened. A call whose answer was lost is repeated, and its second answer counts. A file that a
// client removes while it has it open is renamed to .nfsXXXX until it is closed; one that another
// client removed is a stale handle. Locks are the server's, and an exclusive one wants a file that
// is open for writing.
package nfstest

import (
	"io"
	"log"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Options says how the file system behaves. The zero value of each field is its default.
type Options struct {
	Seed uint64 // of what is left to chance
	Lost int    // of so many calls that change names the answer of one is lost; 0 means none
	// NoLinks is how file systems behave that know no hard links: they rename without replacing.
	NoLinks bool
	// CoarseTimes makes the server tell only every so many changes of a directory from another, as
	// NFS 3 does where the times of the server's files are coarse; 0 means each.
	CoarseTimes uint64
	// NoNegative is the option lookupcache=positive: that a name was absent is not kept.
	NoNegative bool
	// NoCTO is the option nocto: what is opened is not asked for again.
	NoCTO bool
}

// patience is how long a test may use a mount before every call to it fails.
const patience = 2 * time.Minute

// Server is a directory that clients mount.
type Server struct {
	opts Options
	root string

	mu      sync.Mutex
	rng     *rand.Rand
	changes map[uint64]uint64 // of directories, by inode number
	silly   int
	repeats int
}

// Wanted is the variable of the environment without which no test mounts anything: the process that
// serves a mount is the one that uses it, and on a machine that is busy with much else the two can
// come to wait for each other. `make nfs` sets it.
const Wanted = "HOLDFAST_NFS"

// New serves an empty directory. It skips the test where nothing is to be, or can be, mounted.
func New(t testing.TB, o Options) *Server {
	t.Helper()
	if os.Getenv(Wanted) == "" {
		t.Skipf("%s is not set: `make nfs` runs the tests on a network file system", Wanted)
	}
	if os.Geteuid() != 0 {
		t.Skip("this test mounts a file system of its own, which only root may without help")
	}
	f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("FUSE is not usable here, and this test mounts a file system of its own: %v", err)
	}
	f.Close()
	root := filepath.Join(t.TempDir(), "export")
	if err := os.Mkdir(root, 0o700); err != nil {
		t.Fatal(err)
	}
	return &Server{opts: o, root: root, rng: rand.New(rand.NewPCG(o.Seed, 0)), changes: map[uint64]uint64{}}
}

// Repeats returns how many calls were repeated after their answer was lost.
func (s *Server) Repeats() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.repeats
}

// Mount returns the directory as one more client sees it, until the test ends.
func (s *Server) Mount(t testing.TB) string {
	t.Helper()
	at := t.TempDir()
	c := &client{s: s, handles: map[uint64]*handle{}}
	root, err := c.root()
	if err != nil {
		t.Fatal(err)
	}
	var never time.Duration // the kernel keeps nothing: the client does
	server, err := fs.Mount(at, root, &fs.Options{
		EntryTimeout: &never, AttrTimeout: &never, NegativeTimeout: &never, Logger: log.New(io.Discard, "", 0),
		MountOptions: fuse.MountOptions{FsName: "nfstest", Name: "nfstest", DirectMount: true,
			EnableLocks: true, MaxWrite: 1 << 20, Logger: log.New(io.Discard, "", 0)}})
	if err != nil {
		c.close()
		t.Skipf("FUSE is not usable here, and this test mounts a file system of its own: %v", err)
	}
	// A process that waits for itself cannot even be killed.
	stuck := time.AfterFunc(patience, func() {
		_ = unix.Unmount(at, unix.MNT_FORCE)
		_ = unix.Unmount(at, unix.MNT_DETACH)
	})
	t.Cleanup(func() {
		stuck.Stop()
		if err := unix.Unmount(at, 0); err != nil {
			t.Errorf("something is still open below %s: %v", at, err)
			_ = unix.Unmount(at, unix.MNT_FORCE) // ends calls that are under way
			_ = unix.Unmount(at, unix.MNT_DETACH)
		}
		server.Wait()
		c.close()
	})
	return at
}

// lose reports whether the answer of a call is lost. s.mu is held.
func (s *Server) lose() bool {
	if s.opts.Lost == 0 || s.rng.IntN(s.opts.Lost) != 0 {
		return false
	}
	s.repeats++
	return true
}

// version is what tells a change of a directory from another. s.mu is held.
func (s *Server) version(d *handle) uint64 { return s.changes[d.ino] / max(s.opts.CoarseTimes, 1) }
