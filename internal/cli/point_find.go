package cli

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdfast-vm/holdfast/internal/files"
	"github.com/holdfast-vm/holdfast/internal/filesystem/volume"
	"github.com/holdfast-vm/holdfast/internal/point"
)

func (a *app) pointFind() *cobra.Command {
	var req files.FindRequest
	limits := &fileLimits{}
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
		statuses: fileStatuses, reads: true,
		run: func(cmd *cobra.Command, args []string) (err error) {
			if req.Limits, err = limits.parse(cmd); err != nil {
				return err
			}
			req.Pattern = args[1]
			return a.findFiles(cmd.Context(), limits.time, args[0], req)
		},
	}.build()
	cmd.Flags().StringVar(&req.Volume, "volume", "", "`name` of the one volume to search")
	limits.flags(cmd, lookTime)
	cmd.ValidArgsFunction = a.completePoints
	return cmd
}

// findFiles prints what is found as it is found.
func (a *app) findFiles(ctx context.Context, most time.Duration, ref string, req files.FindRequest) error {
	return a.withFiles(ctx, most, ref, func(ctx context.Context, p *point.RecoveryPoint, disks []volume.Disk) error {
		out := &jsonList{out: a.env.Stdout}
		req.Found = func(e files.Entry) error {
			if a.json {
				return out.add(e)
			}
			return a.println(printable(e.Path))
		}
		err := files.Open(ctx, disks).Find(ctx, req)
		if err != nil {
			err = fmt.Errorf("search point %s of %s: %w", p.ID.Short(), p.VM, err)
		}
		var some *files.Incomplete
		if a.json && (err == nil || out.n > 0 || errors.As(err, &some) || errors.Is(err, files.ErrLimit)) {
			err = errors.Join(err, out.end())
		}
		return err
	})
}
