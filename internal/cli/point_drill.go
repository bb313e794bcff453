package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdfast-vm/holdfast/internal/drill"
	"github.com/holdfast-vm/holdfast/internal/drill/role"
	"github.com/holdfast-vm/holdfast/internal/point"
	"github.com/holdfast-vm/holdfast/internal/vault"
)

type drillFlags struct {
	network, script, storage, screenshot, accel string
	checks, roles                               []string
	timeout                                     time.Duration
}

func (a *app) pointDrill() *cobra.Command {
	var flags drillFlags
	cmd := command{
		use:   "drill POINT [--check CMD]... [--role NAME[=ARG]]... [--script FILE]",
		short: "Boot a recovery point in isolation and check that it works",
		args:  cobra.ExactArgs(1),
		long: pointArgHelp + `

Boots the machine of the point under a name and UUID of its own, on disks that read the
point and keep what is written in temporary files, with no way out to any network. That it has no
way out is checked from outside, before it runs and all the time; if it has one, it is removed at
once. Then waits for the guest agent, checks the guest's file systems, and runs what is given, each
again until it passes or --timeout is over. In the end all is discarded, and the verdict, with
times, output and a picture of the console, is written on the point. "point show" shows it.

--check runs a command line with the guest's shell, --script a file that is copied into the guest;
an exit status of 0 is what passes. --role knows what to look at:

  systemd          all units are well           systemd=UNIT    this unit is active
  service          the same, also of a Windows  service=NAME    this service runs
  tcp=PORT         something listens there      file=PATH       the file can be read
  postgresql       the server answers queries   sqlite=PATH     the database is whole
  http=URL         a request succeeds, in the guest itself

A machine of libvirt's is started by the host given with --connect. A plain QEMU needs no --connect.
What a killed drill has left the next one removes, or "host reconcile". The real machine is never
touched.`,
		examples: `
holdfast --vault /srv/vault point drill web@latest --role systemd --role tcp=443
holdfast --vault /srv/vault point drill 3fa9 --role postgresql --check 'test -e /srv/app/ready' --timeout 10m
holdfast --vault /srv/vault --connect qemu:///system point drill db@latest --script ./smoke-test.sh --json`,
		statuses: "3 damage found, " + vaultStatuses + ", 6 not verified, 130 interrupted",
		run:      func(cmd *cobra.Command, args []string) error { return a.drillPoint(cmd.Context(), args[0], flags) },
	}.build()
	f := cmd.Flags()
	f.StringVar(&flags.network, "network", "isolated", "`kind` of network; there is only isolated")
	f.StringArrayVar(&flags.checks, "check", nil, "`command` to run in the guest; repeatable")
	f.StringArrayVar(&flags.roles, "role", nil, "`name` or name=argument of what the guest is there for; repeatable")
	f.StringVar(&flags.script, "script", "", "`file` to copy into the guest and run there")
	f.DurationVar(&flags.timeout, "timeout", 5*time.Minute, "`time` from the start until all checks have passed")
	f.StringVar(&flags.accel, "accel", "", accelHelp)
	f.StringVar(&flags.storage, "storage", "",
		"`directory` for what the machine writes meanwhile (default: the scratch directory)")
	f.StringVar(&flags.screenshot, "screenshot", "", "`file` to write the picture of the console to, as PNG")
	cmd.ValidArgsFunction = a.completePoints
	return cmd
}

// request reads the flags.
func (f drillFlags) request() (drill.Request, error) {
	req := drill.Request{Timeout: f.timeout, Storage: f.storage, Accel: f.accel}
	if f.network != "isolated" {
		return req, withHint(usagef("point drill: there is no network %q", f.network),
			"leave out --network: a drill is isolated")
	}
	if err := checkAccel("point drill", f.accel); err != nil {
		return req, err
	}
	if f.timeout <= 0 {
		return req, usagef("point drill: --timeout %v leaves no time", f.timeout)
	}
	for _, s := range f.roles {
		c, err := role.Parse(s)
		if err != nil {
			return req, usagef("point drill: --role: %v", err)
		}
		req.Checks = append(req.Checks, c)
	}
	for _, s := range f.checks {
		if strings.TrimSpace(s) == "" {
			return req, usagef("point drill: --check is empty")
		}
		req.Checks = append(req.Checks, role.Given(s))
	}
	if f.script == "" {
		return req, nil
	}
	text, err := os.ReadFile(f.script)
	if err != nil {
		return req, fmt.Errorf("read the script: %w", err)
	}
	c, err := role.Script(filepath.Base(f.script), text)
	req.Checks = append(req.Checks, c)
	return req, err
}

func (a *app) drillPoint(ctx context.Context, ref string, flags drillFlags) error {
	a.lean()
	req, err := flags.request()
	if err != nil {
		return err
	}
	scratch, err := a.scratchSpace()
	if err != nil {
		return err
	}
	req.StateDir = scratch.Dir
	if req.Storage == "" {
		req.Storage = scratch.Dir
	}
	return a.withPoint(ctx, ref, func(v *vault.Vault, p *point.RecoveryPoint) error {
		req.Point = p
		if p.Definition.Kind == point.ForLibvirt {
			uris := a.connections()
			if len(uris) != 1 {
				return usagef("point drill: a machine is started by one host: give --connect once")
			}
			req.Host = uris[0]
		}
		res, err := drill.Run(ctx, v, req,
			drill.Options{Open: a.drillHost, Version: Version, Now: a.env.Now, Log: a.remark})
		if err != nil {
			return fmt.Errorf("drill of point %s of %s: %w", p.ID.Short(), p.VM, err)
		}
		return a.tellDrill(res, flags.screenshot)
	})
}

