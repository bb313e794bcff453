package cli

import (
	"context"
	"fmt"
	"path/filepath"
	"strconv"

	"github.com/holdfast-vm/holdfast/internal/child"
	"github.com/holdfast-vm/holdfast/internal/vault"
)

// keyFDFlag names the descriptor on which a process in the background is handed the key of its
// vault: it has neither the terminal nor the environment or the open files that this one has it
// from.
const keyFDFlag = "key-fd"

// What is handed over begins with what it is.
const (
	handsIdentity   = 'i'
	handsPassphrase = 'p'
)

// vaultKey returns the key of the vault that was asked for.
func (a *app) vaultKey(ctx context.Context) (vault.Key, error) {
	path, err := filepath.Abs(a.vaultPath())
	if a.vaultPath() == "" {
		err = errNoVault()
	}
	if err != nil {
		return vault.Key{}, err
	}
	store, err := openStore(path)
	if err != nil {
		return vault.Key{}, fmt.Errorf("open vault %s: %w", path, err)
	}
	defer store.Close()
	id, err := vault.Peek(ctx, store)
	if err == nil {
		var key vault.Key
		if key, err = a.key(ctx, id); err == nil {
			return key, nil
		}
	}
	return vault.Key{}, fmt.Errorf("open vault %s: %w", path, err)
}

// handKey has cmd, this program, be handed a key. Call sent once it was started, or was not.
func handKey(cmd *child.Cmd, key vault.Key) (sent func(), err error) {
	secret := append([]byte{handsPassphrase}, key.Passphrase...)
	if key.Identity != "" {
		secret = append([]byte{handsIdentity}, key.Identity...)
	}
	fd, sent, err := child.Hand(cmd, secret)
	if err != nil {
		return nil, err
	}
	cmd.Args = append([]string{cmd.Args[0], "--" + keyFDFlag + "=" + strconv.Itoa(fd)}, cmd.Args[1:]...)
	return sent, nil
}

// handedKey returns the key that this process was handed.
func (a *app) handedKey() (vault.Key, error) {
	if a.handed == nil {
		secret, err := child.Receive(a.keyFD)
		if err != nil {
			return vault.Key{}, err
		}
		a.handed = secret
	}
	if len(a.handed) == 0 {
		return vault.Key{}, errNoKey
	}
	switch kind, rest := a.handed[0], a.handed[1:]; kind {
	case handsIdentity:
		return vault.Key{Identity: string(rest)}, nil
	case handsPassphrase:
		return vault.Key{Passphrase: rest}, nil
	default:
		return vault.Key{}, fmt.Errorf("take over the key: it is of the unknown kind %q", kind)
	}
}
