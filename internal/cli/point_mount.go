package cli

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"

	"github.com/spf13/cobra"

	"github.com/holdfast-vm/holdfast/internal/files"
	"github.com/holdfast-vm/holdfast/internal/files/mount"
	"github.com/holdfast-vm/holdfast/internal/filesystem/volume"
	"github.com/holdfast-vm/holdfast/internal/point"
)

func (a *app) pointMount() *cobra.Command {
	var others bool
	limits := &fileLimits{}
	cmd := command{
		use: "mount POINT DIR", short: "Show a recovery point as a directory, until interrupted",
		args: cobra.ExactArgs(2),
		long: pointArgHelp + `

DIR shows, read-only:
  disks/vda         each disk as a file
  volumes/vda1/     the files of each volume that can be read; volumes/vg0/root/ of a logical one
  root/             what the machine itself would show, its file systems mounted in each other

The command stays in the foreground and ends when it is interrupted or DIR is unmounted. It
needs FUSE: /dev/fuse, and for other users than root fusermount3.`,
		examples: `
holdfast --vault /srv/vault point mount web@latest /mnt/web
holdfast --vault /srv/vault point mount 3fa9 ~/point & diff -r ~/point/root/etc /etc`,
		statuses: vaultStatuses, reads: true,
		run: func(cmd *cobra.Command, args []string) error {
			most, err := limits.parse(cmd)
			if err != nil {
				return err
			}
			return a.withFiles(cmd.Context(), 0, args[0], func(ctx context.Context, p *point.RecoveryPoint,
				disks []volume.Disk) error {
				if err := a.mountPoint(ctx, p, disks, args[1],
					mount.Options{AllowOther: others, Limits: most}); err != nil {
					return fmt.Errorf("mount point %s of %s: %w", p.ID.Short(), p.VM, err)
				}
				return nil
			})
		},
	}.build()
	cmd.Flags().BoolVar(&others, "allow-other", false,
		"let other users look, as far as the permissions in the point go")
	limits.dirFlags(cmd)
	cmd.ValidArgsFunction = a.completePoints
	return cmd
}

// Mounted is what point mount --json prints when the point can be used.
type Mounted struct {
	ID      point.ID `json:"id"`
	VM      string   `json:"vm"`
	Dir     string   `json:"dir"`
	Disks   []string `json:"disks"`
	Volumes []string `json:"volumes"` // that can be read
	Root    bool     `json:"root"`    // whether root/ is there
}

func (a *app) mountPoint(ctx context.Context, p *point.RecoveryPoint, disks []volume.Disk, dir string,
	o mount.Options) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	opened := files.Open(ctx, disks)
	o.Source, o.Time, o.Trouble = "holdfast:"+p.VM+"@"+p.ID.Short(), p.Time, a.troubles()
	m, err := mount.New(dir, disks, opened, o)
	if err != nil {
		return withHint(err, "`holdfast point get` fetches files without it; a mount that was left behind is removed "+
			"by `fusermount3 -u DIR`")
	}
	ended := make(chan struct{})
	go func() {
		m.Wait()
		close(ended)
	}()
	if err := a.printMounted(p, dir, opened, m); err != nil {
		return errors.Join(err, m.Unmount())
	}
	select {
	case <-ended:
		return nil
	case <-ctx.Done():
	}
	if err := m.Unmount(); err != nil {
		a.remark("warning: %s", oneLine(err.Error()))
		return nil
	}
	<-ended
	return nil
}

func (a *app) printMounted(p *point.RecoveryPoint, dir string, opened *files.Point, m *mount.Mount) error {
	if a.json {
		return a.printJSON(Mounted{ID: p.ID, VM: p.VM, Dir: dir, Disks: orEmpty(m.Disks), Volumes: orEmpty(m.Volumes),
			Root: m.Root})
	}
	for _, v := range opened.Describe() {
		if v.State != files.Readable && v.State != files.NoFiles {
			a.remark("warning: %s is not shown: %s", v.Name, oneLine(v.Reason))
		}
	}
	return a.println(fmt.Sprintf("mounted point %s of %s as of %s UTC on %s: %s, %s; interrupt to unmount",
		p.ID.Short(), p.VM,
		humanTime(p.Time), dir, counted(len(m.Disks), "disk"), counted(len(m.Volumes), "volume")))
}

// troubles returns what tells of files that cannot be read, each once.
func (a *app) troubles() func(where string, err error) {
	var mu sync.Mutex
	told := map[string]bool{}
	return func(where string, err error) {
		mu.Lock()
		defer mu.Unlock()
		const most = 1000
		if !told[where] && len(told) < most {
			told[where] = true
			text := oneLine(err.Error())
			var l *files.LimitError
			if errors.As(err, &l) {
				text += " (" + limitFlags[l.Limit] + " raises that)"
			}
			a.remark("warning: %s: %s", where, text)
		}
	}
}
