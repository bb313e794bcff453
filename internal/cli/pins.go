package cli

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/holdfast-vm/holdfast/internal/point"
	"github.com/holdfast-vm/holdfast/internal/vault"
)

// Comments of a key file that say which vaults it is for.
const (
	pinVault = "# vault: "
	pinPrint = "# fingerprint: "
)

// pins are the vaults that a key file says it is for: fingerprints of data keys, by the vaults'
// IDs. A file that names none is for any.
type pins map[string]string

// pinsOf reads the pins of a key file.
func pinsOf(text string) pins {
	out := pins{}
	id := ""
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if s, ok := strings.CutPrefix(line, pinVault); ok {
			id = strings.TrimSpace(s)
			out[id] = ""
		} else if s, ok := strings.CutPrefix(line, pinPrint); ok && id != "" {
			out[id] = strings.TrimSpace(s)
		}
	}
	return out
}

// checkID returns ErrChanged unless a vault of this ID may be opened.
func (p pins) checkID(id string) error {
	if _, ok := p[id]; ok || len(p) == 0 {
		return nil
	}
	var all []string
	for _, other := range slices.Sorted(maps.Keys(p)) {
		all = append(all, shortID(other))
	}
	return withHint(fmt.Errorf("%w: this is vault %s, and the key file says that it is for %s", vault.ErrChanged,
		shortID(id), strings.Join(all, ", ")),
		"if the key is meant for this vault too, add the line `%s%s` to the key file", pinVault, id)
}

// check is checkID with the fingerprint of the data key.
func (p pins) check(id, print string) error {
	if err := p.checkID(id); err != nil {
		return err
	}
	if want := p[id]; want != "" && want != print {
		return withHint(fmt.Errorf("%w: the fingerprint of the data key is %s, and the key file says %s",
			vault.ErrChanged, print, want),
			"somebody who can write to the store may have put another vault in its place; if that was you, change the "+
				"line `%s…` of the key file", pinPrint)
	}
	return nil
}

// text returns the lines that pinsOf reads.
func (p pins) text() string {
	text := ""
	for _, id := range slices.Sorted(maps.Keys(p)) {
		text += pinVault + id + "\n"
		if print := p[id]; print != "" {
			text += pinPrint + print + "\n"
		}
	}
	return text
}

// pinKeyFile says in a key file that it is for a vault, too. One that was not made here and names
// no vault is left alone.
func pinKeyFile(path string, k vault.Known, made bool) error {
	data, err := readSmall(path)
	if err != nil {
		return err
	}
	have := pinsOf(string(data))
	if _, there := have[k.ID]; there || !made && len(have) == 0 {
		return nil
	}
	text := string(data)
	at := strings.Index(text, "AGE-SECRET-KEY-")
	if at < 0 {
		return nil // a passphrase: every byte of the file is part of it
	}
	return replaceSecret(path, text[:at]+pins{k.ID: k.Print}.text()+text[at:])
}

// replaceSecret puts another text in the place of a secret, at once and durably.
func replaceSecret(path, text string) error {
	next := filepath.Join(filepath.Dir(path), ".new-"+string(point.NewID()))
	if err := writeSecret(next, text); err != nil {
		return err
	}
	if err := os.Rename(next, path); err != nil {
		return errors.Join(err, os.Remove(next))
	}
	return syncDir(filepath.Dir(path))
}
