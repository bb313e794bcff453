package files

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/holdfast-vm/holdfast/internal/filesystem"
	"github.com/holdfast-vm/holdfast/internal/filesystem/volume"
)

// atOnce is how many files of a directory are fetched at the same time.
const atOnce = 4

// GetRequest says what to fetch. A place that is a symbolic link is followed; links below it are
// kept as links.
type GetRequest struct {
	Places []string
	To     string // directory; it is made, for the caller alone, if it does not exist
	Force  bool   // replace files that exist, and add to directories
	// AsStored keeps what the guest says that has power on this machine: owners, setuid and setgid,
	// devices, access control lists, and all extended attributes. Without it files belong to the
	// caller, and of attributes only user.* are kept.
	AsStored bool
	Limits   Limits
	Progress func(done, total int64)
}

// Report says what was fetched.
type Report struct {
	Files       int64    `json:"files"` // regular ones, each name counted
	Directories int64    `json:"directories"`
	Others      int64    `json:"others"` // links, devices, pipes, sockets
	Streams     int64    `json:"streams"`
	Bytes       int64    `json:"bytes"`    // of the files, holes and all
	Stored      int64    `json:"stored"`   // of them, what was written
	Dropped     Dropped  `json:"dropped"`  // that it was not asked to keep
	Warnings    []string `json:"warnings"` // what the target could not keep, a line for each kind
}

// Dropped counts what was not kept since nobody asked for it.
type Dropped struct {
	Owners     int64 `json:"owners"`     // files that had another owner or group than the caller
	Setuid     int64 `json:"setuid"`     // files and directories that were setuid or setgid
	Devices    int64 `json:"devices"`    // that were left out
	ACLs       int64 `json:"acls"`       // access control lists
	Attributes int64 `json:"attributes"` // other extended attributes that are not user.*
}

// Get fetches files and directories with all below them: holes, times, permissions, attributes,
// hard links among them, symbolic links, and NTFS streams as files NAME:STREAM beside them. What is
// at the root of a volume or of the machine goes right into To. With an error that is an
// [Incomplete] the others were fetched; with one that is [ErrLimit] those were that the report
// counts.
func (p *Point) Get(ctx context.Context, req GetRequest) (Report, error) {
	places, err := p.locate(req.Places)
	if err != nil {
		return Report{}, err
	}
	to, err := openTarget(req.To)
	if err != nil {
		return Report{}, err
	}
	defer to.close()
	g := p.getter(req, to)
	for _, at := range places {
		if err := g.place(ctx, to, at); err != nil {
			if cause := ended(ctx); cause != nil {
				err = cause
			}
			return g.finish(), errors.Join(err, g.failures.incomplete("fetched"))
		}
	}
	if err := unix.Syncfs(to.fd); err != nil {
		return g.finish(), fmt.Errorf("write to %s: %w", req.To, err)
	}
	return g.finish(), g.failures.incomplete("fetched")
}

func (p *Point) getter(req GetRequest, to *target) *getter {
	return &getter{GetRequest: req, trail: trail{limits: req.Limits.WithDefaults(p.size)}, to: to,
		links: map[dirID]linkedFile{}, root: os.Geteuid() == 0}
}

// locate finds the places, of which no two may have one name.
func (p *Point) locate(list []string) ([]Place, error) {
	var places []Place
	names := map[string]string{}
	for _, name := range list {
		at, err := p.Locate(name, true)
		if err != nil {
			return nil, err
		}
		if b := base(at.Path); b != "" {
			if other, twice := names[b]; twice {
				return nil, fmt.Errorf("both %s and %s would be %s: %w", other, name, b, ErrExists)
			}
			names[b] = name
		}
		places = append(places, at)
	}
	return places, nil
}

// getter does the fetching. Its methods are safe for concurrent use except for those that walk.
type getter struct {
	GetRequest
	trail  trail
	root   bool // whether owners and devices can be made
	tree   *volume.Tree
	to     *target
	volume string // as the places were asked for

	links map[dirID]linkedFile // files with several names that were fetched; those are fetched one after the other

	mu          sync.Mutex
	report      Report
	done, total int64 // bytes of files that were found so far
	failures    failures
	lost        map[string]*loss
}

// linkedFile is where the first name of a file went.
type linkedFile struct {
	dir  []string // from the target on
	name string
}

// loss is a kind of thing that the target could not keep.
type loss struct {
	first string
	n     int
}

func (g *getter) fail(path string, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.failures.add(Join(g.volume, path), err)
}

