package cli

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/holdfast-vm/holdfast/internal/blob"
	"github.com/holdfast-vm/holdfast/internal/blob/open"
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
func (a *app) vaultKey(ctx context.Context) (key foundKey, err error) {
	err = a.atStore(ctx, func(at open.Address, store blob.Store) error {
		id, err := vault.Peek(ctx, store)
		if err == nil {
			key, err = a.key(ctx, id)
		}
		if err != nil {
			return fmt.Errorf("open vault %s: %w", at, err)
		}
		return nil
	})
	return key, err
}

// handKey has cmd, this program, be handed a key. Call sent once it was started, or was not.
func handKey(cmd *child.Cmd, key foundKey) (sent func(), err error) {
	secret := append([]byte{handsPassphrase}, key.Passphrase...)
	if key.Identity != "" {
		secret = append([]byte{handsIdentity}, key.pins.text()+key.Identity...)
	}
	fd, sent, err := child.Hand(cmd, secret)
	if err != nil {
		return nil, err
	}
	cmd.Args = append([]string{cmd.Args[0], "--" + keyFDFlag + "=" + strconv.Itoa(fd)}, cmd.Args[1:]...)
	return sent, nil
}

// handedKey returns the key that this process was handed.
func (a *app) handedKey() (foundKey, error) {
	if a.handed == nil {
		secret, err := child.Receive(a.keyFD)
		if err != nil {
			return foundKey{}, err
		}
		a.handed = secret
	}
	if len(a.handed) == 0 {
		return foundKey{}, errNoKey
	}
	switch kind, rest := a.handed[0], string(a.handed[1:]); kind {
	case handsIdentity:
		return foundKey{vault.Key{Identity: rest[strings.LastIndex(rest, "\n")+1:]}, pinsOf(rest)}, nil
	case handsPassphrase:
		return foundKey{Key: vault.Key{Passphrase: []byte(rest)}}, nil
	default:
		return foundKey{}, fmt.Errorf("take over the key: it is of the unknown kind %q", kind)
	}
}
