package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/holdfast-vm/holdfast/internal/point"
	"github.com/holdfast-vm/holdfast/internal/snapshots"
	"github.com/holdfast-vm/holdfast/internal/vault"
)

type snapshotDiffFlags struct {
	disk, to       string
	digests, force bool
}

func (a *app) snapshotDiff() *cobra.Command {
	var flags snapshotDiffFlags
	cmd := command{
		use:   "diff A B [--disk D] [--to FILE|-]",
		short: "Show where the disks of two snapshots differ, or write the difference", args: cobra.ExactArgs(2),
		long: `A and B are names or the beginnings of IDs. Ranges are whole chunks of the vault.

With --to the changed bytes are written as a stream that "holdfast snapshot apply" turns a
copy of A into B with, where neither vault nor key are. It carries checksums of every changed
range before and after; --digests adds those of both whole disks, for which they are read
whole.`,
		examples: `
holdfast --vault /srv/vault snapshot diff monday tuesday
holdfast --vault /srv/vault snapshot diff monday tuesday --disk vdb --to monday-tuesday.hfdiff
holdfast --vault /srv/vault snapshot diff monday tuesday --to - | ssh other holdfast snapshot apply - --to data.img`,
		statuses: vaultStatuses, reads: true,
		run: func(cmd *cobra.Command, args []string) error {
			return a.diffSnapshots(cmd.Context(), args[0], args[1], flags)
		},
	}.build()
	f := cmd.Flags()
	f.StringVar(&flags.disk, "disk", "", "only this `disk`")
	f.StringVar(&flags.to, "to", "", "`file` to write a diff stream to; - is standard output")
	f.BoolVar(&flags.digests, "digests", false, "read both disks whole, so that base and result are checked whole")
	f.BoolVar(&flags.force, "force", false, "overwrite the file")
	return cmd
}

func (a *app) diffSnapshots(ctx context.Context, x, y string, flags snapshotDiffFlags) error {
	return a.withSnapshot(ctx, x, func(v *vault.Vault, first *point.RecoveryPoint) error {
		second, err := snapshots.Find(ctx, v, y)
		if err != nil {
			return fmt.Errorf("find snapshot %q in vault %s: %w", y, v.ShortID(), err)
		}
		pairs, err := snapshots.Pairs(first, second, flags.disk)
		if err != nil {
			return err
		}
		if flags.to != "" {
			return a.writeDiff(ctx, v, first, second, pairs, flags)
		}
		diffs := []DiskDiff{}
		for _, pair := range pairs {
			diff, err := diffDisk(ctx, v, pair.A, pair.B)
			if err != nil {
				return fmt.Errorf("compare snapshots %s and %s: %w", first.Name, second.Name, err)
			}
			diffs = append(diffs, diff)
		}
		if a.json {
			return a.printJSON(diffs)
		}
		return a.printDiffs(diffs)
	})
}

// WrittenDiff says what snapshot diff --to wrote.
type WrittenDiff struct {
	File    string   `json:"file"`
	From    point.ID `json:"from"`
	To      point.ID `json:"to"`
	Size    int64    `json:"size"`          // bytes of the disk
	Changed int64    `json:"changed_bytes"` // in the stream's ranges
	Ranges  int64    `json:"ranges"`
}