// lose notes that something of a file is not kept, in words that name the kind of thing.
func (g *getter) lose(what, path string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.lost == nil {
		g.lost = map[string]*loss{}
	}
	if g.lost[what] == nil {
		g.lost[what] = &loss{first: Join(g.volume, path)}
	}
	g.lost[what].n++
}

func (g *getter) finish() Report {
	r := g.report
	r.Warnings = []string{}
	for what, l := range g.lost {
		more := ""
		if l.n > 1 {
			more = fmt.Sprintf(" and %d more", l.n-1)
		}
		r.Warnings = append(r.Warnings, fmt.Sprintf("%s: %s%s", what, l.first, more))
	}
	slices.Sort(r.Warnings)
	return r
}

func (g *getter) count(what *int64, n int64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	*what = plus(*what, n)
}

// advance says that n more bytes of files are behind us, and more that there are in all.
func (g *getter) advance(n, more int64) {
	g.mu.Lock()
	g.done, g.total = plus(g.done, n), plus(g.total, more)
	done, total := g.done, g.total
	g.mu.Unlock()
	if g.Progress != nil {
		g.Progress(done, total)
	}
}

func (g *getter) place(ctx context.Context, to *target, at Place) error {
	g.tree, g.volume = at.Tree, at.Volume
	g.trail.begin()
	attr, err := at.Node.Stat()
	if err != nil {
		g.fail(at.Path, err)
		return nil
	}
	name := base(at.Path)
	if name != "" && name != ".." {
		return g.one(ctx, to, name, at.Path, at.Node, attr)
	}
	if err := g.trail.enter(at.Path, at.Node); err != nil {
		return err
	}
	defer g.trail.leave()
	return g.children(ctx, to, at.Path, at.Node)
}

// one fetches a file of any kind, and what is below it.
func (g *getter) one(ctx context.Context, dir *target, name, path string, n volume.Node, attr filesystem.Attr) error {
	if err := ended(ctx); err != nil {
		return err
	}
	var err error
	if attr.Mode.IsDir() {
		err = g.directory(ctx, dir, name, path, n, attr)
	} else {
		err = g.leaf(ctx, dir, name, path, n, attr)
	}
	if err == nil || ctx.Err() != nil || fatal(err) {
		return err
	}
	g.fail(path, err)
	return nil
}

// fatal reports whether going on would be pointless.
func fatal(err error) bool {
	var l *LimitError
	return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) || errors.Is(err, unix.EROFS) ||
		errors.As(err, &l) && l.Limit != LimitDepth
}

// directory fetches a directory. While it is filled it is the caller's alone.
func (g *getter) directory(ctx context.Context, dir *target, name, path string, n volume.Node,
	attr filesystem.Attr) error {
	if err := g.trail.enter(path, n); err != nil {
		return err
	}
	defer g.trail.leave()
	sub, err := dir.mkdir(name, g.Force)
	if err != nil {
		return err
	}
	defer sub.close()
	if err := g.children(ctx, sub, path, n); err != nil {
		return err
	}
	g.count(&g.report.Directories, 1)
	if err := g.streams(ctx, dir, name, path, n, attr); err != nil {
		return err
	}
	return g.keep(dir, name, sub.fd, path, n, attr)
}

// children fetches what is in a directory that was entered.
func (g *getter) children(ctx context.Context, dir *target, path string, n volume.Node) error {
	return g.trail.list(ctx, g.tree, path, n, g.fail, func(part []filesystem.Entry) error {
		return g.part(ctx, dir, path, n, part)
	})
}

// part fetches some of what is in a directory: the files of it side by side, directories one after
// the other.
func (g *getter) part(ctx context.Context, dir *target, path string, n volume.Node, list []filesystem.Entry) error {
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(atOnce)
	var dirs []func() error
	for _, e := range list {
		if gctx.Err() != nil {
			break
		}
		below := childPath(path, e.Name)
		child, attr, err := g.look(n, e)
		if err != nil {
			g.fail(below, err)
			continue
		}
		if attr.Mode.IsDir() || attr.Links > 1 { // names of one file are found one after the other
			dirs = append(dirs, func() error { return g.one(ctx, dir, e.Name, below, child, attr) })
			continue
		}
		group.Go(func() error { return g.one(gctx, dir, e.Name, below, child, attr) })
	}
	if err := group.Wait(); err != nil {
		return err
	}
	for _, do := range dirs {
		if err := do(); err != nil {
			return err
		}
	}
	return nil
}

