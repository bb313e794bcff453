package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/holdfast-vm/holdfast/internal/point"
	"github.com/holdfast-vm/holdfast/internal/vault"
)

func (a *app) vaultLog() *cobra.Command {
	var limit int
	cmd := command{
		use: "log [--limit N]", short: "Show what happened to a vault, newest first", args: cobra.NoArgs, reads: true,
		long: `
Every backup, deletion, restore and collection is an entry of the vault's log, with its time,
who did it, and the points that it is about. With --at NUMBER other commands show the vault
as it was at that entry. Entries are forgotten some days after a newer stretch of the log
began.`,
		examples: `
holdfast --vault /srv/vault vault log --limit 20
holdfast --vault /srv/vault --at 0.17 point list`,
		statuses: vaultStatuses,
		run: func(cmd *cobra.Command, _ []string) error {
			if limit < 0 {
				return usagef("--limit: %d is less than 0", limit)
			}
			return a.withVault(cmd.Context(), func(v *vault.Vault) error {
				if err := a.printHistory(cmd.Context(), v, limit); err != nil {
					return fmt.Errorf("read the history of vault %s: %w", v.ShortID(), err)
				}
				return nil
			})
		},
	}.build()
	cmd.Flags().IntVar(&limit, "limit", 0, "show at most this many `entries`; 0 shows all")
	return cmd
}

func (a *app) printHistory(ctx context.Context, v *vault.Vault, limit int) error {
	events := []vault.Event{}
	err := v.History(ctx, func(e vault.Event) bool {
		events = append(events, e)
		return len(events) != limit
	})
	if err != nil {
		return err
	}
	if a.json {
		return a.printJSON(events)
	}
	var rows [][]string
	for _, e := range events {
		when := humanTime(e.Time)
		if e.Time.Unix() == 0 { // the first entry follows from the key alone: nobody's clock has to do with it
			when = ""
		}
		rows = append(rows, []string{e.Entry, when, e.Who, e.What, pointNames(e.Points), sizeOrNone(e.Bytes),
			e.Text})
	}
	return a.printTable([]string{"entry", "time (UTC)", "who", "what", "points", ">stored", "text"}, rows)
}

// pointNames lists points for a column, but not without end.
func pointNames(ids []point.ID) string {
	const most = 3
	text := ""
	for i, id := range ids {
		if i == most {
			return fmt.Sprintf("%s and %d more", text, len(ids)-most)
		}
		if i > 0 {
			text += " "
		}
		text += id.Short()
	}
	return text
}

func sizeOrNone(n int64) string {
	if n == 0 {
		return ""
	}
	return humanSize(n)
}
