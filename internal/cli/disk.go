package cli

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/holdfast-vm/holdfast/internal/disks"
)

func (a *app) diskCommands() *cobra.Command {
	cmd := noun("disk", "Keep managed disks: make, attach, resize and delete them",
		a.diskCreate(), a.diskList(), a.diskShow(), a.diskAttach(), a.diskDetach(), a.diskResize(), a.diskHydrate(),
		a.diskReconcile(), a.diskDelete())
	a.poolFlag(cmd)
	return cmd
}

// ListedDisk is a managed disk as disk list --json and disk show --json print it.
type ListedDisk struct {
	disks.Status
	Path string `json:"path"`
}

func (a *app) diskList() *cobra.Command {
	return command{
		use: "list", short: "List the managed disks of a pool", args: cobra.NoArgs,
		long: poolHelp + `

Each record is compared with the disk's image and with the machine that has it. What does
not fit together is told with what to do about it, and is exit status 1.`,
		examples: `
holdfast --pool /srv/images disk list
holdfast --connect qemu:///system --pool libvirt:default disk list --json`,
		run: func(cmd *cobra.Command, _ []string) error {
			return a.withPool(cmd.Context(), func(p *pooled) error { return a.listDisks(cmd.Context(), p) })
		},
	}.build()
}

func (a *app) listDisks(ctx context.Context, p *pooled) error {
	all, unread := p.Disks()
	list := []ListedDisk{}
	problems := 0
	for _, d := range all {
		s := p.Inspect(ctx, d)
		if s.Problem != "" {
			problems++
		}
		list = append(list, ListedDisk{s, p.Path(d)})
	}
	if problems > 0 {
		unread = errors.Join(unread, withHint(fmt.Errorf("attention is needed by %s", counted(problems, "disk")),
			"each says what to do about it"))
	}
	if a.json {
		return errors.Join(a.printJSON(list), unread)
	}
	var rows [][]string
	for _, d := range list {
		rows = append(rows, []string{d.Name, d.ID[:8], humanSize(d.Size), d.Format, d.State, attachedText(d.Attached),
			d.Source.String()})
	}
	if err := a.printTable([]string{"name", "id", ">size", "format", "state", "attached to", "source"},
		rows); err != nil {
		return err
	}
	for _, d := range list {
		if d.Problem != "" {
			a.println(fmt.Sprintf("\n%s: %s\n  %s", d.Name, oneLine(d.Problem), d.Fix))
		}
	}
	return unread
}

func attachedText(at *disks.Attachment) string {
	if at == nil {
		return "-"
	}
	text := at.VM + ":" + at.As
	if at.ReadOnly {
		text += " (read-only)"
	}
	return text
}

func (a *app) diskShow() *cobra.Command {
	return command{
		use: "show NAME", short: "Show all that is known of a managed disk", args: cobra.ExactArgs(1), long: poolHelp,
		examples: "holdfast --pool /srv/images disk show data",
		run: func(cmd *cobra.Command, args []string) error {
			return a.withPool(cmd.Context(), func(p *pooled) error {
				d, err := p.Disk(args[0])
				if err != nil {
					return err
				}
				s := ListedDisk{p.Inspect(cmd.Context(), d), p.Path(d)}
				if a.json {
					return a.printJSON(s)
				}
				return a.printDisk(s)
			})
		},
	}.build()
}

func (a *app) printDisk(s ListedDisk) error {
	d := s.Disk
	fields := [][2]string{
		{"disk", d.Name}, {"id", d.ID}, {"state", s.State},
		{"size", fmt.Sprintf("%s (%d bytes)", humanSize(d.Size), d.Size)},
		{"format", d.Format}, {"image", s.Path}, {"created", humanTime(d.Created) + " UTC"},
		{"source", d.Source.String()}, {"tags", tagText(d.Tags)},
	}
	if at := d.Attached; at != nil {
		fields = append(fields, [2]string{"attached to",
			fmt.Sprintf("%s on %s, since %s UTC", attachedText(at), at.Host, humanTime(at.Since))})
	}
	fields = append(fields, [2]string{"problem", s.Problem}, [2]string{"to do", s.Fix})
	return a.printFields(fields...)
}

