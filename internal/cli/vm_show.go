package cli

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"
)

func (a *app) vmShow() *cobra.Command {
	cmd := command{
		use: "show NAME", short: "Show a machine, its disks, and what of it a point does not hold",
		args: cobra.ExactArgs(1),
		long: `
NAME is a machine's name or UUID. What a point does not hold of a machine (shared folders,
persistent memory, disks that another process serves, devices of the host, and all that is not
known) is listed with the reason; a point has the same list.`,
		examples: `
holdfast vm show web
holdfast --connect qmp:/run/web.qmp vm show web --json`,
		run: func(cmd *cobra.Command, args []string) error { return a.showVM(cmd.Context(), args[0]) },
	}.build()
	cmd.ValidArgsFunction = a.completeVMs
	return cmd
}

func (a *app) showVM(ctx context.Context, name string) error {
	last, err := a.lastPoints(ctx)
	if err != nil {
		return err
	}
	hosts, err := a.openHosts(a.connections())
	if err != nil {
		return err
	}
	defer closeHosts(hosts)
	h, m, err := find(ctx, hosts, name)
	if err != nil {
		return fmt.Errorf("show vm %s: %w", name, err)
	}
	lacks, err := h.NotHeld(ctx, m)
	if err != nil {
		return fmt.Errorf("show vm %s: %w", name, err)
	}
	shown := a.listed(m, lacks, last)
	if a.json {
		return a.printJSON(shown)
	}
	return a.printVM(shown)
}

func (a *app) printVM(m ListedVM) error {
	agent, taken := "no channel", ""
	if m.Agent {
		agent = "channel"
	}
	if m.LastPoint != nil {
		taken = fmt.Sprintf("%s, %s, %s ago", m.LastPoint.ID.Short(), m.LastPoint.Consistency, m.LastPoint.age)
	}
	fields := [][2]string{{"vm", m.Name}, {"uuid", m.UUID}, {"state", string(m.State)}, {"host", m.Host},
		{"guest agent", agent}, {"last point", taken}}
	for _, o := range m.NotHeld {
		fields = append(fields, [2]string{"not held", o.String()})
	}
	var rows [][]string
	for _, d := range m.Disks {
		rows = append(rows, []string{d.Name, humanSize(d.Size), humanSize(d.Allocated), d.Format, d.Bus, d.File})
	}
	return errors.Join(a.printFields(fields...), a.println(""),
		a.printTable([]string{"disk", ">size", ">allocated", "format", "bus", "source"}, rows))
}
