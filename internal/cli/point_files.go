package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime/debug"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdfast-vm/holdfast/internal/export"
	"github.com/holdfast-vm/holdfast/internal/files"
	"github.com/holdfast-vm/holdfast/internal/filesystem/volume"
	"github.com/holdfast-vm/holdfast/internal/nbd"
	"github.com/holdfast-vm/holdfast/internal/point"
	"github.com/holdfast-vm/holdfast/internal/vault"
)

const placeHelp = `
A PATH such as /etc/hosts is what the machine itself would find there, with its file systems
mounted as its /etc/fstab says; vda1:/hosts and vg0/root:/etc/hosts are in one volume.`

const fileStatuses = "3 damage found, " + vaultStatuses + ", 130 interrupted"

const (
	fileCache = 128 << 20          // bytes of the disks that are kept in memory while files are read
	lookTime  = 24 * time.Hour     // that listing or searching may take
	fetchTime = 7 * 24 * time.Hour // that fetching may take
)

// fileLimits are the flags that bound what goes through a guest's files.
type fileLimits struct {
	entries int64
	depth   int
	size    string
	time    time.Duration
}

// flags adds them to a command that goes through a whole tree, and has so much time for that.
func (l *fileLimits) flags(cmd *cobra.Command, most time.Duration) {
	l.dirFlags(cmd)
	cmd.Flags().DurationVar(&l.time, "max-time", most, "`time` after which it is given up")
}

// dirFlags adds those that are of directories.
func (l *fileLimits) dirFlags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.Int64Var(&l.entries, "max-entries", files.DefaultEntries, "`number` of entries that directories may hold")
	f.IntVar(&l.depth, "max-depth", files.DefaultDepth, "`number` of directories that may be in each other")
}

func (l *fileLimits) parse(cmd *cobra.Command) (files.Limits, error) {
	out := files.Limits{Entries: l.entries, Depth: l.depth}
	if l.entries <= 0 || l.depth <= 0 || l.time < 0 || l.time == 0 && cmd.Flags().Lookup("max-time") != nil {
		return out, usagef("%s: a limit must be more than nothing", verbOf(cmd))
	}
	if l.size == "" {
		return out, nil
	}
	var err error
	if out.Bytes, err = parseSize(l.size); err != nil || out.Bytes == 0 {
		return out, usagef("%s: --max-size %q is not a size such as 512MiB or 1GiB", verbOf(cmd), l.size)
	}
	return out, nil
}

// limitFlags are the flags that raise limits.
var limitFlags = map[files.Limit]string{
	files.LimitEntries: "--max-entries", files.LimitDepth: "--max-depth", files.LimitBytes: "--max-size",
	files.LimitTime: "--max-time",
}

// fileWork is done with the files of a point, until ctx ends.
type fileWork func(ctx context.Context, p *point.RecoveryPoint, disks []volume.Disk) error

// withFiles runs do with the files of the point that ref names, for as long as most says if that is
// not 0. The point stays readable until do returns, even if it is deleted.
func (a *app) withFiles(ctx context.Context, most time.Duration, ref string, do fileWork) error {
	if a.env.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(leanMemory + fileCache)
	}
	if most > 0 {
		over := &files.LimitError{Limit: files.LimitTime, Text: fmt.Sprintf("it took more than %v", most)}
		limited, cancel := context.WithTimeoutCause(ctx, most, over)
		defer cancel()
		ctx = limited
	}
	err := a.withPoint(ctx, ref, func(v *vault.Vault, p *point.RecoveryPoint) error {
		if err := p.RequireDisks(); err != nil {
			return fmt.Errorf("look into point %s: %w", p.ID.Short(), err)
		}
		server, err := export.Open(ctx, v, export.Options{CacheSize: fileCache})
		if err != nil {
			return fmt.Errorf("open the disks of point %s: %w", p.ID.Short(), err)
		}
		var disks []volume.Disk
		for _, d := range p.Disks {
			e, err := server.Add(ctx, export.Request{Point: p, Disk: d.Name})
			if err != nil {
				return errors.Join(err, server.Close())
			}
			disks = append(disks, volume.Disk{Name: d.Name, Size: e.Size, Reader: diskReader{ctx, e.Backend, e.Size}})
		}
		return errors.Join(do(ctx, p, disks), server.Close())
	})
	if cause := context.Cause(ctx); err != nil && errors.Is(cause, files.ErrLimit) && !errors.Is(err, files.ErrLimit) {
		err = fmt.Errorf("%w: %w", cause, err)
	}
	return err
}

// diskReader reads an exported disk as file systems want it.
type diskReader struct {
	ctx  context.Context
	disk nbd.Backend
	size int64
}

func (r diskReader) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off > r.size {
		return 0, io.EOF
	}
	if r.ctx.Err() != nil { // also where all that is read is in memory
		return 0, context.Cause(r.ctx)
	}
	n := int(min(int64(len(p)), r.size-off))
	if err := r.disk.ReadAt(r.ctx, p[:n], off); err != nil {
		return 0, err
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}
