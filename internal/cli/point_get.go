package cli

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/holdfast-vm/holdfast/internal/files"
	"github.com/holdfast-vm/holdfast/internal/filesystem/volume"
	"github.com/holdfast-vm/holdfast/internal/point"
)

func (a *app) pointGet() *cobra.Command {
	var to string
	var force bool
	cmd := command{
		use: "get POINT PATH... --to DIR [--force]", short: "Fetch files and directories out of a recovery point",
		args: cobra.MinimumNArgs(2),
		long: pointArgHelp + `
` + placeHelp + `

Directories are fetched with all below them. Holes, times, modes, extended attributes and links
are kept, as root also owners and devices; what DIR can not keep is a warning. Streams of NTFS
files become files NAME:STREAM beside them. A PATH that is a symbolic link is followed, links
below it stay links. Nothing is written outside DIR.

A file appears when it is complete. Files that can not be read are named at the end, and the
others are fetched. With --to - a single file goes to standard output.`,
		examples: `
holdfast --vault /srv/vault point get web@latest /etc/nginx /var/www --to /tmp/web
holdfast --vault /srv/vault point get 3fa9 vdb1:/report.ods --to .
holdfast --vault /srv/vault point get 3fa9 /var/lib/dump.sql --to - | psql`,
		statuses: fileStatuses,
		run: func(cmd *cobra.Command, args []string) error {
			return a.getFiles(cmd.Context(), args[0], files.GetRequest{Places: args[1:], To: to, Force: force})
		},
	}.build()
	cmd.Flags().StringVar(&to, "to", "", "`directory` to write to; - is standard output")
	cmd.Flags().BoolVar(&force, "force", false, "replace files that exist, and add to directories")
	cmd.ValidArgsFunction = a.completePoints
	return cmd
}

func (a *app) getFiles(ctx context.Context, ref string, req files.GetRequest) error {
	switch {
	case req.To == "":
		return withHint(usagef("point get: --to is missing"),
			"say where the files go: --to DIR, or --to - for standard output")
	case req.To == "-" && (len(req.Places) != 1 || a.json):
		return usagef("point get: only one file goes to standard output, and no JSON beside it")
	}
	return a.withFiles(ctx, ref, func(p *point.RecoveryPoint, disks []volume.Disk) error {
		m := a.meter()
		defer m.Close()
		show := func(done, total int64) { m.Update("get", done, total) }
		opened := files.Open(disks)
		if req.To == "-" {
			if _, err := opened.Stream(ctx, req.Places[0], a.env.Stdout, show); err != nil {
				return fmt.Errorf("fetch from point %s of %s: %w", p.ID.Short(), p.VM, err)
			}
			return nil
		}
		req.Progress = show
		report, err := opened.Get(ctx, req)
		m.Close()
		if err != nil {
			err = fmt.Errorf("fetch from point %s of %s: %w", p.ID.Short(), p.VM, err)
		}
		var some *files.Incomplete
		if err != nil && !errors.As(err, &some) {
			return err
		}
		return errors.Join(a.printGot(p, req.To, report, some), err)
	})
}

// Got is what point get --json prints. Some of it may be missing: then the exit status says so.
type Got struct {
	Point point.ID `json:"point"`
	To    string   `json:"to"`
	files.Report
	Failed []FailedFile `json:"failed"`
}

// FailedFile is a file that was not fetched.
type FailedFile struct {
	Path   string `json:"path"`
	Reason string `json:"reason"`
}

func (a *app) printGot(p *point.RecoveryPoint, to string, r files.Report, some *files.Incomplete) error {
	got := Got{Point: p.ID, To: to, Report: r, Failed: []FailedFile{}}
	if some != nil {
		for _, f := range some.Failures {
			got.Failed = append(got.Failed, FailedFile{f.Path, oneLine(f.Err.Error())})
		}
	}
	if a.json {
		return a.printJSON(got)
	}
	a.warn(r.Warnings)
	for _, f := range got.Failed {
		a.println("not fetched: " + printable(f.Path) + ": " + f.Reason)
	}
	text := counted(r.Files, "file")
	if r.Directories > 0 {
		text += ", " + counted(r.Directories, "directory")
	}
	switch {
	case r.Others == 1:
		text += ", 1 link or special file"
	case r.Others > 1:
		text += fmt.Sprintf(", %d links and special files", r.Others)
	}
	if r.Streams > 0 {
		text += ", " + counted(r.Streams, "stream")
	}
	return a.println(fmt.Sprintf("fetched %s to %s: %s (%s, %s of data)", p.VM, to, text, humanSize(r.Bytes),
		humanSize(r.Stored)))
}
