package cli

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"filippo.io/age"

	"github.com/holdfast-vm/holdfast/internal/vault"
)

// identityText is what a key file holds: an age identity with a word on what it is.
func identityText(id *age.X25519Identity, created time.Time) string {
	return fmt.Sprintf("# Holdfast key file, an age identity. Whoever has it can read the vault; without a key "+
		"nobody can.\n"+
		"# created: %s\n# public key: %s\n%s\n", created.UTC().Format(time.RFC3339), id.Recipient(), id)
}

// recoveryPage is the recovery key as a page to print. It is a key file too.
func recoveryPage(id *age.X25519Identity, v vault.Known, dir string, created time.Time) string {
	return fmt.Sprintf(`# HOLDFAST RECOVERY KEY
#
# Vault       %s
# Fingerprint %s   (as "vault info" shows it)
# Directory   %s   (when it was made)
# Created     %s
#
# This key opens the vault above, as its everyday key does. It is for the day
# on which every other key is lost. Without any key nothing in the vault can
# be read again, by anybody.
#
# Print this page, keep it apart from the vault and from the everyday key,
# then delete the file.
#
# To use it, type the line below into a file, exactly, and name that file:
#
#     holdfast --vault DIR --key-file THAT-FILE point list
#
# Then add a new everyday key:
#
#     holdfast --vault DIR --key-file THAT-FILE vault key add --name NAME --new-key-file NEW-FILE

%s
`, v.ID, v.Print, dir, created.UTC().Format("2006-01-02"), id)
}

// writeSecret writes a new file that only its owner can read, and makes it survive power loss. It
// refuses a name that exists.
func writeSecret(path, text string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = syncDir(filepath.Dir(path))
	}
	if err != nil {
		os.Remove(path)
	}
	return err
}

// renameSecret gives a secret its last name, unless that name exists.
func renameSecret(from, to string) error {
	if err := os.Link(from, to); err != nil {
		return err
	}
	if err := os.Remove(from); err != nil {
		return err
	}
	return syncDir(filepath.Dir(to))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
