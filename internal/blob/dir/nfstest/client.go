package nfstest

import (
	"fmt"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// client is what one mount knows.
type client struct {
	s       *Server
	handles map[uint64]*handle // by inode number; guarded by s.mu
}

// handle is a file or directory as a client refers to it: not by a name. As long as it is there its
// inode number is nobody else's. Its fields are guarded by Server.mu.
type handle struct {
	fd   int // O_PATH
	ino  uint64
	mode uint32

	attr *unix.Stat_t // as it was told last; nil if not known

	// of a directory
	version uint64             // as of which the following was told
	names   map[string]*handle // nil: was absent
	list    []fuse.DirEntry    // nil if not known

	// of a file
	opens     int     // by this client
	sillyDir  *handle // nil, or where it has a name until it is closed
	sillyName string
}

func (h *handle) path() string { return fmt.Sprintf("/proc/self/fd/%d", h.fd) }

// told returns the handle of a file that was opened with O_PATH, and keeps or closes that.
func (c *client) told(fd int) (*handle, syscall.Errno) {
	st := new(unix.Stat_t)
	if err := unix.Fstat(fd, st); err != nil {
		unix.Close(fd)
		return nil, errnoOf(err)
	}
	h := c.handles[st.Ino]
	if h == nil {
		h = &handle{fd: fd, ino: st.Ino, mode: st.Mode & unix.S_IFMT, names: map[string]*handle{}}
		c.handles[st.Ino] = h
	} else {
		unix.Close(fd)
	}
	h.attr = st
	return h, 0
}

func (c *client) root() (*node, error) {
	fd, err := unix.Open(c.s.root, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	h, errno := c.told(fd)
	if errno != 0 {
		return nil, errno
	}
	return &node{c: c, h: h}, nil
}

func (c *client) close() {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	for _, h := range c.handles {
		unix.Close(h.fd)
	}
	c.handles = nil
}

// stat returns a file's attributes, as they are known or as the server tells them.
func (c *client) stat(h *handle) (*unix.Stat_t, syscall.Errno) {
	if h.attr == nil {
		st := new(unix.Stat_t)
		if err := unix.Fstat(h.fd, st); err != nil {
			return nil, errnoOf(err)
		}
		if st.Nlink == 0 {
			c.forgetNames(h)
			return nil, unix.ESTALE
		}
		h.attr = st
	}
	return h.attr, 0
}

// revalidate asks the server whether what is opened is still as it was told.
func (c *client) revalidate(h *handle) syscall.Errno {
	if c.s.opts.NoCTO {
		return 0
	}
	h.attr = nil
	_, errno := c.stat(h)
	if v := c.s.version(h); h.mode == unix.S_IFDIR && h.version != v {
		h.version, h.names, h.list = v, map[string]*handle{}, nil
	}
	return errno
}

// forgetNames forgets all names of a file.
func (c *client) forgetNames(h *handle) {
	for _, d := range c.handles {
		for name, to := range d.names {
			if to == h {
				delete(d.names, name)
			}
		}
	}
}

// lookUp finds a name, in what is known or by asking.
func (c *client) lookUp(d *handle, name string) (*handle, syscall.Errno) {
	if h, known := d.names[name]; known && (h != nil || !c.s.opts.NoNegative) {
		if h == nil {
			return nil, unix.ENOENT
		}
		return h, 0
	}
	fd, err := unix.Openat(d.fd, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err == unix.ENOENT {
		d.names[name] = nil
	}
	if err != nil {
		return nil, errnoOf(err)
	}
	h, errno := c.told(fd)
	if errno == 0 {
		d.names[name] = h
	}
	return h, errno
}

// changed notes that this client has changed a directory, and knows that. What it was told before
// still holds, if nobody else has changed it since.
func (c *client) changed(d *handle) {
	current := d.version == c.s.version(d)
	c.s.changes[d.ino]++
	d.attr, d.list = nil, nil
	if current {
		d.version = c.s.version(d)
	}
}

// repeated calls a second time if the first answer was lost; what the first one did the client does
// not know.
func (c *client) repeated(call func() error, dirs ...*handle) error {
	err := call()
	if err != nil || !c.s.lose() {
		return err
	}
	for _, d := range dirs {
		c.s.changes[d.ino]++
		d.list = nil // the client reads anew a directory in which it did something
	}
	return call()
}

func errnoOf(err error) syscall.Errno {
	if err == nil {
		return 0
	}
	if errno, ok := err.(syscall.Errno); ok {
		return errno
	}
	return unix.EIO
}
