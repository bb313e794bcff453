package restore

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"

	"github.com/holdfast-vm/holdfast/internal/export"
	"github.com/holdfast-vm/holdfast/internal/hypervisor"
	"github.com/holdfast-vm/holdfast/internal/nbd"
)

// instantExport serves the disks of the point on a unix socket.
type instantExport struct {
	server *export.Server // nil if nothing needs to be served any more
	cancel context.CancelFunc
	ended  chan struct{}
	err    error // why it ended; to be read when ended is closed
}

func exportURI(socket, disk string) string {
	return nbd.URI(&net.UnixAddr{Name: socket, Net: "unix"}, disk, false)
}

func shortHash(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:8])
}

// serve begins to serve the point's disks where the machine looks for them.
func (i *instant) serve(ctx context.Context) (*instantExport, error) {
	x := &instantExport{ended: make(chan struct{}), cancel: func() {}}
	if i.st.Step == InstantCleaning || i.st.Step == InstantAbandoning {
		close(x.ended)
		return x, nil
	}
	if i.v == nil {
		return nil, errors.New("the vault with the machine's disks is needed")
	}
	server, err := export.Open(ctx, i.v, export.Options{})
	if err != nil {
		return nil, err
	}
	l, err := i.listen(ctx)
	if err == nil {
		err = i.addDisks(ctx, server)
	}
	if err != nil {
		if l != nil {
			l.Close()
		}
		return nil, errors.Join(fmt.Errorf("serve the disks of point %s: %w", i.st.Point.ID.Short(), err),
			server.Close())
	}
	x.server = server
	ctx, x.cancel = context.WithCancel(context.WithoutCancel(ctx)) // a machine that is being moved needs it to the end
	go func() {
		x.err = server.Serve(ctx, l)
		close(x.ended)
	}()
	return x, nil
}

func (i *instant) addDisks(ctx context.Context, server *export.Server) error {
	for _, d := range i.st.Disks {
		if _, err := server.Add(ctx, export.Request{Point: &i.st.Point, Disk: d.Disk, Name: d.Disk,
			RecordBoot: i.st.Start}); err != nil {
			return err
		}
	}
	return nil
}

// listen makes the socket, for this process' user and that of the machines.
func (i *instant) listen(ctx context.Context) (net.Listener, error) {
	path := i.st.Socket
	if info, err := os.Lstat(path); err == nil && info.Mode().Type() != fs.ModeSocket {
		return nil, fmt.Errorf("%s is in the way of the export's socket", path)
	}
	if err := removeIfThere(path); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o711); err != nil {
		return nil, err
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	err = os.Chmod(path, 0o600)
	if o, ok := i.host.(hypervisor.Owner); ok && err == nil {
		var uid, gid int
		if uid, gid, err = o.MachineOwner(ctx); err == nil {
			err = os.Chown(path, uid, gid)
		}
	}
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// close ends the export.
func (x *instantExport) close() error {
	x.cancel()
	<-x.ended
	if x.server == nil {
		return nil
	}
	return errors.Join(x.err, x.server.Close())
}

// over returns why the export has ended, nil while it serves.
func (x *instantExport) over() error {
	select {
	case <-x.ended:
		if x.err == nil {
			return errors.New("the export has ended")
		}
		return fmt.Errorf("the export has ended: %w", x.err)
	default:
		return nil
	}
}
