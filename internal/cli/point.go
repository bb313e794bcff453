package cli

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/holdfast-vm/holdfast/internal/extent"
	"github.com/holdfast-vm/holdfast/internal/point"
	"github.com/holdfast-vm/holdfast/internal/vault"
)

func (a *app) pointCommands() *cobra.Command {
	return noun("point", "List, verify, compare, restore and delete recovery points",
		a.pointList(), a.pointShow(), a.pointVerify(), a.pointDiff(), a.pointDelete(), a.pointUndelete(),
		a.pointRestore(), a.pointExport(),
		a.pointDrill(), a.pointLs(), a.pointGet(), a.pointFind(), a.pointMount())
}

const vaultStatuses = "5 wrong key or not a vault, 8 not the vault that it was"

const pointArgHelp = "POINT is the beginning of a point's ID, or NAME@latest."

func (a *app) pointList() *cobra.Command {
	var vm string
	var deleted bool
	cmd := command{
		use: "list [--vm NAME] [--deleted]", short: "List recovery points, oldest first", args: cobra.NoArgs,
		statuses: vaultStatuses, reads: true,
		examples: `
holdfast --vault /srv/vault point list
holdfast --vault /srv/vault point list --vm web --json
holdfast --vault /srv/vault point list --deleted`,
		run: func(cmd *cobra.Command, _ []string) error {
			return a.withVault(cmd.Context(), func(v *vault.Vault) error {
				takes := func(p *point.RecoveryPoint) bool { return vm == "" || p.VM == vm || p.MachineUUID == vm }
				if deleted {
					return a.listDeleted(cmd.Context(), v, takes)
				}
				return a.listPoints(cmd.Context(), v, takes)
			})
		},
	}.build()
	cmd.Flags().StringVar(&vm, "vm", "", "only points of the machine with this `name` or UUID")
	cmd.Flags().BoolVar(&deleted, "deleted", false, "those that were deleted and can be brought back")
	return cmd
}

func (a *app) listPoints(ctx context.Context, v *vault.Vault, takes func(*point.RecoveryPoint) bool) error {
	verdict, err := verdictsOf(ctx, v)
	if err != nil {
		return fmt.Errorf("list the drills of vault %s: %w", v.ShortID(), err)
	}
	if a.json {
		err = printJSONList(a, func(yield func(listedPoint, error) bool) {
			for p, err := range v.EachPoint(ctx, takes) {
				if err != nil {
					yield(listedPoint{}, err)
				} else if !yield(verdict(p), nil) {
					return
				}
			}
		})
	} else {
		var points []*point.RecoveryPoint
		var list []listedPoint
		points, err = v.Summaries(ctx, takes)
		for _, p := range points {
			list = append(list, verdict(p))
		}
		if err == nil {
			err = a.printPoints(list)
		}
	}
	if err != nil {
		return fmt.Errorf("list the points of vault %s: %w", v.ShortID(), err)
	}
	return nil
}

func (a *app) printPoints(points []listedPoint) error {
	var rows [][]string
	for _, p := range points {
		size, used, added := sums(p.RecoveryPoint)
		kind, vm := "backup", p.VM
		if p.Kind != "" {
			kind = string(p.Kind)
		}
		if vm == "" {
			vm = "-"
		}
		rows = append(rows, []string{p.ID.Short(), vm, kind, humanTime(p.Time), humanAge(a.env.Now(), p.Time),
			string(p.Consistency),
			string(p.Rung), humanSize(size), humanSize(used), humanSize(added), p.verdict()})
	}
	head := []string{"id", "vm", "kind", "time (UTC)", ">age", "consistency", "rung", ">size", ">used", ">added",
		"drill"}
	if !slices.ContainsFunc(points, func(p listedPoint) bool { return p.Verified != nil }) {
		head = head[:len(head)-1]
		for i := range rows {
			rows[i] = rows[i][:len(head)]
		}
	}
	return a.printTable(head, rows)
}

func sums(p *point.RecoveryPoint) (size, used, added int64) {
	for _, d := range p.Disks {
		size, used, added = size+d.Size, used+d.Used, added+d.Added
	}
	return size, used, added
}

// withPoint runs do with the point that ref names.
func (a *app) withPoint(ctx context.Context, ref string, do func(v *vault.Vault, p *point.RecoveryPoint) error) error {
	return a.withVault(ctx, func(v *vault.Vault) error {
		p, err := v.Point(ctx, ref)
		if err != nil {
			return fmt.Errorf("find point %q in vault %s: %w", ref, v.ShortID(), err)
		}
		return do(v, p)
	})
}

// withHeldPoint is withPoint for who reads for long: nobody removes the point meanwhile.
func (a *app) withHeldPoint(ctx context.Context, ref string, do func(v *vault.Vault, p *point.RecoveryPoint) error,
) error {
	return a.withPoint(ctx, ref, func(v *vault.Vault, p *point.RecoveryPoint) error {
		r, err := v.OpenReader(ctx)
		if err == nil {
			err = r.RequirePoint(ctx, p.ID)
		}
		if err != nil {
			return fmt.Errorf("keep point %s of %s while it is read: %w", p.ID.Short(), p.VM, err)
		}
		defer r.Close() // what cannot be given back ends with the process
		return do(v, p)
	})
}

