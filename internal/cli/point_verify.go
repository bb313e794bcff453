package cli

import (
	"context"
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"github.com/holdfast-vm/holdfast/internal/extent"
	"github.com/holdfast-vm/holdfast/internal/point"
	"github.com/holdfast-vm/holdfast/internal/vault"
)

// Verified is what point verify --json prints.
type Verified struct {
	ID    point.ID       `json:"id"`
	VM    string         `json:"vm"`
	OK    bool           `json:"ok"`
	Disks []VerifiedPart `json:"disks"`
	Files []VerifiedPart `json:"files,omitempty"`
}

// VerifiedPart is one disk or file whose every stored byte was read.
type VerifiedPart struct {
	Name    string     `json:"name"`
	Bytes   int64      `json:"bytes"` // of data that were read
	Damaged extent.Set `json:"damaged"`
}

func (a *app) pointVerify() *cobra.Command {
	cmd := command{
		use: "verify POINT", short: "Read and check every byte of a recovery point", args: cobra.ExactArgs(1),
		long: pointArgHelp + "\nDamaged byte ranges are listed by disk.",
		examples: `
holdfast --vault /srv/vault point verify web@latest
holdfast --vault /srv/vault point verify 3fa9 --json`,
		statuses: "3 damage found, " + vaultStatuses, reads: true,
		run: func(cmd *cobra.Command, args []string) error {
			return a.withHeldPoint(cmd.Context(), args[0], func(v *vault.Vault, p *point.RecoveryPoint) error {
				return a.verifyPoint(cmd.Context(), v, p)
			})
		},
	}.build()
	cmd.ValidArgsFunction = a.completePoints
	return cmd
}

func (a *app) verifyPoint(ctx context.Context, v *vault.Vault, p *point.RecoveryPoint) error {
	a.lean()
	report := Verified{ID: p.ID, VM: p.VM, OK: true}
	m := a.meter()
	defer m.Close()
	for _, d := range p.Disks {
		part, err := verifyTree(ctx, v, d.Name, d.Root, d.Size, m.within("verify "+d.Name, d.Used))
		if err != nil {
			return fmt.Errorf("verify point %s of %s, disk %s: %w", p.ID.Short(), p.VM, d.Name, err)
		}
		report.Disks = append(report.Disks, part)
		report.OK = report.OK && len(part.Damaged) == 0
	}
	for _, f := range p.Files {
		part, err := verifyTree(ctx, v, f.Role+"/"+f.Name, f.Root, f.Size, func(int64) {})
		if err != nil {
			return fmt.Errorf("verify point %s of %s, file %s: %w", p.ID.Short(), p.VM, f.Path, err)
		}
		report.Files = append(report.Files, part)
		report.OK = report.OK && len(part.Damaged) == 0
	}
	m.Close()
	return a.printVerified(report)
}

func verifyTree(ctx context.Context, v *vault.Vault, name, root string, size int64, progress func(int64)) (VerifiedPart,
	error) {
	part := VerifiedPart{Name: name, Damaged: extent.Set{}}
	disk, err := v.OpenDisk(root, size)
	if err != nil {
		return part, err
	}
	data, err := disk.Extents(ctx)
	if err != nil {
		return part, err
	}
	part.Bytes = data.Bytes()
	damaged, err := disk.Verify(ctx, progress)
	if len(damaged) > 0 {
		part.Damaged = damaged
	}
	return part, err
}

func (a *app) printVerified(r Verified) error {
	var err error
	if a.json {
		err = a.printJSON(r)
	} else {
		for _, part := range slices.Concat(r.Disks, r.Files) {
			if len(part.Damaged) == 0 {
				a.println(fmt.Sprintf("%s: %s verified", part.Name, humanSize(part.Bytes)))
				continue
			}
			a.println(fmt.Sprintf("%s: %s damaged, of %s", part.Name, humanSize(part.Damaged.Bytes()),
				humanSize(part.Bytes)))
			a.printRanges("  ", part.Damaged)
		}
	}
	if err == nil && !r.OK {
		err = fmt.Errorf("verify point %s of %s: %w", r.ID.Short(), r.VM, errDamage)
	}
	return err
}