func tagText(tags map[string]string) string {
	var out []string
	for _, k := range slices.Sorted(maps.Keys(tags)) {
		out = append(out, k+"="+tags[k])
	}
	return strings.Join(out, " ")
}

func (a *app) diskResize() *cobra.Command {
	return command{
		use: "resize NAME SIZE", short: "Make a managed disk larger", args: cobra.ExactArgs(2),
		long: `
A running machine that has the disk is told at once; the partitions and file systems in it
are the guest's business. A disk cannot be made smaller.

` + poolHelp,
		examples: "holdfast --pool /srv/images disk resize data 128GiB",
		run: func(cmd *cobra.Command, args []string) error {
			size, err := parseSize(args[1])
			if err != nil {
				return usagef("disk resize: %v", err)
			}
			return a.changeDisk(cmd.Context(), func(ctx context.Context, p *pooled) (*disks.Disk, string, error) {
				d, err := p.Resize(ctx, args[0], size)
				return d, "is now " + humanSize(size) + " large", err
			})
		},
	}.build()
}

// changeDisk does something to a disk and prints the disk.
func (a *app) changeDisk(ctx context.Context,
	do func(ctx context.Context, p *pooled) (*disks.Disk, string, error)) error {
	return a.withPool(ctx, func(p *pooled) error {
		d, what, err := do(ctx, p)
		if err != nil {
			return err
		}
		if a.json {
			return a.printJSON(d)
		}
		return a.println("disk " + d.Name + " " + what)
	})
}

func (a *app) diskDelete() *cobra.Command {
	return command{
		use: "delete NAME", short: "Delete a managed disk and its image", args: cobra.ExactArgs(1),
		long: `
Refused while a machine has the disk, a process uses its image, or another image of the pool
is based on it. Its snapshots stay: none needs the disk.

` + poolHelp,
		examples: "holdfast --pool /srv/images disk delete data",
		run: func(cmd *cobra.Command, args []string) error {
			return a.withPool(cmd.Context(), func(p *pooled) error {
				if err := p.Delete(cmd.Context(), args[0]); err != nil {
					return err
				}
				if a.json {
					return a.printJSON(map[string]string{"deleted": args[0]})
				}
				return a.println("deleted disk " + args[0])
			})
		},
	}.build()
}

func (a *app) diskReconcile() *cobra.Command {
	return command{
		use: "reconcile [NAME...]", short: "Finish or undo what killed commands left of disks",
		args: cobra.ArbitraryArgs,
		long: `
What was begun with a disk and not finished is finished or undone, by what its image and
its machine show, and the record is made to say what is. Without names, all disks of the
pool. Disks that another process works on are left alone.

` + poolHelp,
		examples: `
holdfast --pool /srv/images disk reconcile data
holdfast --pool /srv/images disk reconcile`,
		run: func(cmd *cobra.Command, args []string) error {
			return a.withPool(cmd.Context(), func(p *pooled) error { return a.reconcileDisks(cmd.Context(), p, args) })
		},
	}.build()
}

// ReconciledDisk is what disk reconcile did to a disk.
type ReconciledDisk struct {
	Disk string   `json:"disk"`
	Did  []string `json:"did"`
}

func (a *app) reconcileDisks(ctx context.Context, p *pooled, names []string) error {
	var failed error
	if len(names) == 0 {
		all, err := p.Disks()
		failed = err
		for _, d := range all {
			names = append(names, d.Name)
		}
	}
	out := []ReconciledDisk{}
	for _, name := range names {
		did, err := p.Reconcile(ctx, name)
		failed = errors.Join(failed, err)
		if err == nil {
			out = append(out, ReconciledDisk{name, orEmpty(did)})
		}
	}
	if a.json {
		return errors.Join(a.printJSON(out), failed)
	}
	for _, r := range out {
		text := "nothing to do"
		if len(r.Did) > 0 {
			text = strings.Join(r.Did, "; ")
		}
		a.println(r.Disk + ": " + text)
	}
	return failed
}
