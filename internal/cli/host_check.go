package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/holdfast-vm/holdfast/internal/hostcheck"
)

// errUnfit reports that a check of the host found something that will not work.
var errUnfit = errors.New("something will not work on this host")

// HostCheck is what host check --json prints.
type HostCheck struct {
	Fit      bool                `json:"fit"` // nothing fails
	Findings []hostcheck.Finding `json:"findings"`
	Holdfast string              `json:"holdfast_version"`
}

func (a *app) hostCheck() *cobra.Command {
	names := hostcheck.Names()
	cmd := command{
		use: "check [CHECK]...", short: "Say what this host can do, what will not work and why",
		args: cobra.ArbitraryArgs,
		long: `
Tries what backups, restores and drills need of this host, and prints what it found, what will not
work and what to do about it. It changes nothing, disturbs no machine, and takes some seconds. The
first thing to run when something is odd.

It really runs a guest of its own under KVM and emulated, has QEMU read an export, mounts a file
system, writes to the scratch space, and asks the hosts given with --connect and the guest agents
of their machines. Known traps of the versions of QEMU and libvirt at hand are listed, and whether
Holdfast stays out of them. CHECK names single checks:

  ` + strings.Join(names[:7], ", ") + `,
  ` + strings.Join(names[7:], ", ") + `

Results: works; avoided, a trap that Holdfast stays out of; limited, for some machines or less
well; fails; unknown, where it could not be found out.`,
		examples: `
holdfast host check
holdfast --connect qemu:///system host check --json
holdfast host check kvm scratch && holdfast --vault /srv/vault point drill web@latest`,
		statuses: "7 something fails, 130 interrupted",
		run:      func(cmd *cobra.Command, args []string) error { return a.checkHost(cmd.Context(), args) },
	}.build()
	cmd.Flags().StringVar(&a.scratch, "scratch", "", "`directory` for scratch space (HOLDFAST_SCRATCH)")
	cmd.ValidArgs = names
	return cmd
}

func (a *app) checkHost(ctx context.Context, wanted []string) error {
	for _, name := range wanted {
		if !slices.Contains(hostcheck.Names(), name) {
			return withHint(usagef("host check: there is no check %q", name), "there are %s",
				strings.Join(hostcheck.Names(), ", "))
		}
	}
	scratch, err := a.scratchSpace()
	if err != nil {
		return err
	}
	state, err := a.stateDir()
	if err != nil {
		return err
	}
	hosts, err := a.openHosts(a.connections())
	if err != nil {
		return err
	}
	defer closeHosts(hosts)
	o := hostcheck.Options{Scratch: scratch.Dir, StateDir: state, Checks: wanted,
		Assumed: len(a.connect) == 0 && a.env.Getenv("HOLDFAST_CONNECT") == ""}
	for _, h := range hosts {
		checked, ok := h.Host.(hostcheck.Host)
		if !ok {
			return fmt.Errorf("host %s cannot be checked", h.URI())
		}
		o.Hosts = append(o.Hosts, checked)
	}
	all, err := hostcheck.Run(ctx, o)
	if err != nil {
		return fmt.Errorf("check this host: %w", err)
	}
	return a.tellHostCheck(all)
}

// tellHostCheck prints what was found. Its error says that something fails.
func (a *app) tellHostCheck(all []hostcheck.Finding) error {
	var unfit error
	if !hostcheck.Fit(all) {
		var failed []string
		for _, f := range all {
			if f.Verdict == hostcheck.Fails && !slices.Contains(failed, f.Check) {
				failed = append(failed, f.Check)
			}
		}
		unfit = fmt.Errorf("%w: %s", errUnfit, strings.Join(failed, ", "))
	}
	if a.json {
		return errors.Join(a.printJSON(HostCheck{Fit: unfit == nil, Findings: all, Holdfast: Version}), unfit)
	}
	var rows [][]string
	for _, f := range all {
		rows = append(rows, []string{f.Check, string(f.Verdict), oneLine(about(f))})
	}
	return errors.Join(a.printTable([]string{"check", "result", "found"}, rows), a.tellLost(all), unfit)
}

// about is what was found, of what.
func about(f hostcheck.Finding) string {
	if f.Subject == "" {
		return f.Found
	}
	return f.Subject + ": " + f.Found
}

// tellLost prints what will not work and what to do about it.
func (a *app) tellLost(all []hostcheck.Finding) error {
	var err error
	for _, f := range all {
		if f.Verdict == hostcheck.Avoided || f.Lost == "" && f.Advice == "" {
			continue
		}
		name := f.Check
		if f.Subject != "" {
			name += " " + f.Subject
		}
		err = errors.Join(err, a.println(""), a.println(fmt.Sprintf("%s (%s)", name, f.See)))
		label := "will not work"
		if f.Verdict == hostcheck.Limited {
			label = "limited"
		}
		if f.Lost != "" {
			err = errors.Join(err, a.println("  "+label+": "+oneLine(f.Lost)))
		}
		if f.Advice != "" {
			err = errors.Join(err, a.println("  what to do: "+oneLine(f.Advice)))
		}
	}
	return err
}
