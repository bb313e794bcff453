package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/holdfast-vm/holdfast/internal/extent"
	"github.com/holdfast-vm/holdfast/internal/point"
	"github.com/holdfast-vm/holdfast/internal/vault"
)

// DiskDiff is where one disk of two points differs.
type DiskDiff struct {
	Disk         string     `json:"disk"`
	Size         int64      `json:"size"`          // bytes, of the larger one
	ChangedBytes int64      `json:"changed_bytes"` // in whole chunks
	Extents      extent.Set `json:"extents"`
	Note         string     `json:"note,omitempty"` // where only one point has the disk, or its size changed
}

func (a *app) pointDiff() *cobra.Command {
	var disk string
	cmd := command{
		use: "diff A B [--disk D]", short: "Show where the disks of two recovery points differ",
		args: cobra.ExactArgs(2),
		long: "A and B are the beginnings of points' IDs, or NAME@latest.\nRanges are whole chunks of the vault.",
		examples: `
holdfast --vault /srv/vault point diff 3fa9 web@latest
holdfast --vault /srv/vault point diff 3fa9 77c0 --disk vda --json`,
		statuses: vaultStatuses, reads: true,
		run: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			return a.withPoint(ctx, args[0], func(v *vault.Vault, first *point.RecoveryPoint) error {
				second, err := v.Point(ctx, args[1])
				if err != nil {
					return fmt.Errorf("find point %q in vault %s: %w", args[1], v.ShortID(), err)
				}
				diffs, err := diffPoints(ctx, v, first, second, disk)
				if err != nil {
					return fmt.Errorf("compare points %s and %s: %w", first.ID.Short(), second.ID.Short(), err)
				}
				if a.json {
					return a.printJSON(orEmpty(diffs))
				}
				return a.printDiffs(diffs)
			})
		},
	}.build()
	cmd.Flags().StringVar(&disk, "disk", "", "only this `disk`")
	cmd.ValidArgsFunction = a.completePoints
	return cmd
}

// diffPoints compares all disks of both points, or only one.
func diffPoints(ctx context.Context, v *vault.Vault, first, second *point.RecoveryPoint, only string) ([]DiskDiff,
	error) {
	var out []DiskDiff
	seen := map[string]bool{}
	for _, d := range append(append([]point.Disk{}, first.Disks...), second.Disks...) {
		if seen[d.Name] || (only != "" && d.Name != only) {
			continue
		}
		seen[d.Name] = true
		diff, err := diffDisk(ctx, v, diskNamed(first, d.Name), diskNamed(second, d.Name))
		if err != nil {
			return nil, fmt.Errorf("disk %s: %w", d.Name, err)
		}
		out = append(out, diff)
	}
	if only != "" && len(out) == 0 {
		return nil, fmt.Errorf("neither has a disk %q", only)
	}
	return out, nil
}

func diskNamed(p *point.RecoveryPoint, name string) *point.Disk {
	for i := range p.Disks {
		if p.Disks[i].Name == name {
			return &p.Disks[i]
		}
	}
	return nil
}

// diffDisk compares a disk that at least one point has; the other may be nil.
func diffDisk(ctx context.Context, v *vault.Vault, x, y *point.Disk) (DiskDiff, error) {
	var diff DiskDiff
	switch {
	case x == nil:
		x = &point.Disk{Name: y.Name, Size: y.Size}
		diff.Note = "only the second point has it"
	case y == nil:
		y = &point.Disk{Name: x.Name, Size: x.Size}
		diff.Note = "only the first point has it"
	case x.Size != y.Size:
		diff.Note = fmt.Sprintf("its size changed from %d to %d bytes", x.Size, y.Size)
	}
	diff.Disk, diff.Size, diff.Extents = x.Name, max(x.Size, y.Size), extent.Set{}
	changed, err := compareTrees(ctx, v, x, y)
	if len(changed) > 0 {
		diff.Extents, diff.ChangedBytes = changed, changed.Bytes()
	}
	return diff, err
}

func compareTrees(ctx context.Context, v *vault.Vault, x, y *point.Disk) (extent.Set, error) {
	return v.Diff(ctx, x.Root, x.Size, y.Root, y.Size)
}

func (a *app) printDiffs(diffs []DiskDiff) error {
	var rows [][]string
	for _, d := range diffs {
		rows = append(rows, []string{d.Disk, humanSize(d.Size), humanSize(d.ChangedBytes), fmt.Sprint(len(d.Extents)),
			d.Note})
	}
	if err := a.printTable([]string{"disk", ">size", ">changed", ">ranges", ""}, rows); err != nil {
		return err
	}
	for _, d := range diffs {
		if len(d.Extents) > 0 {
			a.println("\n" + d.Disk)
			a.printRanges("  ", d.Extents)
		}
	}
	return nil
}
