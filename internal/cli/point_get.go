package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdfast-vm/holdfast/internal/files"
	"github.com/holdfast-vm/holdfast/internal/filesystem/volume"
	"github.com/holdfast-vm/holdfast/internal/point"
)

func (a *app) pointGet() *cobra.Command {
	var req files.GetRequest
	limits := &fileLimits{}
	cmd := command{
		use:   "get POINT PATH... --to DIR [--as-stored] [--force]",
		short: "Fetch files and directories out of a recovery point",
		args:  cobra.MinimumNArgs(2),
		long: pointArgHelp + `
` + placeHelp + `

Directories are fetched with all below them. Holes, times, permissions, links and attributes
user.* are kept; what DIR cannot keep is a warning. What would have power on this machine is
not kept unless --as-stored is given, by root: owners (without it files are yours), setuid and
setgid, devices, access control lists, and attributes such as security.capability. How much of
it there was is told. Streams of NTFS files become files NAME:STREAM beside them. A PATH that is
a symbolic link is followed, links below it stay links. Nothing is written outside DIR.

A file appears when it is complete. Files that cannot be read are named at the end, and the
others are fetched. With --to - a single file goes to standard output.`,
		examples: `
holdfast --vault /srv/vault point get web@latest /etc/nginx /var/www --to /tmp/web
holdfast --vault /srv/vault point get web@latest /etc --to /srv/web --as-stored
holdfast --vault /srv/vault point get 3fa9 vdb1:/report.ods --to .
holdfast --vault /srv/vault point get 3fa9 /var/lib/dump.sql --to - | psql`,
		statuses: fileStatuses, reads: true,
		run: func(cmd *cobra.Command, args []string) (err error) {
			if req.Limits, err = limits.parse(cmd); err != nil {
				return err
			}
			req.Places = args[1:]
			return a.getFiles(cmd.Context(), limits.time, args[0], req)
		},
	}.build()
	f := cmd.Flags()
	f.StringVar(&req.To, "to", "", "`directory` to write to; - is standard output")
	f.BoolVar(&req.Force, "force", false, "replace files that exist, and add to directories")
	f.BoolVar(&req.AsStored, "as-stored", false,
		"keep owners, setuid, devices, access control lists and all attributes")
	limits.flags(cmd, fetchTime)
	f.StringVar(&limits.size, "max-size", "", "`size` of the data that is written at most (default 16 times the disks)")
	cmd.ValidArgsFunction = a.completePoints
	return cmd
}

func (a *app) getFiles(ctx context.Context, most time.Duration, ref string, req files.GetRequest) error {
	switch {
	case req.To == "":
		return withHint(usagef("point get: --to is missing"),
			"say where the files go: --to DIR, or --to - for standard output")
	case req.To == "-" && (len(req.Places) != 1 || a.json):
		return usagef("point get: only one file goes to standard output, and no JSON beside it")
	}
	return a.withFiles(ctx, most, ref, func(ctx context.Context, p *point.RecoveryPoint, disks []volume.Disk) error {
		m := a.meter()
		defer m.Close()
		show := func(done, total int64) { m.Update("get", done, total) }
		opened := files.Open(ctx, disks)
		if req.To == "-" {
			stream := files.StreamRequest{Name: req.Places[0], To: a.env.Stdout, Limits: req.Limits, Progress: show}
			if _, err := opened.Stream(ctx, stream); err != nil {
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
		if err != nil && !errors.As(err, &some) && !errors.Is(err, files.ErrLimit) {
			return err
		}
		return errors.Join(a.printGot(p, req, report, some), err)
	})
}

// Got is what point get --json prints. Some of it may be missing: then the exit status says so.
type Got struct {
	Point point.ID `json:"point"`
	To    string   `json:"to"`
	files.Report
	Failed     []FailedFile `json:"failed"`
	FailedMore int64        `json:"failed_more,omitempty"` // files beside these
}

// FailedFile is a file that was not fetched.
type FailedFile struct {
	Path   string `json:"path"`
	Reason string `json:"reason"`
}

func (a *app) printGot(p *point.RecoveryPoint, req files.GetRequest, r files.Report, some *files.Incomplete) error {
	got := Got{Point: p.ID, To: req.To, Report: r, Failed: []FailedFile{}}
	if some != nil {
		got.FailedMore = some.More
		for _, f := range some.Failures {
			got.Failed = append(got.Failed, FailedFile{f.Path, oneLine(f.Err.Error())})
		}
	}
	if a.json {
		return a.printJSON(got)
	}
	a.warn(r.Warnings)
	for _, f := range got.Failed {
		a.println("not fetched: " + printable(files.Short(f.Path)+": "+f.Reason))
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
	err := a.println(fmt.Sprintf("fetched %s to %s: %s (%s, %s of data)", p.VM, req.To, text, humanSize(r.Bytes),
		humanSize(r.Stored)))
	if dropped := droppedText(r.Dropped); dropped != "" && err == nil {
		err = a.println("not kept: " + dropped + "; root keeps them with --as-stored")
	}
	return err
}

// droppedText says what was not kept since nobody asked for it; "" if there was nothing.
func droppedText(d files.Dropped) string {
	var parts []string
	for _, c := range []struct {
		n        int64
		one, all string
	}{
		{d.Owners, "the owner of 1 file", "owners of %d files"},
		{d.Setuid, "setuid or setgid of 1", "setuid or setgid of %d"},
		{d.Devices, "1 device", "%d devices"}, {d.ACLs, "1 access control list", "%d access control lists"},
		{d.Attributes, "1 attribute", "%d attributes"},
	} {
		switch {
		case c.n == 1:
			parts = append(parts, c.one)
		case c.n > 1:
			parts = append(parts, fmt.Sprintf(c.all, c.n))
		}
	}
	return strings.Join(parts, ", ")
}
