package remember

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-vm/holdfast/internal/vault"
	"github.com/holdfast-vm/holdfast/internal/vault/log"
)

var noon = time.Date(2026, 11, 28, 12, 0, 0, 0, time.UTC)

// known returns what is remembered of a vault whose newest entry is number n of its first volume.
func known(id string, n uint32) vault.Known {
	return vault.Known{ID: strings.Repeat(id, 32), Print: strings.Repeat("0"+id, 16),
		Seen: &log.Remembered{At: log.Position{Number: n}, Hash: log.Hash{byte(n), 1}}}
}

func update(t *testing.T, m Memory, address string, k vault.Known) {
	t.Helper()
	if err := m.Update(address, k, noon); err != nil {
		t.Fatal(err)
	}
}

func expect(t *testing.T, m Memory, address string, want *vault.Known) {
	t.Helper()
	if got, err := m.Recall(address); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("of %s %+v is remembered, %v, want %+v", address, got, err, want)
	}
}

// What was remembered last of an address is what is recalled, whoever recalls it.
func TestRecall(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "vaults")
	m := In(dir)
	expect(t, m, "/srv/vault", nil)
	first, second := known("a", 5), known("b", 1)
	update(t, m, "/srv/vault", first)
	update(t, m, "/srv/other", second)
	expect(t, In(dir), "/srv/vault", &first)
	expect(t, In(dir), "/srv/other", &second)
	if err := m.Forget("/srv/vault"); err != nil {
		t.Fatal(err)
	}
	expect(t, m, "/srv/vault", nil)
	expect(t, m, "/srv/other", &second)
	if err := m.Forget("/srv/vault"); err != nil {
		t.Errorf("forget what is not remembered: %v", err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
		t.Errorf("the directory has %v, %v, want one file", left, err)
	}
}

// Of two processes that end at the same time the one that saw more is believed; Replace is believed
// always.
func TestTheNewestEntryStays(t *testing.T) {
	m := In(t.TempDir())
	late, early, none := known("a", 9), known("a", 3), known("a", 0)
	none.Seen = nil
	for _, k := range []vault.Known{none, late, early, none} {
		update(t, m, "v", k)
	}
	expect(t, m, "v", &late)
	other := known("b", 1)
	update(t, m, "v", other)
	expect(t, m, "v", &other)
	update(t, m, "v", late)
	if err := m.Replace("v", early, noon); err != nil {
		t.Fatal(err)
	}
	expect(t, m, "v", &early)
}

// A host without a place to remember goes on as one that has forgotten.
func TestWithoutAPlace(t *testing.T) {
	var none Memory
	update(t, none, "v", known("a", 1))
	expect(t, none, "v", nil)
	if err := none.Forget("v"); err != nil {
		t.Error(err)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := In(filepath.Join(file, "vaults")).Update("v", known("a", 1), noon); err == nil {
		t.Error("something was remembered below a file")
	}
}

// What does not read is told, and replaced by what is remembered next.
func TestUnreadable(t *testing.T) {
	for name, text := range map[string]string{
		"empty":         "",
		"no JSON":       "x",
		"a later form":  `{"format":"holdfast-memory-2","address":"v"}`,
		"no vault":      `{"format":"holdfast-memory-1","address":"v"}`,
		"another":       `{"format":"holdfast-memory-1","address":"w","id":"` + strings.Repeat("a", 32) + `","fingerprint":"` + strings.Repeat("b", 32) + `"}`,
		"a bad entry":   `{"format":"holdfast-memory-1","address":"v","id":"` + strings.Repeat("a", 32) + `","fingerprint":"` + strings.Repeat("b", 32) + `","entry":"1"}`,
		"far too large": strings.Repeat(" ", maxFile+1),
	} {
		t.Run(name, func(t *testing.T) {
			m := In(t.TempDir())
			if err := os.WriteFile(m.path("v"), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			if k, err := m.Recall("v"); k != nil || !errors.Is(err, ErrUnreadable) {
				t.Errorf("recalled %+v, %v, want ErrUnreadable", k, err)
			}
			k := known("a", 1)
			update(t, m, "v", k)
			expect(t, m, "v", &k)
		})
	}
}

// Whatever lies in the directory: what is recalled can be remembered and is the same then.
func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"format":"holdfast-memory-1","address":"v","id":"0123456789abcdef0123456789abcdef","fingerprint":"0123456789abcdef0123456789abcdef",` +
		`"entry":"1.2","hash":"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"}`))
	f.Add([]byte(`{}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		k, err := decode(raw, "v")
		if err != nil {
			return
		}
		m := In(t.TempDir())
		if err := m.Replace("v", *k, noon); err != nil {
			t.Fatal(err)
		}
		expect(t, m, "v", k)
	})
}

// What a collection saw is there for the next one; a host that remembers nothing sees all for the
// first time.
func TestLooks(t *testing.T) {
	dir := t.TempDir()
	id := strings.Repeat("a", 32)
	load := func(m Memory, want string) {
		t.Helper()
		if got, err := m.Looks(id).Load(); err != nil || string(got) != want {
			t.Errorf("loaded %q, %v, want %q", got, err, want)
		}
	}
	load(In(dir), "")
	if err := In(dir).Looks(id).Store([]byte("seen")); err != nil {
		t.Fatal(err)
	}
	load(In(dir), "seen")
	if (Memory{}).Looks(id) != nil || In(dir).Looks("../x") != nil {
		t.Error("something is kept where nothing can be")
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := In(file).Looks(id).Store([]byte("x")); err != nil {
		t.Errorf("a collection fails because nothing can be remembered: %v", err)
	}
	load(In(file), "")
}

// A file that was written as docs/formats/memory.md says is read for ever.
func TestGolden(t *testing.T) {
	k := vault.Known{ID: "25f07ff250556213638f442a76673332", Print: "71b4998e01e57cdef5e7ba678402463b",
		Seen: &log.Remembered{At: log.Position{Volume: log.Volume{Number: 3}, Number: 17}}}
	for i := range k.Seen.Hash {
		k.Seen.Hash[i] = byte(i)
	}
	expect(t, In("testdata/golden"), "/srv/vault", &k)
	m := In(t.TempDir())
	if err := m.Replace("/srv/vault", k, noon); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(m.path("/srv/vault"))
	if err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile(In("testdata/golden").path("/srv/vault"))
	if err != nil || string(got) != string(want) {
		t.Errorf("written:\n%s\nwant, %v:\n%s", got, err, want)
	}
}