func (a *app) writeDiff(ctx context.Context, v *vault.Vault, first, second *point.RecoveryPoint, pairs []snapshots.Pair,
	flags snapshotDiffFlags) error {
	if len(pairs) != 1 {
		return usagef("snapshot diff: a stream is of one disk: name it with --disk")
	}
	changed, err := compareTrees(ctx, v, pairs[0].A, pairs[0].B)
	if err != nil {
		return fmt.Errorf("compare snapshots %s and %s: %w", first.Name, second.Name, err)
	}
	from, err := side(v, first.ID, pairs[0].A)
	if err != nil {
		return err
	}
	to, err := side(v, second.ID, pairs[0].B)
	if err != nil {
		return err
	}
	m := a.meter()
	defer m.Close()
	options := snapshots.WriteOptions{Digests: flags.digests, Progress: func(done, total int64) {
		m.Update("diff", done, total)
	}}
	var h snapshots.Head
	err = a.toFile(flags.to, flags.force, func(w io.Writer) error {
		h, err = snapshots.WriteStream(ctx, w, from, to, changed, options)
		return err
	})
	if err != nil {
		return fmt.Errorf("write the difference of %s and %s to %s: %w", first.Name, second.Name, flags.to, err)
	}
	if flags.to == "-" {
		return nil
	}
	out := WrittenDiff{File: flags.to, From: h.From, To: h.To, Size: h.ToSize, Changed: h.Changed, Ranges: h.Ranges}
	if a.json {
		return a.printJSON(out)
	}
	return a.println(fmt.Sprintf("wrote %s: what turns %s into %s, %s in %s", out.File, first.Name, second.Name,
		humanSize(out.Changed), counted(out.Ranges, "range")))
}

func side(v *vault.Vault, id point.ID, d *point.Disk) (snapshots.Side, error) {
	disk, err := v.OpenDisk(d.Root, d.Size)
	if err != nil {
		return snapshots.Side{}, err
	}
	return snapshots.Side{ID: id, Size: d.Size, Data: disk, Extents: disk.Extents}, nil
}

// toFile writes a file that appears under its name when it is complete and durable, or to standard
// output.
func (a *app) toFile(path string, force bool, write func(io.Writer) error) error {
	if path == "-" {
		return write(a.env.Stdout)
	}
	if _, err := os.Lstat(path); err == nil && !force {
		return withHint(fmt.Errorf("%s: %w", path, os.ErrExist), "choose another name, or give --force to overwrite it")
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".holdfast-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	if err := errors.Join(write(f), f.Chmod(0o644), f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func (a *app) snapshotApply() *cobra.Command {
	var to string
	cmd := command{
		use: "apply STREAM|- --to FILE", short: "Turn a raw image from the base of a diff stream into its target",
		args: cobra.ExactArgs(1),
		long: `
Needs neither vault nor key. FILE is a raw image or block device that holds what the stream
was counted from, such as the first snapshot restored. Nothing is written before the whole
stream was read, found undamaged, and every range that it changes was found in FILE as it
was. Applying again completes what was interrupted.`,
		examples: `
holdfast snapshot apply monday-tuesday.hfdiff --to data.img
ssh east holdfast --vault /srv/vault snapshot diff a b --to - | holdfast snapshot apply - --to /dev/vg0/data`,
		run: func(cmd *cobra.Command, args []string) error { return a.applyStream(cmd.Context(), args[0], to) },
	}.build()
	cmd.Flags().StringVar(&to, "to", "", "raw image `file` or block device to change")
	return cmd
}

// AppliedDiff says what snapshot apply did.
type AppliedDiff struct {
	File    string   `json:"file"`
	From    point.ID `json:"from"`
	To      point.ID `json:"to"`
	Size    int64    `json:"size"`
	Written int64    `json:"written_bytes"`
	Checked string   `json:"checked"` // "whole" or "changed ranges"
}

func (a *app) applyStream(ctx context.Context, stream, to string) error {
	if to == "" {
		return usagef("snapshot apply: --to is missing")
	}
	in := a.env.Stdin
	if stream != "-" {
		f, err := os.Open(stream)
		if err != nil {
			return err
		}
		defer f.Close()
		in = f
	}
	m := a.meter()
	done, err := snapshots.Apply(ctx, in, to, func(done, total int64) { m.Update("apply", done, total) })
	m.Close()
	if err != nil {
		return fmt.Errorf("apply %s to %s: %w", stream, to, err)
	}
	out := AppliedDiff{File: to, From: done.From, To: done.To, Size: done.ToSize, Written: done.Written,
		Checked: "changed ranges"}
	if done.Whole {
		out.Checked = "whole"
	}
	if a.json {
		return a.printJSON(out)
	}
	return a.println(fmt.Sprintf("%s is snapshot %s now: %s written (checked: %s)", to, done.To.Short(),
		humanSize(done.Written), out.Checked))
}
