package cli

import (
	"context"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/holdfast-vm/holdfast/internal/snapshots"
	"github.com/holdfast-vm/holdfast/internal/vault"
)

type usageFlags struct {
	by, month, prices string
	csv               bool
}

func (a *app) usageCommand() *cobra.Command {
	var flags usageFlags
	cmd := command{
		use:   "usage [--by snapshot|disk|vm|tag=KEY] [--month YYYY-MM]",
		short: "Account for the space that snapshots take", args: cobra.NoArgs,
		long: `
Without --month: what is in the vault now. USED is what is not zeros in the disks, HELD what
is stored of it, compressed and each chunk once, and ALONE what nothing else in the vault
needs: deleting the snapshot, or all of a group, and collecting garbage frees exactly that.

With --month: used size times the hours that each snapshot was there in that month (UTC),
those that were deleted in it too. A disk of 64 GB of which 10 GB are used counts as 10 GB.
One GiB for the whole month is 1 GIB-MONTH.

--prices names a JSON file (HOLDFAST_PRICES):
  {"currency": "EUR", "gib_month": 0.05, "tags": [{"tag": "tier=cold", "gib_month": 0.01}]}
The currency is a label. The first tag that a snapshot has sets its price.`,
		examples: `
holdfast --vault /srv/vault usage
holdfast --vault /srv/vault usage --by tag=customer --month 2026-11 --prices prices.json --csv
holdfast --vault /srv/vault usage --by disk --json`,
		statuses: vaultStatuses, reads: true,
		run: func(cmd *cobra.Command, _ []string) error { return a.usage(cmd.Context(), flags) },
	}.build()
	f := cmd.Flags()
	f.StringVar(&flags.by, "by", "snapshot", "what to sum up by: snapshot, disk, vm or tag=`KEY`")
	f.StringVar(&flags.month, "month", "", "report of a `month` such as 2026-11")
	f.StringVar(&flags.prices, "prices", "", "`file` with a price table (HOLDFAST_PRICES)")
	f.BoolVar(&flags.csv, "csv", false, "print comma-separated values")
	return cmd
}

func (a *app) usage(ctx context.Context, flags usageFlags) error {
	by, err := snapshots.ParseBy(flags.by)
	if err != nil {
		return usagef("--by: %v", err)
	}
	if flags.csv && a.json {
		return usagef("usage: --csv and --json: give one of them")
	}
	if flags.month == "" {
		if flags.prices != "" {
			return usagef("usage: --prices goes with --month")
		}
		return a.withVault(ctx, func(v *vault.Vault) error {
			rows, err := snapshots.Current(ctx, v, by)
			if err != nil {
				return fmt.Errorf("vault %s: %w", v.ShortID(), err)
			}
			return a.printUsage(rows, by, flags.csv)
		})
	}
	month, err := snapshots.ParseMonth(flags.month)
	if err != nil {
		return usagef("--month: %v", err)
	}
	prices, err := a.readPrices(flags.prices)
	if err != nil {
		return err
	}
	return a.withVault(ctx, func(v *vault.Vault) error {
		lifetimes, err := snapshots.Lifetimes(ctx, v)
		if err != nil {
			return fmt.Errorf("account for %s in vault %s: %w", month, v.ShortID(), err)
		}
		return a.printBill(snapshots.NewBill(lifetimes, month, by, prices, a.env.Now()), flags.csv)
	})
}

// readPrices reads the price table that was given, or none.
func (a *app) readPrices(path string) (snapshots.Prices, error) {
	var p snapshots.Prices
	if path == "" {
		path = a.env.Getenv("HOLDFAST_PRICES")
	}
	if path == "" {
		return p, nil
	}
	data, err := readSmall(path)
	if err == nil {
		if err = json.Unmarshal(data, &p); err == nil {
			err = p.Check()
		}
	}
	if err != nil {
		return p, fmt.Errorf("read the price table %s: %w", path, err)
	}
	return p, nil
}

func (a *app) printUsage(rows []snapshots.Row, by snapshots.By, asCSV bool) error {
	if a.json {
		return a.printJSON(orEmpty(rows))
	}
	if asCSV {
		lines := [][]string{{"by", "name", "id", "snapshots", "size_bytes", "used_bytes", "held_bytes", "alone_bytes"}}
		for _, r := range rows {
			lines = append(lines, []string{by.String(), r.Name, string(r.ID), strconv.Itoa(r.Snapshots),
				decimal(r.Size), decimal(r.Used), decimal(r.Held), decimal(r.Alone)})
		}
		return a.printCSV(lines)
	}
	var out [][]string
	for _, r := range rows {
		out = append(out, []string{r.Name, r.ID.Short(), strconv.Itoa(r.Snapshots), humanSize(r.Size),
			humanSize(r.Used), humanSize(r.Held), humanSize(r.Alone)})
	}
	return a.printTable([]string{by.String(), "id", ">snapshots", ">size", ">used", ">held", ">alone"}, out)
}

func (a *app) printBill(b snapshots.Bill, asCSV bool) error {
	if a.json {
		return a.printJSON(b)
	}
	rows := append(b.Rows, b.Total)
	if asCSV {
		lines := [][]string{{"month", "by", "name", "id", "snapshots", "byte_hours", "gib_months", "cost", "currency"}}
		for _, r := range rows {
			lines = append(lines, []string{b.Month, b.By, r.Name, string(r.ID), strconv.Itoa(r.Snapshots),
				decimal(r.ByteHours), fixed(r.GiBMonths, 6), fixed(r.Cost, 6), b.Currency})
		}
		return a.printCSV(lines)
	}
	var out [][]string
	for _, r := range rows {
		out = append(out, []string{r.Name, r.ID.Short(), strconv.Itoa(r.Snapshots), decimal(r.ByteHours),
			fixed(r.GiBMonths, 3), fixed(r.Cost, 2)})
	}
	a.remark("%s until %s UTC", b.Month, humanTime(b.Until))
	return a.printTable([]string{b.By, "id", ">snapshots", ">byte-hours", ">GiB-months", ">cost " + b.Currency}, out)
}

func (a *app) printCSV(lines [][]string) error {
	return csv.NewWriter(a.env.Stdout).WriteAll(lines)
}

func decimal(n int64) string { return strconv.FormatInt(n, 10) }

func fixed(v float64, digits int) string { return strconv.FormatFloat(v, 'f', digits, 64) }