// shownPoint is what point show --json prints.
type shownPoint struct {
	*point.RecoveryPoint
	Notes []shownNote `json:"notes"`
}

func (a *app) pointShow() *cobra.Command {
	cmd := command{
		use: "show POINT", short: "Show all that is known of a recovery point", long: pointArgHelp,
		args:     cobra.ExactArgs(1),
		statuses: vaultStatuses, reads: true,
		examples: `
holdfast --vault /srv/vault point show web@latest
holdfast --vault /srv/vault point show 3fa9 --json`,
		run: func(cmd *cobra.Command, args []string) error {
			return a.withPoint(cmd.Context(), args[0], func(v *vault.Vault, p *point.RecoveryPoint) error {
				notes, err := notesOf(cmd.Context(), v, p.ID)
				if err != nil {
					return fmt.Errorf("read the notes of point %s: %w", p.ID.Short(), err)
				}
				if a.json {
					return a.printJSON(shownPoint{p, notes})
				}
				return errors.Join(a.printPoint(p), a.printNotes(notes))
			})
		},
	}.build()
	cmd.ValidArgsFunction = a.completePoints
	return cmd
}

func (a *app) printPoint(p *point.RecoveryPoint) error {
	var tags []string
	for _, k := range slices.Sorted(maps.Keys(p.Tags)) {
		tags = append(tags, k+"="+p.Tags[k])
	}
	rung := string(p.Rung)
	if p.RungReason != "" {
		rung += " (" + p.RungReason + ")"
	}
	frozen := ""
	if p.FrozenSeconds > 0 {
		frozen = fmt.Sprintf("%.3f s", p.FrozenSeconds)
	}
	fields := [][2]string{
		{"point", string(p.ID)}, {"kind", string(p.Kind)}, {"name", p.Name}, {"vm", p.VM}, {"uuid", p.MachineUUID},
		{"time", humanTime(p.Time) + " UTC, " + humanAge(a.env.Now(), p.Time) + " ago"},
		{"consistency", fmt.Sprintf("%s (%s)", p.Consistency, p.ConsistencyReason)},
		{"rung", rung}, {"parent", string(p.Parent)}, {"tags", strings.Join(tags, " ")},
		{"took", fmt.Sprintf("%.1f s", p.Took)}, {"guest held", frozen},
		{"definition", definitionText(p.Definition)}, {"left out", strings.Join(p.ExcludedDisks, " ")},
		{"holdfast", p.Holdfast},
	}
	for _, f := range p.Files {
		fields = append(fields, [2]string{f.Role, fmt.Sprintf("%s (%s)", f.Path, humanSize(f.Size))})
	}
	for _, o := range p.NotHeld {
		fields = append(fields, [2]string{"not held", o.String()})
	}
	for _, w := range p.Warnings {
		fields = append(fields, [2]string{"warning", w})
	}
	if err := errors.Join(a.printFields(fields...), a.println("")); err != nil {
		return err
	}
	return a.printDisks(p.Disks)
}

func definitionText(d point.Definition) string {
	parts := []string{string(d.Kind)}
	if d.MachineType != "" {
		parts = append(parts, d.MachineType)
	}
	if d.Hypervisor != "" {
		parts = append(parts, d.Hypervisor)
	}
	if d.Guest != nil && d.Guest.OS != "" {
		parts = append(parts, "guest "+d.Guest.OS)
	}
	return strings.Join(parts, ", ")
}

func (a *app) printDisks(disks []point.Disk) error {
	var rows [][]string
	for _, d := range disks {
		how := "changes only"
		if !d.Tracked {
			how = "whole: " + d.Reason
		}
		rows = append(rows, []string{d.Name, humanSize(d.Size), humanSize(d.Used), humanSize(d.Read),
			humanSize(d.Added), how, d.Source.File + encryptionText(d)})
	}
	return a.printTable([]string{"disk", ">size", ">used", ">read", ">added", "how", "source"}, rows)
}

// printRanges lists byte ranges, but not without end.
func (a *app) printRanges(prefix string, set extent.Set) {
	const most = 20
	for i, e := range set {
		if i == most {
			a.println(fmt.Sprintf("%s… and %d more; --json lists all", prefix, len(set)-most))
			return
		}
		a.println(fmt.Sprintf("%s%d-%d (%s)", prefix, e.Off, e.End()-1, humanSize(e.Len)))
	}
}

// completePoints proposes points to a shell.
func (a *app) completePoints(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	var out []string
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	latest := map[string]bool{}
	a.withVault(cmd.Context(), func(v *vault.Vault) error {
		points, err := v.Summaries(cmd.Context(), nil)
		for _, p := range points {
			out = append(out, p.ID.Short()+"\t"+p.VM+" "+humanTime(p.Time))
			if !p.IsSnapshot() {
				latest[p.VM+"@latest"] = true
			}
		}
		return err
	})
	return append(out, slices.Sorted(maps.Keys(latest))...), cobra.ShellCompDirectiveNoFileComp
}
