// Package blob is the contract between a vault and the place that holds its objects.
//
// Objects have a slash-separated name, are written once and never changed. The contract is
// checked by package blobtest, which every store passes. It imports only the standard library.
package blob

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"strings"
)

var (
	// ErrNotExist reports that no object has the name.
	ErrNotExist = errors.New("object does not exist")
	// ErrExist reports that an object of that name exists; it was left alone.
	ErrExist = errors.New("object exists already")
	// ErrNoSpace reports that the store is full. What was stored before is whole.
	ErrNoSpace = errors.New("no space left in the store")
)

// Info describes a stored object.
type Info struct {
	Name string
	Size int64 // bytes
}

// Store holds immutable objects. All methods are safe for concurrent use.
//
// Names are as [ValidName] wants them. No name in a store is a folder of another ("a" beside
// "a/b"): callers see to that, and a store may refuse the second of the two.
type Store interface {
	// Create begins an object. Nothing is visible under name until Commit.
	Create(ctx context.Context, name string) (Writer, error)
	// ReadAt fills p from offset off of the object. A read that ends past the object's end returns
	// what there is and io.ErrUnexpectedEOF. A missing object is ErrNotExist.
	ReadAt(ctx context.Context, name string, p []byte, off int64) (int, error)
	// Stat returns the object's size, or ErrNotExist.
	Stat(ctx context.Context, name string) (Info, error)
	// List yields the objects whose name begins with prefix, in ascending order of name. It shows
	// every object that was committed before the call and not deleted since, and what it shows
	// survives power loss; of an object that only Stat or ReadAt has shown this is not said before
	// its Commit has returned. An error ends the sequence.
	List(ctx context.Context, prefix string) iter.Seq2[Info, error]
	// Delete removes the object. Deleting what does not exist is no error.
	// Once it returns nil the object stays away after power loss.
	Delete(ctx context.Context, name string) error
}

// Writer receives the bytes of one new object. It is not safe for concurrent use.
type Writer interface {
	io.Writer
	// Commit makes the object visible under its name, whole or not at all. When it returns nil the
	// object survives power loss; if the name was taken meanwhile it returns ErrExist and the older
	// object, which survives power loss too, stays. After any other error the object may be there
	// or not; if it is, it is whole. Commit is called once: after an error the writer is good for
	// Abort only.
	Commit(ctx context.Context) error
	// Abort drops what was written. It is a no-op after Commit.
	Abort()
}

// Put stores data under name in one call, with the promises of Writer.Commit.
func Put(ctx context.Context, s Store, name string, data []byte) error {
	w, err := s.Create(ctx, name)
	if err != nil {
		return err
	}
	defer w.Abort()
	if _, err := w.Write(data); err != nil {
		return err
	}
	return w.Commit(ctx)
}

// Get returns the whole object.
func Get(ctx context.Context, s Store, name string) ([]byte, error) {
	info, err := s.Stat(ctx, name)
	if err != nil {
		return nil, err
	}
	p := make([]byte, info.Size)
	n, err := s.ReadAt(ctx, name, p, 0)
	return p[:n], err
}

// namer is a Store to which names alone come cheaper than with sizes.
type namer interface {
	// Names is List without the sizes.
	Names(ctx context.Context, prefix string) iter.Seq2[string, error]
}

// Names yields the names of the objects that List of s would yield.
func Names(ctx context.Context, s Store, prefix string) iter.Seq2[string, error] {
	if n, ok := s.(namer); ok {
		return n.Names(ctx, prefix)
	}
	return func(yield func(string, error) bool) {
		for info, err := range s.List(ctx, prefix) {
			if !yield(info.Name, err) {
				return
			}
		}
	}
}

// maxName is the longest name of an object, in bytes.
const maxName = 255

// ValidName reports what is wrong with an object's name, or nil. A name is 1 to 255 bytes of
// [a-z0-9._/-]: parts separated by single slashes, none of them empty, "." or "..". The first part
// is not "tmp", which is the store's own.
func ValidName(name string) error {
	if name == "" || len(name) > maxName {
		return fmt.Errorf("object name of %d bytes: want 1 to %d", len(name), maxName)
	}
	for i := range len(name) {
		if !validByte(name[i]) {
			return fmt.Errorf("object name %q: byte %q is not one of a-z 0-9 . _ - /", name, name[i])
		}
	}
	first := true
	for part := range strings.SplitSeq(name, "/") {
		if part == "" || part == "." || part == ".." || first && part == "tmp" {
			return fmt.Errorf("object name %q: part %q is not allowed", name, part)
		}
		first = false
	}
	return nil
}

func validByte(c byte) bool {
	return 'a' <= c && c <= 'z' || '0' <= c && c <= '9' || c == '.' || c == '_' || c == '-' || c == '/'
}
