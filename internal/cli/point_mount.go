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
		statuses: vaultStatuses,
		run: func(cmd *cobra.Command, args []string) error {
			return a.withFiles(cmd.Context(), args[0], func(p *point.RecoveryPoint, disks []volume.Disk) error {
				if err := a.mountPoint(cmd.Context(), p, disks, args[1], others); err != nil {
					return fmt.Errorf("mount point %s of %s: %w", p.ID.Short(), p.VM, err)
				}
				return nil
			})
		},
	}.build()
	cmd.Flags().BoolVar(&others, "allow-other", false,
		"let other users look, as far as the permissions in the point go")
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
	others bool) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	opened := files.Open(disks)
	m, err := mount.New(dir, disks, opened, mount.Options{
		Source: "holdfast:" + p.VM + "@" + p.ID.Short(), Time: p.Time, AllowOther: others, Trouble: a.troubles(),
	})
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

// troubles returns what tells of files that can not be read, each once.
func (a *app) troubles() func(where string, err error) {
	var mu sync.Mutex
	told := map[string]bool{}
	return func(where string, err error) {
		mu.Lock()
		defer mu.Unlock()
		const most = 1000
		if !told[where] && len(told) < most {
			told[where] = true
			a.remark("warning: %s: %s", where, oneLine(err.Error()))
		}
	}
}
