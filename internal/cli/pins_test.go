package cli

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-vm/holdfast/internal/vault"
)

// What a key file says it is for stays the same when it is written again, as for a process that is
// handed the key.
func FuzzPins(f *testing.F) {
	for _, s := range []string{"", "# vault: a\n# fingerprint: b\nAGE-SECRET-KEY-1", "# fingerprint: b\n# vault: a\n",
		"# vault: a\r\n# fingerprint:  b \r\n# vault: c\n", "# vault: \n"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		p := pinsOf(text)
		if again := pinsOf(p.text()); !maps.Equal(p, again) {
			t.Errorf("%q is for %q, and written again for %q", text, p, again)
		}
	})
}

func TestPinsCheck(t *testing.T) {
	p := pinsOf("# vault: aa\n# fingerprint: 11\n# vault: bb\n")
	for _, tt := range []struct {
		name, id, print string
		pins            pins
		ok              bool
	}{
		{"its vault", "aa", "11", p, true},
		{"another key", "aa", "22", p, false},
		{"a vault without a fingerprint", "bb", "22", p, true},
		{"another vault", "cc", "11", p, false},
		{"a file that names none", "cc", "11", pins{}, true},
	} {
		if err := tt.pins.check(tt.id, tt.print); tt.ok != (err == nil) ||
			err != nil && !errors.Is(err, vault.ErrChanged) {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
}

// A file that was not made here is left as it is, a passphrase always.
func TestPinKeyFile(t *testing.T) {
	k := vault.Known{ID: "bb", Print: "22"}
	for _, tt := range []struct {
		name, text, want string
		made             bool
	}{
		{"made", "# x\nAGE-SECRET-KEY-1\n", "# x\n# vault: bb\n# fingerprint: 22\nAGE-SECRET-KEY-1\n", true},
		{"not made here", "AGE-SECRET-KEY-1\n", "AGE-SECRET-KEY-1\n", false},
		{"for another, too", "# vault: aa\nAGE-SECRET-KEY-1\n",
			"# vault: aa\n# vault: bb\n# fingerprint: 22\nAGE-SECRET-KEY-1\n",
			false},
		{"there already", "# vault: bb\nAGE-SECRET-KEY-1\n", "# vault: bb\nAGE-SECRET-KEY-1\n", true},
		{"a passphrase", "open sesame\n", "open sesame\n", true},
	} {
		path := filepath.Join(t.TempDir(), "key")
		if err := os.WriteFile(path, []byte(tt.text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := pinKeyFile(path, k, tt.made); err != nil {
			t.Fatalf("%s: %v", tt.name, err)
		}
		got, err := os.ReadFile(path)
		if err != nil || string(got) != tt.want {
			t.Errorf("%s: %q, %v, want %q", tt.name, got, err, tt.want)
		}
		if left, err := os.ReadDir(filepath.Dir(path)); err != nil || len(left) != 1 {
			t.Errorf("%s: left behind: %v, %v", tt.name, left, err)
		}
	}
}

func TestParseDays(t *testing.T) {
	day := 24 * time.Hour
	for text, want := range map[string]time.Duration{"14d": 14 * day, "36h": 36 * time.Hour, "2w": 14 * day, "0d": 0} {
		if got, err := parseDays(text); err != nil || got != want {
			t.Errorf("parseDays(%q) = %v, %v, want %v", text, got, err, want)
		}
	}
	for _, text := range strings.Split(",14,d,-1d,1.5d,14 d,14dd,9999999d,1m", ",") {
		if got, err := parseDays(text); err == nil {
			t.Errorf("parseDays(%q) = %v", text, got)
		}
	}
}