// drillHost opens a host for a drill.
func (a *app) drillHost(uri string) (drill.Host, error) {
	hosts, err := a.openHosts([]string{uri})
	if err != nil {
		return nil, err
	}
	h, ok := hosts[0].Host.(drill.Host)
	if !ok {
		closeHosts(hosts)
		return nil, fmt.Errorf("host %s cannot rehearse a recovery", uri)
	}
	return h, nil
}

// tellDrill prints what came of a drill. Its error says that the point is not verified.
func (a *app) tellDrill(res drill.Result, screenshot string) error {
	var verdict, failed error
	if !res.Verified {
		verdict = fmt.Errorf("point %s of %s is %w: %s", res.Point.Short(), res.VM, drill.ErrNotVerified, res.Reason)
		if p := res.Progress; p != nil && p.KVM != "" {
			verdict = withHint(verdict, "`holdfast host check` says what this host can do; --accel tcg has QEMU "+
				"emulate "+
				"the processor: slow, but it runs everywhere")
		}
	}
	if picture := res.Picture(); screenshot != "" && picture != nil {
		failed = os.WriteFile(screenshot, picture, 0o644)
	} else if screenshot != "" {
		a.remark("warning: there is no picture of the console: %s", res.NoScreenshot)
	}
	if a.json {
		return errors.Join(a.printJSON(res), verdict, failed)
	}
	a.warn(res.Isolation.LeftOut)
	return errors.Join(a.printDrill(res), verdict, failed)
}

func (a *app) printDrill(res drill.Result) error {
	seconds := func(s float64) string {
		if s == 0 {
			return "never"
		}
		return fmt.Sprintf("%.1f s after the start", s)
	}
	verdict := "verified"
	if !res.Verified {
		verdict = "not verified: " + res.Reason
	}
	isolation := fmt.Sprintf("no way out found, looked %s at %s", counted(res.Isolation.Checks, "time"),
		counted(res.Isolation.Files, "descriptor"))
	if len(res.Isolation.Found) > 0 {
		isolation = "ways out: " + strings.Join(res.Isolation.Found, "; ")
	} else if res.Isolation.Checks == 0 {
		isolation = "not looked at"
	}
	picture := "kept with the point; --screenshot FILE writes it to a file too"
	if res.Picture() == nil {
		picture = ""
	}
	err := a.printFields([][2]string{
		{"point", fmt.Sprintf("%s of %s, %s UTC, %s", res.Point.Short(), res.VM, humanTime(res.PointTime),
			res.Consistency)},
		{"verdict", verdict}, {"host", res.Host}, {"run by", res.Accel}, {"guest", res.Guest}, {"isolation", isolation},
		{"agent answered", seconds(res.BootSeconds)}, {"in service", seconds(res.ServiceSeconds)},
		{"screenshot", picture},
		{"disks read", fmt.Sprintf("%s, of which %s were fetched from the vault", humanSize(res.ServedBytes),
			humanSize(res.FetchedBytes))},
	}...)
	if len(res.Checks) > 0 {
		var rows [][]string
		for _, c := range res.Checks {
			result, output := "passed", ""
			if !c.OK {
				result = "failed"
				output = oneLine(c.Output)
			}
			if len(output) > 100 {
				output = strings.ToValidUTF8(output[:100], "") + "…"
			}
			rows = append(rows, []string{oneLine(c.Name), result, fmt.Sprintf("%.1f s", c.Seconds), fmt.Sprint(c.Tries),
				output})
		}
		err = errors.Join(err, a.println(""),
			a.printTable([]string{"check", "result", ">after", ">tries", "output"}, rows))
	}
	if !res.Verified && res.Console != "" {
		err = errors.Join(err, a.println("\n"+lastLines(res.Console, consoleLines, res.Point)))
	}
	return err
}

// consoleLines is how much of a serial console people are shown.
const consoleLines = 15

// lastLines returns the last most lines of a serial console, and where there are more.
func lastLines(text string, most int, id point.ID) string {
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	head := "the end of the serial console:"
	if more := len(lines) - most; more > 0 {
		lines = lines[more:]
		head = fmt.Sprintf("the last %d lines of the serial console; `holdfast point show %s --json` has %d before "+
			"them:", most, id.Short(), more)
	}
	return head + "\n  " + strings.Join(lines, "\n  ")
}

// listedPoint is a point with the verdict of its last drill.
type listedPoint struct {
	*point.RecoveryPoint
	Verified *bool `json:"verified,omitempty"` // nil if no drill was made
}

// verdictsOf returns how to look up what the last drill of a point came to.
func verdictsOf(ctx context.Context, v *vault.Vault) (func(*point.RecoveryPoint) listedPoint, error) {
	drills, err := v.NotesByPoint(ctx, vault.NoteDrill)
	return func(p *point.RecoveryPoint) listedPoint {
		l := listedPoint{RecoveryPoint: p}
		if notes := drills[p.ID]; len(notes) > 0 {
			var last shownNote
			last.readDrill(notes[len(notes)-1].Body)
			l.Verified = last.Verified
		}
		return l
	}, err
}

func (p listedPoint) verdict() string {
	switch {
	case p.Verified == nil:
		return ""
	case *p.Verified:
		return "verified"
	}
	return "not verified"
}
