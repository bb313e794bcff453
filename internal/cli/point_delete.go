package cli

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/holdfast-vm/holdfast/internal/point"
	"github.com/holdfast-vm/holdfast/internal/snapshots"
	"github.com/holdfast-vm/holdfast/internal/vault"
)

// deletion says how points are deleted.
type deletion struct {
	purge, force bool
	keep         string
}

// flags adds the flags that point delete and snapshot delete have in common.
func (d *deletion) flags(f *pflag.FlagSet) {
	f.BoolVar(&d.purge, "purge", false, "for good: nothing brings it back")
	f.StringVar(&d.keep, "keep", "",
		"`time` for which it can be brought back, 1d to 180d (default 14d); h, d and w are hours, days and weeks")
}

// time returns how long what is deleted can be brought back: below 0 if not at all, 0 for the
// default.
func (d *deletion) time() (time.Duration, error) {
	if d.keep == "" {
		if d.purge {
			return -1, nil
		}
		return 0, nil
	}
	if d.purge {
		return 0, usagef("--purge and --keep: give one of them")
	}
	t, err := parseDays(d.keep)
	if err == nil && (t < vault.MinKeep || t > vault.MaxKeep) {
		err = fmt.Errorf("%q is not from 1d to %dd", d.keep, vault.MaxKeep/(24*time.Hour))
	}
	if err != nil {
		return 0, usagef("--keep: %v", err)
	}
	return t, nil
}

var daysForm = regexp.MustCompile(`^([0-9]{1,6})([hdw])$`)

// parseDays reads a time such as 14d, 36h or 2w.
func parseDays(s string) (time.Duration, error) {
	m := daysForm.FindStringSubmatch(s)
	if m == nil {
		return 0, fmt.Errorf("%q is not a time such as 14d, 36h or 2w", s)
	}
	n, err := strconv.Atoi(m[1])
	unit := map[string]time.Duration{"h": time.Hour, "d": 24 * time.Hour, "w": 7 * 24 * time.Hour}[m[2]]
	return time.Duration(n) * unit, err
}

// Removed is what point delete and snapshot delete print with --json.
type Removed struct {
	Deleted []point.ID `json:"deleted"`
	Purged  bool       `json:"purged"`         // for good
	Until   time.Time  `json:"until,omitzero"` // until when they can be brought back
}

func (a *app) pointDelete() *cobra.Command {
	var how deletion
	cmd := command{
		use: "delete [--purge] [--keep TIME] POINT...", short: "Delete recovery points", args: cobra.MinimumNArgs(1),
		statuses: vaultStatuses,
		long: pointArgHelp + `
No other point needs it. A point that was deleted is in no list but that of "holdfast point
list --deleted", and "holdfast point undelete" brings it back, for 14 days or what --keep
says; after that "holdfast vault gc" removes it for good. With --purge it is gone at once,
deleted before or not. Its space is freed by the next "holdfast vault gc" after that.

A point that is being read, built upon or held by an instant restore is not deleted. With
--force one of an instant restore is, and that machine cannot be finished any more. Use it
where the restore is gone without having said so.`,
		examples: `
holdfast --vault /srv/vault point delete 3fa9c2d1
holdfast --vault /srv/vault point delete --keep 60d 3fa9c2d1 7c01
holdfast --vault /srv/vault point delete --purge 3fa9c2d1`,
		run: func(cmd *cobra.Command, args []string) error {
			keep, err := how.time()
			if err != nil {
				return err
			}
			return a.withVault(cmd.Context(), func(v *vault.Vault) error {
				find := func(ref string) (*point.RecoveryPoint, error) {
					return pointOrDeleted(cmd.Context(), v, ref, keep)
				}
				return a.remove(cmd.Context(), v, args, find, keep, how.force)
			})
		},
	}.build()
	how.flags(cmd.Flags())
	cmd.Flags().BoolVar(&how.force, "force", false, "also if an instant restore still needs it")
	cmd.ValidArgsFunction = a.completePoints
	return cmd
}

// pointOrDeleted finds a point, and one that was deleted if it is to be removed for good.
func pointOrDeleted(ctx context.Context, v *vault.Vault, ref string, keep time.Duration) (*point.RecoveryPoint, error) {
	p, err := v.Point(ctx, ref)
	if errors.Is(err, vault.ErrDeleted) && keep < 0 {
		return v.DeletedPoint(ctx, ref)
	}
	return p, err
}

// remove deletes the points that find finds and says so. All are found before the first is deleted.
func (a *app) remove(ctx context.Context, v *vault.Vault, refs []string,
	find func(ref string) (*point.RecoveryPoint, error), keep time.Duration, force bool) error {
	var points []*point.RecoveryPoint
	for _, ref := range refs {
		p, err := find(ref)
		if err != nil {
			return fmt.Errorf("delete %s: nothing was deleted: %w", ref, err)
		}
		points = append(points, p)
	}
	out := Removed{Deleted: []point.ID{}, Purged: keep < 0}
	for _, p := range points {
		if err := a.removeOne(ctx, v, p, keep, force); err != nil {
			return fmt.Errorf("delete %s: %w", called(p), err)
		}
		out.Deleted = append(out.Deleted, p.ID)
		if !a.json {
			a.println("deleted " + called(p))
		}
	}
	var err error
	if out.Until, err = untilOf(ctx, v, out); err != nil {
		return err
	}
	return a.printRemoved(out, points[0].IsSnapshot())
}

