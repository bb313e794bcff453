package drill

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/holdfast-vm/holdfast/internal/export"
	"github.com/holdfast-vm/holdfast/internal/hypervisor"
	"github.com/holdfast-vm/holdfast/internal/nbd"
	"github.com/holdfast-vm/holdfast/internal/point"
	"github.com/holdfast-vm/holdfast/internal/qcow2"
)

// discardTime is what the removal of everything may take.
const discardTime = 2 * time.Minute

// disks serves the disks of the point to the machine.
type disks struct {
	server *export.Server
	cancel context.CancelFunc
	ended  chan struct{}
	err    error // why it ended; to be read when ended is closed
}

// over returns why the disks are not served any more, nil while they are.
func (d *disks) over() error {
	select {
	case <-d.ended:
		return errors.Join(errors.New("it has ended"), d.err)
	default:
		return nil
	}
}

// read returns how many bytes of the disks were read.
func (d *disks) read() int64 {
	if d.server == nil {
		return 0
	}
	return d.server.Stats().ReadBytes
}

func (d *disks) close() error {
	d.cancel()
	<-d.ended
	return errors.Join(d.err, d.server.Close())
}

// prepare makes the place of the drill, opens the host and serves the disks.
func (r *run) prepare(ctx context.Context) error {
	var err error
	if r.note, err = newNote(r.req, r.o.Now()); err != nil {
		return err
	}
	r.res.Machine, r.res.Host = r.note.Name, r.note.Host
	if r.req.Point.Definition.Kind == point.ForQEMU {
		r.res.Host = "plain QEMU"
	}
	if r.host, err = r.o.Open(r.note.Host); err != nil {
		return fmt.Errorf("open host %s: %w", r.note.Host, err)
	}
	if r.req.Point.Definition.Kind != point.ForQEMU {
		if _, err := r.host.Machines(ctx); err != nil { // before anything is made
			return fmt.Errorf("ask %s: %w: %w", r.note.Host, hypervisor.ErrUnreachable, err)
		}
	}
	if err := r.foresee(ctx); err != nil {
		return err
	}
	if r.place, err = makePlace(r.req.StateDir, r.note); err != nil {
		return err
	}
	return r.serve(ctx)
}

// serve begins to serve the disks.
func (r *run) serve(ctx context.Context) error {
	server, err := export.Open(ctx, r.v, export.Options{})
	if err != nil {
		return err
	}
	for _, d := range r.req.Point.Disks {
		if _, err := server.Add(ctx, export.Request{Point: r.req.Point, Disk: d.Name, Name: d.Name,
			RecordBoot: true}); err != nil {
			return errors.Join(fmt.Errorf("serve disk %s: %w", d.Name, err), server.Close())
		}
	}
	l, err := r.listen(ctx)
	if err != nil {
		return errors.Join(err, server.Close())
	}
	serving, cancel := context.WithCancel(context.WithoutCancel(ctx)) // it is needed until the machine is gone
	d := &disks{server: server, cancel: cancel, ended: make(chan struct{})}
	go func() {
		d.err = server.Serve(serving, l)
		close(d.ended)
	}()
	r.disks = d
	return nil
}

// listen makes the export's socket, for this process' user and that of the machine.
func (r *run) listen(ctx context.Context) (net.Listener, error) {
	path := r.note.path("nbd")
	l, err := export.ListenUnix(path, 0o600)
	if err != nil {
		return nil, err
	}
	if o, ok := r.host.(hypervisor.Owner); ok {
		uid, gid, err := o.MachineOwner(ctx)
		if err == nil {
			err = os.Chown(path, uid, gid)
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("let the machine connect to its disks: %w", err), l.Close())
		}
	}
	return l, nil
}

// rebuild makes what the machine needs and returns what to ask of the host.
func (r *run) rebuild(ctx context.Context) (hypervisor.Rebuild, error) {
	p := r.req.Point
	out := hypervisor.Rebuild{
		Point: p, Name: r.note.Name, UUID: r.note.UUID, StorageDir: r.note.Dir, Isolated: true, Held: true, Start: true,
		Accel: r.req.Accel,
		Disks: map[string]string{}, Formats: map[string]string{}, Backing: map[string]string{},
		Files: map[string]string{},
	}
	socket := r.note.path("nbd")
	for _, d := range p.Disks {
		overlay := filepath.Join(r.note.Dir, "disk-"+d.Name+".qcow2")
		if !filepath.IsLocal(d.Name) {
			return out, fmt.Errorf("%q is no name for a disk's file", d.Name)
		}
		backing := fmt.Sprintf(`json:{"driver":"raw","file":{"driver":"nbd","export":%q,"server":{"type":"unix","path":%q}}}`, d.Name, socket)
		if err := qcow2.Create(overlay, d.Size,
			qcow2.CreateOptions{BackingFile: backing, BackingFormat: "raw"}); err != nil {
			return out, fmt.Errorf("make the overlay of disk %s: %w", d.Name, err)
		}
		out.Disks[d.Name], out.Formats[d.Name] = overlay, "qcow2"
		out.Backing[d.Name] = nbd.URI(&net.UnixAddr{Name: socket, Net: "unix"}, d.Name, false)
	}
	for _, f := range p.Files {
		path, err := r.writeFile(ctx, f)
		if err != nil {
			return out, fmt.Errorf("write %s file %s: %w", f.Role, f.Name, err)
		}
		out.Files[f.Role+"/"+f.Name] = path
	}
	return out, nil
}

// writeFile writes a small file of the machine. Names come from a point and may not lead out of the
// directory.
func (r *run) writeFile(ctx context.Context, f point.File) (string, error) {
	name := f.Name
	if name == "" {
		name = filepath.Base(f.Path)
	}
	if !filepath.IsLocal(name) || !filepath.IsLocal(f.Role) {
		return "", fmt.Errorf("%q is no name for a file of a machine", f.Role+"/"+name)
	}
	path := filepath.Join(r.note.Dir, f.Role, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o711); err != nil {
		return "", err
	}
	disk, err := r.v.OpenDisk(f.Root, f.Size)
	if err != nil {
		return "", err
	}
	mode := fs.FileMode(0o600)
	if f.Mode != 0 {
		mode = fs.FileMode(f.Mode).Perm() | 0o600
	}
	out, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return "", err
	}
	_, err = io.Copy(out, &contextReader{ctx, io.NewSectionReader(disk, 0, f.Size)})
	return path, errors.Join(err, out.Close())
}

// contextReader stops reading when ctx ends.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c *contextReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}

// discard removes everything, also when ctx has ended. What it cannot remove stays noted.
func (r *run) discard(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), discardTime)
	defer cancel()
	var err error
	if r.place != nil {
		err = r.persist(ctx, func() error { return r.note.removeMachine(ctx, r.host) })
	}
	if r.host != nil {
		err = errors.Join(err, r.host.Close())
	}
	if r.disks != nil {
		err = errors.Join(err, r.disks.close())
	}
	if r.place == nil {
		return err
	}
	if err != nil {
		r.place.leave()
		return err
	}
	return r.place.remove()
}
