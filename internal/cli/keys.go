package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/term"

	"github.com/holdfast-vm/holdfast/internal/vault"
)

const (
	maxKeyFile    = 64 << 10 // bytes; a larger file was not meant to be a key
	minPassphrase = 8        // bytes

	passphraseEnv = "HOLDFAST_PASSPHRASE"
)

// foundKey is a key with the vaults that the file says it is for which it was found in.
type foundKey struct {
	vault.Key
	pins pins
}

// readKeyFile returns the key that a file holds: the age identity in it, else its content as a
// passphrase.
func readKeyFile(path string) (foundKey, error) {
	data, err := readSmall(path)
	if err != nil {
		return foundKey{}, fmt.Errorf("read key file %s: %w", path, err)
	}
	for line := range strings.Lines(string(data)) {
		if line = strings.TrimSpace(line); strings.HasPrefix(line, "AGE-SECRET-KEY-") {
			return foundKey{vault.Key{Identity: line}, pinsOf(string(data))}, nil
		}
	}
	key, err := passphrase(data)
	if err != nil {
		return foundKey{}, fmt.Errorf("read key file %s: %w", path, err)
	}
	return key, nil
}

func readPassphraseFile(path string) (foundKey, error) {
	data, err := readSmall(path)
	if err != nil {
		return foundKey{}, fmt.Errorf("read passphrase file %s: %w", path, err)
	}
	key, err := passphrase(data)
	if err != nil {
		return foundKey{}, fmt.Errorf("read passphrase file %s: %w", path, err)
	}
	return key, nil
}

// passphrase makes a key of data less one line end.
func passphrase(data []byte) (foundKey, error) {
	data = bytes.TrimSuffix(data, []byte("\n"))
	data = bytes.TrimSuffix(data, []byte("\r"))
	if len(data) < minPassphrase {
		return foundKey{}, withHint(fmt.Errorf("a passphrase of %d bytes is too short", len(data)),
			"use at least %d bytes", minPassphrase)
	}
	return foundKey{Key: vault.Key{Passphrase: data}}, nil
}

func readSmall(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxKeyFile+1))
	if err == nil && len(data) > maxKeyFile {
		err = errors.New("it is larger than 64 KiB: not a key")
	}
	return data, err
}

// keySource is where the user said the key is.
type keySource struct {
	file, passphraseFile, passphrase string
}

// keySource returns what was given, flags before the environment; the zero value if nothing was.
func (a *app) keySource() (keySource, error) {
	if a.keyFile != "" && a.passphraseFile != "" {
		return keySource{}, usagef("--key-file and --passphrase-file: give one of them")
	}
	if a.keyFile != "" || a.passphraseFile != "" {
		return keySource{file: a.keyFile, passphraseFile: a.passphraseFile}, nil
	}
	for _, s := range []keySource{
		{file: a.env.Getenv("HOLDFAST_KEY_FILE")},
		{passphraseFile: a.env.Getenv("HOLDFAST_PASSPHRASE_FILE")},
		{passphrase: a.env.Getenv(passphraseEnv)},
	} {
		if s != (keySource{}) {
			return s, nil
		}
	}
	return keySource{}, nil
}

func (s keySource) read() (foundKey, error) {
	switch {
	case s.file != "":
		return readKeyFile(s.file)
	case s.passphraseFile != "":
		return readPassphraseFile(s.passphraseFile)
	}
	return passphrase([]byte(s.passphrase))
}

// defaultKeyFile is where the key of a vault is kept when nothing was said about it.
func (a *app) defaultKeyFile(shortID string) (string, error) {
	dir := a.env.Getenv("XDG_CONFIG_HOME")
	if dir == "" {
		home := a.env.Getenv("HOME")
		if home == "" {
			return "", errors.New("find the key directory: neither XDG_CONFIG_HOME nor HOME is set")
		}
		dir = filepath.Join(home, ".config")
	}
	return filepath.Join(dir, "holdfast", shortID+".key"), nil
}

// key finds the key of the vault with this ID: what was given, the file kept for it, or what is
// typed on the terminal.
func (a *app) key(ctx context.Context, vaultID string) (foundKey, error) {
	if a.keyFD != 0 {
		return a.handedKey()
	}
	source, err := a.keySource()
	if err != nil {
		return foundKey{}, err
	}
	if source != (keySource{}) {
		return source.read()
	}
	path, err := a.defaultKeyFile(shortID(vaultID))
	if err == nil {
		key, err := readKeyFile(path)
		if !errors.Is(err, fs.ErrNotExist) {
			return key, err
		}
	}
	return a.askPassphrase(ctx, vaultID)
}

// askPassphrase reads a passphrase from the terminal, if there is one.
func (a *app) askPassphrase(ctx context.Context, vaultID string) (foundKey, error) {
	f, ok := a.env.Stdin.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) || ctx.Err() != nil {
		return foundKey{}, errNoKey
	}
	fmt.Fprintf(a.env.Stderr, "passphrase of vault %s: ", shortID(vaultID))
	data, err := term.ReadPassword(int(f.Fd()))
	fmt.Fprintln(a.env.Stderr)
	if err != nil {
		return foundKey{}, fmt.Errorf("read the passphrase: %w", err)
	}
	return passphrase(data)
}

func shortID(id string) string {
	if len(id) > 8 {
		return id[:8]
	}
	return id
}
