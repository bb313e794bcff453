package cli

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/pflag"

	"github.com/holdfast-vm/holdfast/internal/diskimage"
	"github.com/holdfast-vm/holdfast/internal/point"
	"github.com/holdfast-vm/holdfast/internal/restore"
)

const imageSecretHelp = "`[DISK=]FILE` with the secret of encrypted images, every byte of it; repeatable"

// addImageSecret adds the flag for secrets of encrypted images.
func addImageSecret(f *pflag.FlagSet, values *[]string) {
	f.StringArrayVar(values, "image-secret", nil, imageSecretHelp)
}

// readImageSecrets reads the files that --image-secret names.
func readImageSecrets(values []string) (diskimage.Secrets, error) {
	if len(values) == 0 {
		return nil, nil
	}
	secrets := diskimage.Secrets{}
	for _, v := range values {
		disk, file, named := strings.Cut(v, "=")
		if _, err := os.Stat(v); !named || strings.Contains(disk, "/") || err == nil {
			disk, file = "", v
		}
		if _, twice := secrets[disk]; twice {
			return nil, usagef("--image-secret: two files for the same disks; say DISK=FILE")
		}
		secret, err := diskimage.ReadSecret(file)
		if err != nil {
			return nil, err
		}
		secrets[disk] = secret
	}
	return secrets, nil
}

// explainSecret adds what people stumble over: QEMU takes a line end for part of the secret.
func explainSecret(err error, secrets diskimage.Secrets) error {
	if !errors.Is(err, diskimage.ErrSecret) {
		return err
	}
	for _, s := range secrets {
		if strings.HasSuffix(string(s.Bytes), "\n") {
			return withHint(err, "%s ends with a line end, which counts as part of the secret, as in QEMU: "+
				"does the secret have one? `printf %%s SECRET > FILE` writes none", s.File)
		}
	}
	return err
}

// keyFlags say how disks are written whose images were encrypted.
type keyFlags struct {
	secrets []string
	plain   bool
}

func (k *keyFlags) add(f *pflag.FlagSet) {
	f.StringArrayVar(&k.secrets, "image-secret", nil, "`[DISK=]FILE` with the secret to encrypt images with that were "+
		"encrypted; repeatable")
	f.BoolVar(&k.plain, "plain", false, "write plain what was encrypted on its host")
}

func (k *keyFlags) keys() (restore.Keys, error) {
	if k.plain && len(k.secrets) > 0 {
		return restore.Keys{}, usagef("--plain and --image-secret: give one of them")
	}
	secrets, err := readImageSecrets(k.secrets)
	return restore.Keys{Secrets: secrets, Plain: k.plain}, err
}

// remarkEncrypted says what a point holds of disks whose images are encrypted.
func (a *app) remarkEncrypted(p *point.RecoveryPoint) {
	for _, d := range p.Disks {
		if d.WasEncrypted() {
			a.remark("disk %s is encrypted on its host (%s): the point holds its plain bytes, sealed by the vault; a "+
				"restore asks "+
				"whether to encrypt it again", d.Name, d.Source.Encryption.Format)
		}
	}
}

// encryptionText says how a disk's image is encrypted, in a word; "" if it is not.
func encryptionText(d point.Disk) string {
	switch e := d.Source.Encryption; {
	case e == nil:
		return ""
	case e.AsIs:
		return fmt.Sprintf(", %s as it lay", e.Format)
	default:
		return fmt.Sprintf(", was %s", e.Format)
	}
}
