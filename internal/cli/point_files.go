package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime/debug"
	"strconv"

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

const fileStatuses = "3 damage found, 5 wrong key or not a vault, 130 interrupted"

// fileCache is how much of the disks is kept in memory while files are read.
const fileCache = 128 << 20

// withFiles runs do with the files of the point that ref names. The point stays readable until do
// returns, even if it is deleted.
func (a *app) withFiles(ctx context.Context, ref string,
	do func(p *point.RecoveryPoint, disks []volume.Disk) error) error {
	if a.env.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(leanMemory + fileCache)
	}
	return a.withPoint(ctx, ref, func(v *vault.Vault, p *point.RecoveryPoint) error {
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
		return errors.Join(do(p, disks), server.Close())
	})
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
	n := int(min(int64(len(p)), r.size-off))
	if err := r.disk.ReadAt(r.ctx, p[:n], off); err != nil {
		return 0, err
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (a *app) pointLs() *cobra.Command {
	var recursive, itself bool
	cmd := command{
		use: "ls POINT [PATH] [-R]", short: "List the volumes of a recovery point, or the files in a directory",
		args: cobra.RangeArgs(1, 2),
		long: pointArgHelp + `

Without a PATH, all that can hold files is listed: partitions, logical volumes, whole disks;
what can not be read with the reason.
` + placeHelp,
		examples: `
holdfast --vault /srv/vault point ls web@latest
holdfast --vault /srv/vault point ls web@latest /var/lib
holdfast --vault /srv/vault point ls 3fa9 vdb1:/ -R --json`,
		statuses: fileStatuses,
		run: func(cmd *cobra.Command, args []string) error {
			return a.withFiles(cmd.Context(), args[0], func(p *point.RecoveryPoint, disks []volume.Disk) error {
				opened := files.Open(disks)
				if len(args) == 1 {
					return a.listVolumes(opened)
				}
				list, err := opened.List(cmd.Context(),
					files.ListRequest{Name: args[1], Recursive: recursive, Itself: itself})
				if list == nil && err != nil {
					return fmt.Errorf("list files of point %s of %s: %w", p.ID.Short(), p.VM, err)
				}
				return errors.Join(a.printFiles(list, recursive), err)
			})
		},
	}.build()
	cmd.Flags().BoolVarP(&recursive, "recursive", "R", false, "all that is below, too")
	cmd.Flags().BoolVarP(&itself, "directory", "d", false, "the directory itself, not what is in it")
	cmd.ValidArgsFunction = a.completePoints
	return cmd
}

// ListedVolumes is what point ls --json prints without a path.
type ListedVolumes struct {
	Volumes []files.VolumeInfo `json:"volumes"`
	Guest   *ListedGuest       `json:"guest"` // null where no operating system was found
	Notes   []string           `json:"notes"`
}

// ListedGuest is the machine's own tree.
type ListedGuest struct {
	Windows bool          `json:"windows"`
	Mounts  []ListedMount `json:"mounts"`
}

// ListedMount is a volume in its place in the machine's tree.
type ListedMount struct {
	Path   string `json:"path"`
	Volume string `json:"volume,omitempty"` // missing where it is on none of the disks
	Reason string `json:"reason,omitempty"` // why it can not be read
}

func (a *app) listVolumes(opened *files.Point) error {
	doc := ListedVolumes{Volumes: orEmpty(opened.Describe()), Notes: orEmpty(opened.Volumes().Notes)}
	if g, err := opened.Volumes().Guest(); err == nil {
		doc.Guest = &ListedGuest{Windows: g.Windows}
		for _, m := range g.Mounts {
			listed := ListedMount{Path: m.Path}
			if m.Volume != nil {
				listed.Volume = m.Volume.Name
			}
			if m.Err != nil {
				listed.Reason = m.Err.Error()
			}
			doc.Guest.Mounts = append(doc.Guest.Mounts, listed)
		}
		doc.Notes = append(doc.Notes, g.Notes...)
	}
	if a.json {
		return a.printJSON(doc)
	}
	var rows [][]string
	for _, v := range doc.Volumes {
		used, state := "", string(v.State)
		if v.Used > 0 {
			used = humanSize(v.Used)
		}
		if v.Reason != "" {
			state += ": " + oneLine(v.Reason)
		}
		rows = append(rows, []string{v.Name, v.Type, humanSize(v.Size), used, v.Label, v.Mounted, state})
	}
	a.warn(doc.Notes)
	return a.printTable([]string{"volume", "type", ">size", ">used", "label", "mounted", "state"}, rows)
}

// printFiles prints a listing; of what is below several directories with whole paths.
func (a *app) printFiles(list []files.Entry, paths bool) error {
	if a.json {
		return a.printJSON(orEmpty(list))
	}
	var rows [][]string
	for _, e := range list {
		name, size := e.Name, strconv.FormatInt(e.Size, 10)
		if paths {
			name = e.Path
		}
		if e.Type == "device" {
			size = fmt.Sprintf("%d, %d", e.Major, e.Minor)
		}
		if e.Reason != "" {
			rows = append(rows, []string{"??????????", "", "", "", "", "", printable(name) + " (" + oneLine(e.Reason) +
				")"})
			continue
		}
		rows = append(rows, []string{modeText(e), strconv.FormatUint(uint64(e.Links), 10),
			strconv.FormatUint(uint64(e.UID), 10),
			strconv.FormatUint(uint64(e.GID), 10), size, fileTime(e), printable(name) + linkText(e)})
	}
	return a.printTable([]string{"mode", ">links", ">uid", ">gid", ">size", "modified (UTC)", "name"}, rows)
}

func fileTime(e files.Entry) string {
	if e.Modified.IsZero() {
		return ""
	}
	return humanTime(e.Modified)
}

func linkText(e files.Entry) string {
	if e.Type != "symlink" {
		return ""
	}
	return " -> " + printable(e.Target)
}

// modeText is the ten letters of ls.
func modeText(e files.Entry) string {
	out := []byte("-rwxrwxrwx")
	switch e.Type {
	case "directory":
		out[0] = 'd'
	case "symlink":
		out[0] = 'l'
	case "fifo":
		out[0] = 'p'
	case "socket":
		out[0] = 's'
	case "device":
		out[0] = 'b'
		if e.CharDevice() {
			out[0] = 'c'
		}
	}
	mode, _ := strconv.ParseUint(e.Mode, 8, 32)
	for i := range 9 {
		if mode>>(8-i)&1 == 0 {
			out[1+i] = '-'
		}
	}
	for i, set := range []byte("sst") {
		if mode>>(11-i)&1 == 0 {
			continue
		}
		at := 3 + 3*i
		if out[at] == '-' {
			set -= 'a' - 'A'
		}
		out[at] = set
	}
	return string(out)
}

// printable keeps a name that a guest made up from doing things to a terminal.
func printable(name string) string {
	for _, r := range name {
		if !strconv.IsPrint(r) {
			quoted := strconv.Quote(name)
			return quoted[1 : len(quoted)-1]
		}
	}
	return name
}

func (a *app) pointFind() *cobra.Command {
	var vol string
	cmd := command{
		use: "find POINT PATTERN [--volume VOLUME]", short: "Find files in a recovery point by name or path",
		args: cobra.ExactArgs(2),
		long: pointArgHelp + `

PATTERN is of a name (*.conf), of the end of a path (nginx/*.conf) or of a whole path
(/etc/**/*.conf). * and ? stand for characters of a name, [a-z] for one of several, ** for any
number of directories. vdb1:/home/*.txt, or --volume vdb1, searches one volume. Without either
the machine's own tree is searched, and all volumes that are not in it.`,
		examples: `
holdfast --vault /srv/vault point find web@latest '*.pem'
holdfast --vault /srv/vault point find web@latest '/home/**/.ssh/*' --json
holdfast --vault /srv/vault point find 3fa9 'report-20??.ods' --volume vdb1`,
		statuses: fileStatuses,
		run: func(cmd *cobra.Command, args []string) error {
			return a.findFiles(cmd.Context(), args[0], args[1], vol)
		},
	}.build()
	cmd.Flags().StringVar(&vol, "volume", "", "`name` of the one volume to search")
	cmd.ValidArgsFunction = a.completePoints
	return cmd
}

func (a *app) findFiles(ctx context.Context, ref, pattern, vol string) error {
	return a.withFiles(ctx, ref, func(p *point.RecoveryPoint, disks []volume.Disk) error {
		var list []files.Entry
		err := files.Open(disks).Find(ctx,
			files.FindRequest{Pattern: pattern, Volume: vol, Found: func(e files.Entry) error {
				if !a.json {
					return a.println(printable(e.Path))
				}
				list = append(list, e)
				return nil
			}})
		if err != nil {
			err = fmt.Errorf("search point %s of %s: %w", p.ID.Short(), p.VM, err)
		}
		var some *files.Incomplete
		if a.json && (err == nil || errors.As(err, &some)) {
			err = errors.Join(a.printJSON(orEmpty(list)), err)
		}
		return err
	})
}
