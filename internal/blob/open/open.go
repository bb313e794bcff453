// Package open opens the store that an address names. It is the one place that knows all kinds of
// stores: docs/design/stores.md says how to add one.
//
// An address is a URI whose scheme names the kind, or the plain path of a directory. [Parse] brings
// it into one form, by which two addresses of one store are the same as far as that can be told
// without asking the store.
package open

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/holdfast-vm/holdfast/internal/blob"
	"github.com/holdfast-vm/holdfast/internal/blob/dir"
)

// ErrAddress reports an address that names no store of a known kind.
var ErrAddress = errors.New("not the address of a store")

// kind is a kind of store.
type kind struct {
	form string // of its addresses, for people
	// check returns the address in its one form, or what is wrong with it.
	check func(u *url.URL) (string, error)
	// open opens the store at what check returned; ErrNotExist of io/fs if there is none. It writes
	// nothing.
	open func(ctx context.Context, at string) (blob.Store, error)
	// create opens the store and makes first what it lacks to be one. It may exist already.
	create func(ctx context.Context, at string) (blob.Store, error)
}

// kinds are the known ones, by the schemes of their addresses.
var kinds = map[string]kind{
	"file": {
		form: "a path, or file:///PATH", check: filePath,
		open:   func(_ context.Context, at string) (blob.Store, error) { return dirStore(dir.Open(at)) },
		create: func(_ context.Context, at string) (blob.Store, error) { return dirStore(dir.Create(at)) },
	},
}

// dirStore keeps a store that is not there from being an interface that is.
func dirStore(s *dir.Store, err error) (blob.Store, error) {
	if err != nil {
		return nil, err
	}
	return s, nil
}

// filePath returns the path that a URI of the scheme file names.
func filePath(u *url.URL) (string, error) {
	switch {
	case u.Host != "" && u.Host != "localhost":
		return "", fmt.Errorf("%q would be a directory of another host: it takes three slashes, file:///PATH", u.Host)
	case !strings.HasPrefix(u.Path, "/") || u.RawQuery != "" || u.Fragment != "":
		return "", errors.New("it takes an absolute path and nothing else, file:///PATH")
	}
	return filepath.Clean(u.Path), nil
}

// Address names a store. The zero value names none.
type Address struct {
	scheme string
	at     string // in the form that the kind's check returns
}

var withScheme = regexp.MustCompile(`^([A-Za-z][A-Za-z0-9+.-]*)://`)

// Parse reads an address. It returns ErrAddress if its scheme is not known or the rest does not fit
// the scheme; whether the store is there is not looked at.
func Parse(address string) (Address, error) {
	m := withScheme.FindStringSubmatch(address)
	if m == nil {
		return path(address)
	}
	scheme := strings.ToLower(m[1])
	k, ok := kinds[scheme]
	if !ok {
		return Address{}, fmt.Errorf("%w: %q: the scheme %q is not known; known are %s", ErrAddress, address, scheme,
			strings.Join(slices.Sorted(maps.Keys(kinds)), ", "))
	}
	u, err := url.Parse(address)
	if err != nil {
		return Address{}, fmt.Errorf("%w: %w", ErrAddress, err)
	}
	at, err := k.check(u)
	if err != nil {
		return Address{}, fmt.Errorf("%w: %q: %w", ErrAddress, address, err)
	}
	return Address{scheme: scheme, at: at}, nil
}

// path returns the address that a plain path is.
func path(p string) (Address, error) {
	if p == "" {
		return Address{}, fmt.Errorf("%w: it is empty", ErrAddress)
	}
	full, err := filepath.Abs(p)
	if err != nil {
		return Address{}, fmt.Errorf("%w: %q: %w", ErrAddress, p, err)
	}
	return Address{scheme: "file", at: full}, nil
}

// Forms returns what addresses look like, for people.
func Forms() string {
	var out []string
	for _, scheme := range slices.Sorted(maps.Keys(kinds)) {
		out = append(out, kinds[scheme].form)
	}
	return strings.Join(out, "; ")
}

// String returns the address in its one form: the absolute path of a directory, the URI of any
// other store.
func (a Address) String() string { return a.at }

// Dir returns the directory of this host that the store is, or "" if it is none.
func (a Address) Dir() string {
	if a.scheme != "file" {
		return ""
	}
	return a.at
}

// Open opens the store. If there is none the error matches fs.ErrNotExist. Nothing is written until
// the first object is. Close it with [blob.Close].
func (a Address) Open(ctx context.Context) (blob.Store, error) {
	k, ok := kinds[a.scheme]
	if !ok {
		return nil, fmt.Errorf("%w: it is empty", ErrAddress)
	}
	return k.open(ctx, a.at)
}

// Create opens the store, and makes it if it is not there. Close it with [blob.Close].
func (a Address) Create(ctx context.Context) (blob.Store, error) {
	k, ok := kinds[a.scheme]
	if !ok {
		return nil, fmt.Errorf("%w: it is empty", ErrAddress)
	}
	return k.create(ctx, a.at)
}

// Open opens the store that an address names: [Parse] and [Address.Open] in one.
func Open(ctx context.Context, address string) (blob.Store, error) {
	a, err := Parse(address)
	if err != nil {
		return nil, err
	}
	return a.Open(ctx)
}
