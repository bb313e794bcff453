package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/holdfast-vm/holdfast/internal/protect"
	"github.com/holdfast-vm/holdfast/internal/vault"
)

func (a *app) imageCommands() *cobra.Command {
	return noun("image", "Back up disk images without a hypervisor", a.imageBackup())
}

type imageFlags struct {
	name, format string
	tags         []string
	secrets      []string
	asIs         bool
}

func (a *app) imageBackup() *cobra.Command {
	var flags imageFlags
	cmd := command{
		use: "backup FILE... --name NAME", short: "Take a recovery point of disk images", args: cobra.MinimumNArgs(1),
		long: `
Raw images, block devices, and all that qemu-nbd reads (qcow2, vmdk, vhdx). The images become
the disks vda, vdb and so on of the machine NAME, in the order given. They are read whole and
compared with the last point of that name; what did not change is not stored again.

An encrypted image (LUKS, or qcow2 of old with AES) is opened with --image-secret, and its plain
bytes are stored, sealed by the vault; or stored with --as-is as it lies, encrypted: then what is
in it can neither be listed nor compressed. A raw file that begins with a LUKS header may be the
guest's own doing: without --image-secret it is stored as it lies.

No machine may be using them: back up a running one with "holdfast vm backup".`,
		examples: `
holdfast --vault /srv/vault image backup web.qcow2 --name web
holdfast --vault /srv/vault image backup /dev/vg0/db-root /dev/vg0/db-data --name db --format raw
holdfast --vault /srv/vault image backup safe.qcow2 --name safe --image-secret /root/safe.key`,
		statuses: vaultStatuses + ", 130 interrupted",
		run:      func(cmd *cobra.Command, args []string) error { return a.backUpImages(cmd.Context(), args, flags) },
	}.build()
	f := cmd.Flags()
	f.StringVar(&a.compression, "compression", "",
		"how hard to compress: `fast`, dense (about 5 % smaller, several times slower) or none")
	f.StringVar(&flags.name, "name", "", "`name` of the machine that the images belong to")
	f.StringVar(&flags.format, "format", "", "`format` of all the images (default: by what is in them)")
	f.StringArrayVar(&flags.tags, "tag", nil, "`key=value` to store with the point; repeatable")
	addImageSecret(f, &flags.secrets)
	f.BoolVar(&flags.asIs, "as-is", false, "store encrypted images as they lie, without their secrets")
	return cmd
}

func (a *app) backUpImages(ctx context.Context, files []string, flags imageFlags) error {
	a.lean()
	a.compresses()
	if flags.name == "" {
		return withHint(usagef("image backup: --name is missing"),
			"say which machine the images belong to: --name NAME")
	}
	tags, err := parseTags(flags.tags)
	if err != nil {
		return err
	}
	secrets, err := readImageSecrets(flags.secrets)
	if err != nil {
		return err
	}
	if flags.asIs && len(secrets) > 0 {
		return usagef("image backup: --as-is and --image-secret: give one of them")
	}
	return a.withVault(ctx, func(v *vault.Vault) error {
		m := a.meter()
		p, err := protect.Images(ctx, protect.ImageDeps{Vault: v, Version: Version, Progress: m.Update, Now: a.env.Now},
			protect.ImageRequest{Name: flags.name, Files: files, Format: flags.format, Tags: tags,
				Secrets: secrets, AsIs: flags.asIs})
		m.Close()
		if err != nil {
			return fmt.Errorf("back up the images of %s: %w", flags.name, explainSecret(err, secrets))
		}
		return a.printTaken(p)
	})
}