func (g *getter) look(dir volume.Node, e filesystem.Entry) (volume.Node, filesystem.Attr, error) {
	child, err := g.tree.Child(dir, e)
	if err != nil {
		return child, filesystem.Attr{}, err
	}
	attr, err := child.Stat()
	if err == nil && attr.Mode.IsRegular() {
		g.advance(0, attr.Size)
	}
	return child, attr, err
}

// leaf fetches a non-directory into a temporary name and renames it when complete.
func (g *getter) leaf(ctx context.Context, dir *target, name, path string, n volume.Node, attr filesystem.Attr) error {
	id := dirID{n.Volume, n.ID}
	if attr.Links > 1 {
		linked, err := g.link(dir, name, path, id)
		if linked && err == nil {
			g.countLeaf(attr)
			g.advance(attr.Size, 0)
		}
		if linked || err != nil {
			return err
		}
	}
	if attr.Mode&fs.ModeDevice != 0 && !g.device(path) {
		return nil
	}
	if err := g.make(ctx, dir, name, path, n, attr); err != nil {
		return err
	}
	g.countLeaf(attr)
	if attr.Links > 1 {
		g.links[id] = linkedFile{dir.names, name}
	}
	return nil
}

func (g *getter) countLeaf(attr filesystem.Attr) {
	if attr.Mode.IsRegular() {
		g.count(&g.report.Files, 1)
		g.count(&g.report.Bytes, attr.Size)
		return
	}
	g.count(&g.report.Others, 1)
}

// link makes name a second name of a file that was fetched already; false if it was not.
func (g *getter) link(dir *target, name, path string, id dirID) (bool, error) {
	first, ok := g.links[id]
	if !ok {
		return false, nil
	}
	from, err := g.to.below(first.dir)
	if err != nil {
		return false, err
	}
	defer from.close()
	err = dir.place(name, g.Force, func(temp string) error {
		return unix.Linkat(from.fd, first.name, dir.fd, temp, 0)
	})
	if errors.Is(err, unix.EMLINK) || errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOTSUP) {
		g.lose("hard links are not kept, each name has a copy", path)
		return false, nil
	}
	return true, err
}

// make makes a file that is not a directory in its place.
func (g *getter) make(ctx context.Context, dir *target, name, path string, n volume.Node, attr filesystem.Attr) error {
	switch attr.Mode.Type() {
	case 0:
		if err := g.streams(ctx, dir, name, path, n, attr); err != nil {
			return err
		}
		f, err := n.FS.Open(n.ID)
		if err != nil {
			return err
		}
		return g.regular(ctx, dir, name, path, f, n, attr)
	case fs.ModeSymlink:
		to, err := n.FS.ReadLink(n.ID)
		if err != nil {
			return err
		}
		return dir.place(name, g.Force, func(temp string) error {
			if err := unix.Symlinkat(to, dir.fd, temp); err != nil {
				return fmt.Errorf("make a symbolic link to %q: %w", to, err)
			}
			return g.keep(dir, temp, -1, path, n, attr)
		})
	}
	return g.special(dir, name, path, n, attr)
}

// device reports whether a device is to be made.
func (g *getter) device(path string) bool {
	switch {
	case !g.AsStored:
		g.count(&g.report.Dropped.Devices, 1)
	case !g.root:
		g.lose("devices are left out, only root can make them", path)
	default:
		return true
	}
	return false
}

// special makes devices, pipes and sockets.
func (g *getter) special(dir *target, name, path string, n volume.Node, attr filesystem.Attr) error {
	mode := unixMode(attr.Mode)
	switch {
	case attr.Mode&fs.ModeNamedPipe != 0:
		mode |= unix.S_IFIFO
	case attr.Mode&fs.ModeSocket != 0:
		mode |= unix.S_IFSOCK
	case attr.Mode&fs.ModeCharDevice != 0:
		mode |= unix.S_IFCHR
	case attr.Mode&fs.ModeDevice != 0:
		mode |= unix.S_IFBLK
	default:
		return fmt.Errorf("%w: a file of no kind that is known", filesystem.ErrUnsupported)
	}
	major, minor := device(attr.Rdev)
	return dir.place(name, g.Force, func(temp string) error {
		if err := unix.Mknodat(dir.fd, temp, mode, int(unix.Mkdev(major, minor))); err != nil {
			return fmt.Errorf("make it: %w", err)
		}
		return g.keep(dir, temp, -1, path, n, attr)
	})
}
