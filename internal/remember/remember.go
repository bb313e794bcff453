// Package remember keeps what a host knows of the vaults that it has used: which vault stood at an
// address, the fingerprint of its data key, and the newest entry of its log that was seen. Whoever
// can write to a store can put another vault or an older copy in its place; whoever remembers
// notices.
//
// A [Memory] is a directory with a file for each address. It is a help and never a condition: it
// may be lost, or be none at all, and then the next vault that stands there is believed. Any number
// of processes may use one at once: the newest entry stays.
package remember

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/holdfast-vm/holdfast/internal/vault"
	"github.com/holdfast-vm/holdfast/internal/vault/log"
)

// ErrUnreadable reports a file of the memory that does not read. It is as if nothing were
// remembered, but for that somebody should know.
var ErrUnreadable = errors.New("what was remembered of the vault cannot be read")

// format names the format of a file of the memory: docs/formats/memory.md.
const format = "holdfast-memory-1"

// maxFile is more than a file of the memory can have, in bytes.
const maxFile = 16 << 10

// Memory is what is remembered of vaults. The zero value remembers nothing. It is safe for
// concurrent use.
type Memory struct {
	dir string // "" for none
}

// In returns the memory that lies in a directory, which is made when something is to be remembered.
func In(dir string) Memory { return Memory{dir} }

// file is what lies in the directory of one vault. The fields and their names are on disk.
type file struct {
	Format  string    `json:"format"`
	Address string    `json:"address"`
	ID      string    `json:"id"`
	Print   string    `json:"fingerprint"`
	Entry   string    `json:"entry,omitempty"` // VOLUME.NUMBER
	Hash    string    `json:"hash,omitempty"`  // of that entry, hexadecimal
	Time    time.Time `json:"time"`            // when it was written
}

// path returns the file of an address.
func (m Memory) path(address string) string {
	sum := sha256.Sum256([]byte(address))
	return filepath.Join(m.dir, hex.EncodeToString(sum[:16])+".json")
}

// Recall returns what is remembered of the vault at an address, nil if nothing is.
func (m Memory) Recall(address string) (*vault.Known, error) {
	if m.dir == "" {
		return nil, nil
	}
	raw, err := readSmall(m.path(address))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnreadable, err)
	}
	k, err := decode(raw, address)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrUnreadable, m.path(address), err)
	}
	return k, nil
}

func readSmall(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err == nil && (info.Size() > maxFile || !info.Mode().IsRegular()) {
		err = fmt.Errorf("%s is no file of at most %d bytes", path, maxFile)
	}
	if err != nil {
		return nil, err
	}
	return os.ReadFile(path)
}

// decode reads a file of the memory.
func decode(raw []byte, address string) (*vault.Known, error) {
	var f file
	if err := json.Unmarshal(raw, &f); err != nil {
		return nil, err
	}
	if f.Format != format {
		return nil, fmt.Errorf("its format is %q, this program reads %s", f.Format, format)
	}
	if f.Address != address {
		return nil, fmt.Errorf("it is about %q", f.Address)
	}
	if !isHex(f.ID, 32) || !isHex(f.Print, 32) {
		return nil, errors.New("it names no vault")
	}
	k := &vault.Known{ID: f.ID, Print: f.Print}
	if f.Entry == "" {
		return k, nil
	}
	at, ok := log.ParsePosition(f.Entry)
	hash, err := hex.DecodeString(f.Hash)
	if !ok || err != nil || len(hash) != len(log.Hash{}) {
		return nil, errors.New("it names no entry")
	}
	k.Seen = &log.Remembered{At: at, Hash: log.Hash(hash)}
	return k, nil
}

func isHex(s string, digits int) bool {
	_, err := hex.DecodeString(s)
	return err == nil && len(s) == digits
}

// Update remembers k, unless a later entry of the same vault is remembered already.
func (m Memory) Update(address string, k vault.Known, now time.Time) error {
	old, err := m.Recall(address)
	if err != nil && !errors.Is(err, ErrUnreadable) {
		return err
	}
	if old != nil && old.ID == k.ID && old.Print == k.Print && !later(k.Seen, old.Seen) {
		return nil
	}
	return m.Replace(address, k, now)
}

func later(a, b *log.Remembered) bool { return a != nil && (b == nil || a.At.Compare(b.At) > 0) }

// Replace remembers k, whatever was remembered before.
func (m Memory) Replace(address string, k vault.Known, now time.Time) error {
	if m.dir == "" {
		return nil
	}
	f := file{Format: format, Address: address, ID: k.ID, Print: k.Print, Time: now.UTC().Truncate(time.Second)}
	if k.Seen != nil {
		f.Entry, f.Hash = k.Seen.At.String(), hex.EncodeToString(k.Seen.Hash[:])
	}
	raw, err := json.MarshalIndent(f, "", "  ")
	if err != nil {
		return err
	}
	if err := m.write(m.path(address), append(raw, '\n')); err != nil {
		return fmt.Errorf("remember vault %s: %w", address, err)
	}
	return nil
}

// write puts a file in the place of another, at once.
func (m Memory) write(path string, raw []byte) error {
	if err := os.MkdirAll(m.dir, 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(m.dir, "new-*")
	if err != nil {
		return err
	}
	_, err = f.Write(raw)
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return err
}

// Forget remembers nothing of the vault at an address any more.
func (m Memory) Forget(address string) error {
	if m.dir == "" {
		return nil
	}
	if err := os.Remove(m.path(address)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("forget vault %s: %w", address, err)
	}
	return nil
}
