package cli

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/holdfast-vm/holdfast/internal/files"
	"github.com/holdfast-vm/holdfast/internal/filesystem/volume"
	"github.com/holdfast-vm/holdfast/internal/point"
)

func (a *app) pointLs() *cobra.Command {
	var req files.ListRequest
	limits := &fileLimits{}
	cmd := command{
		use: "ls POINT [PATH] [-R]", short: "List the volumes of a recovery point, or the files in a directory",
		args: cobra.RangeArgs(1, 2),
		long: pointArgHelp + `

Without a PATH, all that can hold files is listed: partitions, logical volumes, whole disks;
what cannot be read with the reason.
` + placeHelp,
		examples: `
holdfast --vault /srv/vault point ls web@latest
holdfast --vault /srv/vault point ls web@latest /var/lib
holdfast --vault /srv/vault point ls 3fa9 vdb1:/ -R --json`,
		statuses: fileStatuses, reads: true,
		run: func(cmd *cobra.Command, args []string) (err error) {
			if req.Limits, err = limits.parse(cmd); err != nil {
				return err
			}
			return a.withFiles(cmd.Context(), limits.time, args[0], func(ctx context.Context, p *point.RecoveryPoint,
				disks []volume.Disk) error {
				opened := files.Open(ctx, disks)
				if len(args) == 1 {
					return a.listVolumes(ctx, opened)
				}
				req.Name = args[1]
				if err := a.listFiles(ctx, opened, req); err != nil {
					return fmt.Errorf("list files of point %s of %s: %w", p.ID.Short(), p.VM, err)
				}
				return nil
			})
		},
	}.build()
	cmd.Flags().BoolVarP(&req.Recursive, "recursive", "R", false, "all that is below, too")
	cmd.Flags().BoolVarP(&req.Itself, "directory", "d", false, "the directory itself, not what is in it")
	limits.flags(cmd, lookTime)
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
	Reason string `json:"reason,omitempty"` // why it cannot be read
}

func (a *app) listVolumes(ctx context.Context, opened *files.Point) error {
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
	if ctx.Err() != nil { // what could not be read then is not the volumes' fault
		return context.Cause(ctx)
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

// listFiles prints a listing as it comes; of what is below several directories with whole paths.
func (a *app) listFiles(ctx context.Context, opened *files.Point, req files.ListRequest) error {
	const page = 5000 // rows that are put in columns together
	out := &jsonList{out: a.env.Stdout}
	table := a.newTable("mode", ">links", ">uid", ">gid", ">size", "modified (UTC)", "name")
	var rows [][]string
	req.Listed = func(e files.Entry) error {
		if a.json {
			return out.add(e)
		}
		if rows = append(rows, fileRow(e, req.Recursive)); len(rows) < page {
			return nil
		}
		err := table.print(rows)
		rows = nil
		return err
	}
	err := opened.List(ctx, req)
	var some *files.Incomplete
	switch {
	case err != nil && !errors.As(err, &some) && !errors.Is(err, files.ErrLimit) && out.n == 0 && len(rows) == 0 &&
		!table.begun:
		return err
	case a.json:
		return errors.Join(err, out.end())
	}
	return errors.Join(err, table.print(rows))
}

func fileRow(e files.Entry, paths bool) []string {
	name, size := e.Name, strconv.FormatInt(e.Size, 10)
	if paths {
		name = e.Path
	}
	if e.Type == "device" {
		size = fmt.Sprintf("%d, %d", e.Major, e.Minor)
	}
	if e.Reason != "" {
		return []string{"??????????", "", "", "", "", "", name + " (" + oneLine(e.Reason) + ")"}
	}
	return []string{modeText(e), strconv.FormatUint(uint64(e.Links), 10), strconv.FormatUint(uint64(e.UID), 10),
		strconv.FormatUint(uint64(e.GID), 10), size, fileTime(e), name + linkText(e)}
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
	return " -> " + e.Target
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
