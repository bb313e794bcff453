package cli

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/holdfast-vm/holdfast/internal/hypervisor"
	"github.com/holdfast-vm/holdfast/internal/point"
	"github.com/holdfast-vm/holdfast/internal/restore"
	"github.com/holdfast-vm/holdfast/internal/vault"
)

type restoreFlags struct {
	disk, to, format string
	force            bool

	as, storage    string
	networks       []string
	inPlace, start bool
	accel          string

	keyFlags

	instant, detach bool
	rate            string
}

func (a *app) pointRestore() *cobra.Command {
	var flags restoreFlags
	cmd := command{
		use:   "restore POINT (--to FILE [--disk NAME] | --as NAME --storage DIR)",
		short: "Bring back a disk or a whole machine",
		args:  cobra.ExactArgs(1),
		long: pointArgHelp + `

With --to, one disk is written to a new file, raw or qcow2, or to a block device. Every byte is
verified while it is written, and only what is not a hole is.

With --as, all disks and files of the machine are written to the --storage directory, and the
host given with --connect defines the machine. If NAME is the lost machine's own name, and the
host has no machine of that name or UUID, it comes back in place: same UUID and MAC addresses.
Else it is a new machine with its own. --in-place insists on the former. If anything fails,
what was written is removed.

A machine under KVM that is to be started is restored only if a test guest runs under KVM here:
it is tried first. --accel tcg has it emulated, slowly, and --accel kvm insists on KVM untried.

A disk whose image was encrypted is not written plain in silence: --image-secret encrypts it again
(qcow2 with LUKS), --plain says that it may be plain. A point of an encrypted image that was
stored as it lay gives back the image.

With --instant the machine is defined, and with --start runs, at once, whatever the size of its
disks: they are read from the vault as the guest needs them, and copied to the storage directory
behind, at most at --rate. Until that is done the machine depends on this process, which serves
its disks; --detach leaves it in the background. If it is killed the machine waits, and
"holdfast instant resume" goes on. See "holdfast instant --help".`,
		examples: `
holdfast --vault /srv/vault point restore web@latest --disk vda --to /srv/images/web.qcow2
holdfast --vault /srv/vault point restore 3fa9 --disk vdb --to /dev/vg0/db-data --force
holdfast --vault /srv/vault --connect qemu:///system point restore web@latest --as web --storage /srv/images --start
holdfast --vault /srv/vault --connect qmp:/run/w2.qmp point restore 3fa9 --as web2 --storage /srv/web2 --network br0=br1
holdfast --vault /srv/vault point restore web@latest --as web --storage /srv/images --instant --start --rate 100MiB/s`,
		statuses: "3 damage found, " + vaultStatuses + ", 130 interrupted", reads: true,
		run: func(cmd *cobra.Command, args []string) error {
			return a.restorePoint(cmd.Context(), args[0], flags)
		},
	}.build()
	f := cmd.Flags()
	f.StringVar(&flags.disk, "disk", "", "`name` of the disk; needed if the point has several")
	f.StringVar(&flags.to, "to", "", "`file` or block device to write the disk to")
	f.StringVar(&flags.format, "format", "",
		"raw or qcow2 (default: by the file's name, or for a machine what the disk was)")
	f.BoolVar(&flags.force, "force", false, "overwrite a file that exists or a block device that holds something")
	f.StringVar(&flags.as, "as", "", "`name` of the machine to define")
	f.StringVar(&flags.storage, "storage", "", "`directory` for the machine's disks and files")
	f.StringArrayVar(&flags.networks, "network", nil, "`old=new` network or bridge; repeatable")
	f.BoolVar(&flags.inPlace, "in-place", false, "insist on the UUID and MAC addresses of the lost machine")
	f.BoolVar(&flags.start, "start", false, "start the machine")
	flags.keyFlags.add(f)
	f.StringVar(&flags.accel, "accel", "", accelHelp)
	f.BoolVar(&flags.instant, "instant", false, "define and start the machine at once, and copy its disks behind")
	f.StringVar(&flags.rate, "rate", "", "copy at most `size` a second behind an instant restore, such as 100MiB/s")
	f.BoolVar(&flags.detach, "detach", false, "return when the machine runs and go on copying in the background")
	cmd.ValidArgsFunction = a.completePoints
	return cmd
}

func (a *app) restorePoint(ctx context.Context, ref string, flags restoreFlags) error {
	a.lean()
	if err := flags.check(); err != nil {
		return err
	}
	if flags.instant && a.at != "" {
		return usagef("point restore: --instant needs its point to stay, and --at shows what was: leave one of them " +
			"out")
	}
	if flags.detach {
		return a.detachInstant(ctx, flags.storage, flags.as)
	}
	return a.withHeldPoint(ctx, ref, func(v *vault.Vault, p *point.RecoveryPoint) error {
		if flags.instant && len(p.Disks) > 0 {
			return a.restoreInstant(ctx, v, p, flags)
		}
		if flags.as != "" {
			return a.restoreMachine(ctx, v, p, flags)
		}
		return a.restoreDisk(ctx, v, p, flags)
	})
}

