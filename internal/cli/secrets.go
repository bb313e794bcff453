package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"filippo.io/age"

	"github.com/holdfast-vm/holdfast/internal/point"
	"github.com/holdfast-vm/holdfast/internal/vault"
)

// secrets are the key files written for a vault that is being made. They are durable before the
// vault exists, under names that get the vault's ID once it has one.
type secrets struct {
	files []string // written here, to be removed if the vault is not made

	everyday   string // key file; "" where a passphrase opens the vault
	defaultKey bool   // everyday is to be named by the vault's ID

	staged    string // where the recovery page is now
	recovery  string // where it is to be; "" means named by the vault's ID, in the directory of staged
	identity  *age.X25519Identity
	vaultDir  string
	createdAt time.Time
}

func (s *secrets) write(path, text string) error {
	if err := writeSecret(path, text); err != nil {
		return err
	}
	s.files = append(s.files, path)
	return nil
}

func (s *secrets) remove() {
	for _, f := range s.files {
		os.Remove(f)
	}
}

// stageRecovery writes the recovery page, whose ID is not known yet, beside the place where it is
// to be.
func (a *app) stageRecovery(s *secrets, id *age.X25519Identity, vaultDir, target string) error {
	dir := filepath.Dir(target)
	switch {
	case target != "":
		if _, err := os.Lstat(target); err == nil {
			return withHint(fmt.Errorf("%s: %w", target, fs.ErrExist), "choose another name with --recovery-key")
		}
	case s.everyday != "":
		dir = filepath.Dir(s.everyday)
	default: // a passphrase: there is no key file to be beside
		key, err := a.defaultKeyFile("any")
		if err != nil {
			return err
		}
		dir = filepath.Dir(key)
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
	}
	s.identity, s.vaultDir, s.recovery, s.createdAt = id, vaultDir, target, a.env.Now()
	s.staged = filepath.Join(dir, "holdfast-recovery-new-"+string(point.NewID())+".txt")
	return s.write(s.staged, recoveryPage(id, vault.Known{ID: "(being made)"}, vaultDir, s.createdAt))
}

// settle gives the files their names, now that the vault has an ID.
func (s *secrets) settle(a *app, known vault.Known, made *Created) error {
	short := shortID(known.ID)
	if s.everyday != "" {
		if err := pinKeyFile(s.everyday, known, slices.Contains(s.files, s.everyday)); err != nil {
			a.remark("warning: the key file does not say which vault it is for: %v", err)
		}
	}
	if s.defaultKey {
		path, err := a.defaultKeyFile(short)
		if err != nil {
			return err
		}
		if err := renameSecret(s.everyday, path); err != nil {
			return err
		}
		s.everyday = path
	}
	if s.recovery == "" {
		s.recovery = filepath.Join(filepath.Dir(s.staged), "holdfast-recovery-"+short+".txt")
	}
	if err := writeSecret(s.recovery, recoveryPage(s.identity, known, s.vaultDir, s.createdAt)); err != nil {
		s.recovery = s.staged
		return err
	}
	if err := os.Remove(s.staged); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	var err, recoveryErr error
	if s.everyday != "" {
		made.KeyFile, err = filepath.Abs(s.everyday)
	}
	made.RecoveryKey, recoveryErr = filepath.Abs(s.recovery)
	return errors.Join(err, recoveryErr)
}
