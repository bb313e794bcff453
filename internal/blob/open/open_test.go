package open_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/blob"
	"github.com/holdfast-vm/holdfast/internal/blob/open"
)

func TestParse(t *testing.T) {
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ name, address, want string }{
		{"absolute path", "/srv/vault", "/srv/vault"},
		{"one form", "/srv//other/../vault/", "/srv/vault"},
		{"relative path", "vault", filepath.Join(here, "vault")},
		{"a path with a colon", "qmp:vault", filepath.Join(here, "qmp:vault")},
		{"a path with one slash", "file:/srv/vault", filepath.Join(here, "file:/srv/vault")},
		{"URI", "file:///srv/vault", "/srv/vault"},
		{"scheme in capitals", "FILE:///srv/vault/", "/srv/vault"},
		{"this host", "file://localhost/srv/vault", "/srv/vault"},
		{"escaped", "file:///srv/my%20vault", "/srv/my vault"},
		{"a percent sign of a path", "/srv/100%25", "/srv/100%25"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a, err := open.Parse(tt.address)
			if err != nil || a.String() != tt.want || a.Dir() != tt.want {
				t.Errorf("Parse(%q) = %q in directory %q, %v, want %q", tt.address, a, a.Dir(), err, tt.want)
			}
		})
	}
}

func TestParseRefuses(t *testing.T) {
	for _, tt := range []struct{ name, address, says string }{
		{"nothing", "", "empty"},
		{"another kind", "s3://bucket/vault", `scheme "s3" is not known; known are file`},
		{"another host", "file://east/srv/vault", "another host"},
		{"no path", "file://", "absolute path"},
		{"a query", "file:///srv/vault?x=1", "absolute path"},
		{"not escaped", "file:///srv/%zz", "invalid URL escape"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := open.Parse(tt.address)
			if !errors.Is(err, open.ErrAddress) || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("Parse(%q): %v, want ErrAddress that says %q", tt.address, err, tt.says)
			}
		})
	}
}

// An address, in its one form, is an address of the same store.
func FuzzParse(f *testing.F) {
	for _, s := range []string{"/srv/vault", "file:///a/../b", "x", "a://b", "file://localhost/%2F",
		"file:///%3A%2F%2Fx"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		a, err := open.Parse(s)
		if err != nil {
			if !errors.Is(err, open.ErrAddress) {
				t.Errorf("Parse(%q): %v is no ErrAddress", s, err)
			}
			return
		}
		again, err := open.Parse(a.String())
		if err != nil || again != a {
			t.Errorf("Parse(%q) = %q, and that is %q, %v", s, a, again, err)
		}
	})
}

// A store is found again by what created it, and Open makes none.
func TestOpen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a", "vault")
	if _, err := open.Open(t.Context(), path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("open what is not there: %v, want ErrNotExist", err)
	}
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("open has made %s: %v", path, err)
	}
	a, err := open.Parse(path)
	if err != nil {
		t.Fatal(err)
	}
	made, err := a.Create(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := blob.Put(t.Context(), made, "object", []byte("text")); err != nil {
		t.Fatal(err)
	}
	if err := blob.Close(made); err != nil {
		t.Fatal(err)
	}
	s, err := open.Open(t.Context(), "file://"+path)
	if err != nil {
		t.Fatal(err)
	}
	defer blob.Close(s)
	if got, err := blob.Get(t.Context(), s, "object"); err != nil || string(got) != "text" {
		t.Errorf("the store holds %q, %v", got, err)
	}
	if r, ok := s.(blob.Rooted); !ok || r.Root() != path {
		t.Errorf("the store of %s does not say where it is", path)
	}
	if _, err := (open.Address{}).Open(t.Context()); !errors.Is(err, open.ErrAddress) {
		t.Errorf("open the address of nothing: %v", err)
	}
	if blob.ReadOnly(s) {
		t.Error("a directory of ours is called read-only")
	}
}