func (f restoreFlags) check() error {
	switch {
	case (f.to == "") == (f.as == ""):
		return usagef("point restore: give either --to FILE for a disk or --as NAME for the machine")
	case f.as != "" && f.storage == "":
		return usagef("point restore: --as needs --storage DIR for the machine's disks")
	case f.as != "" && (f.disk != "" || f.force):
		return usagef("point restore: --disk and --force go with --to, not with --as")
	case f.to != "" && (f.storage != "" || f.start || f.inPlace || len(f.networks) > 0 || f.accel != ""):
		return usagef("point restore: --storage, --network, --in-place, --accel and --start go with --as, not with " +
			"--to")
	case f.instant && f.as == "":
		return usagef("point restore: --instant goes with --as: it is for a whole machine")
	case !f.instant && (f.rate != "" || f.detach):
		return usagef("point restore: --rate and --detach go with --instant")
	case f.format != "" && f.format != "raw" && f.format != "qcow2":
		return usagef("point restore: --format is raw or qcow2, not %q", f.format)
	}
	return checkAccel("point restore", f.accel)
}

func (a *app) restoreDisk(ctx context.Context, v *vault.Vault, p *point.RecoveryPoint, flags restoreFlags) error {
	keys, err := flags.keys()
	if err != nil {
		return err
	}
	m := a.meter()
	done, err := restore.Disk(ctx, v, restore.DiskRequest{
		Point: p, Disk: flags.disk, To: flags.to, Format: flags.format, Force: flags.force, Keys: keys,
		Progress: m.Update,
	})
	m.Close()
	if err != nil {
		what := "a disk"
		if flags.disk != "" {
			what = "disk " + flags.disk
		}
		return fmt.Errorf("restore %s of point %s to %s: %w", what, p.ID.Short(), flags.to, err)
	}
	if a.json {
		return a.printJSON(done)
	}
	return a.println(fmt.Sprintf("restored disk %s of %s as of %s UTC to %s (%s, %s, %s of data)", done.Disk, p.VM,
		humanTime(p.Time),
		done.File, formatText(done), humanSize(done.Size), humanSize(done.Used)))
}

func (a *app) restoreMachine(ctx context.Context, v *vault.Vault, p *point.RecoveryPoint, flags restoreFlags) error {
	req, err := flags.machineRequest(p)
	if err != nil {
		return err
	}
	done, err := a.rebuild(ctx, v, req)
	if err != nil {
		return fmt.Errorf("restore vm %s as %s from point %s: %w", p.VM, flags.as, p.ID.Short(), err)
	}
	return a.printRestored(p, done)
}

func (f restoreFlags) machineRequest(p *point.RecoveryPoint) (restore.MachineRequest, error) {
	networks := map[string]string{}
	for _, s := range f.networks {
		from, to, ok := strings.Cut(s, "=")
		if !ok || from == "" || to == "" {
			return restore.MachineRequest{}, usagef("--network: %q is not OLD=NEW", s)
		}
		networks[from] = to
	}
	keys, err := f.keys()
	return restore.MachineRequest{
		Point: p, Name: f.as, Storage: f.storage, Format: f.format, Networks: networks, InPlace: f.inPlace,
		Start: f.start, Keys: keys, Accel: f.accel,
	}, err
}

func (a *app) printRestored(p *point.RecoveryPoint, done restore.RestoredMachine) error {
	if a.json {
		done.Disks = orEmpty(done.Disks)
		return a.printJSON(done)
	}
	a.warn(done.Warnings)
	for _, d := range done.Disks {
		a.println(fmt.Sprintf("  %s: %s (%s, %s)", d.Disk, d.File, formatText(d), humanSize(d.Size)))
	}
	for _, f := range done.Files {
		a.println("  " + f)
	}
	a.println(fmt.Sprintf("restored vm %s as of %s UTC as %s: %s", p.VM, humanTime(p.Time), done.Name, done.Identity))
	if done.Start != "" && done.State != hypervisor.Running {
		a.println("start it with: " + done.Start)
	}
	return nil
}

func (a *app) rebuild(ctx context.Context, v *vault.Vault, req restore.MachineRequest) (restore.RestoredMachine,
	error) {
	uris := a.connections()
	if len(uris) != 1 {
		return restore.RestoredMachine{}, usagef("a machine is restored to one host: give --connect once")
	}
	h, closeHost, err := a.instantHost(uris[0])
	if err != nil {
		return restore.RestoredMachine{}, err
	}
	defer closeHost()
	m := a.meter()
	defer m.Close()
	req.Progress = m.Update
	return restore.Machine(ctx, v, h, req)
}

func formatText(d restore.RestoredDisk) string {
	if d.Encrypted {
		return "encrypted " + d.Format
	}
	return d.Format
}