// called says which point or snapshot p is.
func called(p *point.RecoveryPoint) string {
	if p.IsSnapshot() {
		return fmt.Sprintf("snapshot %s (%s) of %s", p.Name, p.ID.Short(), snapshotDisks(p))
	}
	return fmt.Sprintf("point %s of %s", p.ID.Short(), p.VM)
}

// removeOne deletes a point; a snapshot is remembered for the usage report.
func (a *app) removeOne(ctx context.Context, v *vault.Vault, p *point.RecoveryPoint, keep time.Duration,
	force bool) error {
	if force {
		if err := v.Release(ctx, p.ID, ""); err != nil {
			return err
		}
	}
	if p.IsSnapshot() {
		_, err := v.Point(ctx, string(p.ID))
		if !errors.Is(err, vault.ErrDeleted) { // one that was deleted before does not count since then
			return snapshots.Delete(ctx, v, p, keep, a.env.Now())
		}
	}
	if keep < 0 {
		return v.PurgePoint(ctx, p.ID)
	}
	return v.DeletePoint(ctx, p.ID, keep)
}

// untilOf returns until when what was deleted can be brought back.
func untilOf(ctx context.Context, v *vault.Vault, r Removed) (until time.Time, err error) {
	if r.Purged || len(r.Deleted) == 0 {
		return until, nil
	}
	all, err := v.Deleted(ctx)
	for _, d := range all {
		if d.Point.ID == r.Deleted[0] {
			until = d.Until
		}
	}
	return until, err
}

func (a *app) printRemoved(r Removed, snapshot bool) error {
	if a.json {
		return a.printJSON(r)
	}
	noun := "point"
	if snapshot {
		noun = "snapshot"
	}
	switch {
	case r.Purged:
		a.remark("the space is freed by `holdfast vault gc`; with --dry-run it says how much")
	default:
		a.remark("until %s UTC `holdfast %s undelete` brings it back; `holdfast vault gc` frees the space after that",
			humanTime(r.Until), noun)
	}
	return nil
}

func (a *app) pointUndelete() *cobra.Command {
	return command{
		use: "undelete POINT...", short: "Bring back recovery points that were deleted", args: cobra.MinimumNArgs(1),
		statuses: vaultStatuses,
		long: `
POINT is the beginning of the ID of a deleted point, as "holdfast point list --deleted"
shows it.`,
		examples: "holdfast --vault /srv/vault point undelete 3fa9c2d1",
		run: func(cmd *cobra.Command, args []string) error {
			return a.withVault(cmd.Context(), func(v *vault.Vault) error {
				return a.bringBack(cmd.Context(), v, args, func(ref string) (*point.RecoveryPoint, error) {
					return v.DeletedPoint(cmd.Context(), ref)
				})
			})
		},
	}.build()
}

// bringBack undeletes the points that find finds and says so.
func (a *app) bringBack(ctx context.Context, v *vault.Vault, refs []string,
	find func(ref string) (*point.RecoveryPoint, error)) error {
	back := []point.ID{}
	for _, ref := range refs {
		p, err := find(ref)
		if err == nil && p.IsSnapshot() {
			err = snapshots.Undelete(ctx, v, p, a.env.Now())
		} else if err == nil {
			err = v.UndeletePoint(ctx, p.ID)
		}
		if errors.Is(err, vault.ErrNoPoint) {
			err = withHint(err, "`holdfast point list --deleted` shows what can be brought back")
		}
		if err != nil {
			return fmt.Errorf("undelete %s: %w", ref, err)
		}
		back = append(back, p.ID)
		if !a.json {
			a.println("brought back " + called(p))
		}
	}
	if a.json {
		return a.printJSON(map[string][]point.ID{"undeleted": back})
	}
	return nil
}

// deletedPoint is a point in the list of deleted ones.
type deletedPoint struct {
	*point.RecoveryPoint
	Until time.Time `json:"until"` // when a collection may remove it for good
}

// listDeleted lists the points that can be brought back.
func (a *app) listDeleted(ctx context.Context, v *vault.Vault, takes func(*point.RecoveryPoint) bool) error {
	all, err := v.Deleted(ctx)
	if err != nil {
		return fmt.Errorf("list the deleted points of vault %s: %w", v.ShortID(), err)
	}
	list := []deletedPoint{}
	for _, d := range all {
		if takes(d.Point) {
			list = append(list, deletedPoint{d.Point, d.Until})
		}
	}
	if a.json {
		return a.printJSON(list)
	}
	var rows [][]string
	for _, p := range list {
		kind, of := "backup", p.VM
		if p.Kind != "" {
			kind = string(p.Kind)
		}
		if p.IsSnapshot() {
			of = p.Name
		}
		size, used, _ := sums(p.RecoveryPoint)
		rows = append(rows, []string{p.ID.Short(), of, kind, humanTime(p.Time), string(p.Consistency), humanSize(size),
			humanSize(used), humanTime(p.Until)})
	}
	return a.printTable([]string{"id", "vm or name", "kind", "time (UTC)", "consistency", ">size", ">used",
		"until (UTC)"}, rows)
}
