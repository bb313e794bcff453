// Package blob is the contract between a vault and the place that holds its objects.
//
// Objects have a slash-separated name, are written once and never changed. The contract is
// checked by package blobtest, which every store passes. It imports only the standard library.
//
// # Put-if-absent, and doubt
//
// All agreement between users of a store rests on one promise: of all that commit an object under
// one name, exactly one wins. Three answers of [Writer.Commit] are definite: nil (mine is there),
// [ErrExist] (an object is there; it may be mine, put by an earlier attempt or by one that was
// repeated on the way; comparing the bytes tells) and [ErrNoSpace] (this attempt put nothing, and
// will not). After every other error, that of a context too, nothing is known: the object may be
// there, may not be, and may come to be there at any later time, even after somebody has found it
// absent. A caller that must know puts the same bytes again until the answer is definite.
//
// # Who retries
//
// A store may repeat a call on its own for as long as its context lives, but hands no error of its
// own repeating to the caller: a Commit that was repeated and finds its own bytes says nil or
// ErrExist. What it does not repeat the caller may: every method but Commit has the same effect if
// it is called again. Errors that are not a sentinel of this package are passed on as they are and
// mean "not now"; callers decide how often to try.
//
// # Cancelling
//
// A write is cancelled by [Writer.Abort] before Commit, and then leaves nothing. A context that
// ends during Commit ends the waiting, not the write.
//
// # Writers at once
//
// Any number of writers may be open at once, and a goroutine may hold several. A store that can do
// only so much at a time waits in Write or Commit for calls that are under way, never for another
// writer's Commit or Abort.
package blob

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"strings"
	"sync"
)

var (
	// ErrNotExist reports that no object has the name.
	ErrNotExist = errors.New("object does not exist")
	// ErrExist reports that an object of that name exists; it was left alone.
	ErrExist = errors.New("object exists already")
	// ErrNoSpace reports that the store is full. What was stored before is whole, and nothing comes
	// of the write that was refused.
	ErrNoSpace = errors.New("no space left in the store")
	// ErrTooLarge reports an object larger than one of its kind can be.
	ErrTooLarge = errors.New("object is too large")
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
	// List yields the objects whose name begins with prefix and comes after the name after, if that
	// is not "", in ascending order of name. It shows every object that was committed through this
	// Store before the call and not deleted since. What other processes committed or deleted on a
	// shared file system may show late, as their caches do; so a list finds what to look at and
	// never proves that something is not there. What it shows survives power loss. An object seen
	// only by Stat or ReadAt may still vanish on power loss until its Commit, or Settle, returns.
	// An error ends the sequence.
	List(ctx context.Context, prefix, after string) iter.Seq2[Info, error]
	// Settle makes sure that an object which was read, and which somebody else may still be
	// committing, survives power loss. A caller that builds on what it only read settles it first.
	// A missing object is ErrNotExist.
	Settle(ctx context.Context, name string) error
	// Absent reports whether no object has the name. Unlike ErrNotExist from Stat or ReadAt the
	// answer never comes from a cache: an object whose Commit had returned before the call, in
	// whichever process, is seen.
	Absent(ctx context.Context, name string) (bool, error)
	// Delete removes the object. Deleting what does not exist is not an error.
	// Once it returns nil the object stays away after power loss.
	Delete(ctx context.Context, name string) error
}

// Writer receives the bytes of one new object. It is not safe for concurrent use.
type Writer interface {
	io.Writer
	// Commit makes the object visible under its name, whole or not at all. When it returns nil the
	// object survives power loss; if the name was taken meanwhile it returns ErrExist and the older
	// object, which survives power loss too, stays. After ErrNoSpace nothing was put. After any
	// other error the object may be there or not, now or later (see the package's documentation);
	// if it is, it is whole. Commit is called once: after an error the writer is good for Abort
	// only.
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

// Read returns the whole object in one call of the store. One that is larger than limit bytes is
// an error, [ErrTooLarge], whatever the store says of its size.
func Read(ctx context.Context, s Store, name string, limit int) ([]byte, error) {
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	if len(*buf) <= limit {
		*buf = make([]byte, limit+1)
	}
	p := (*buf)[:limit+1]
	n, err := s.ReadAt(ctx, name, p, 0)
	switch {
	case err == nil:
		return nil, fmt.Errorf("read object %s: %w: more than %d bytes", name, ErrTooLarge, limit)
	case errors.Is(err, io.ErrUnexpectedEOF):
		return append([]byte{}, p[:n]...), nil
	}
	return nil, err
}

// buffers are what objects are read into whose size is not known.
var buffers = sync.Pool{New: func() any { return new([]byte) }}

// Namer is a Store to which names alone come cheaper than with sizes.
type Namer interface {
	// Names is List without the sizes.
	Names(ctx context.Context, prefix, after string) iter.Seq2[string, error]
}

// Names yields the names of the objects that List of s would yield.
func Names(ctx context.Context, s Store, prefix, after string) iter.Seq2[string, error] {
	if n, ok := s.(Namer); ok {
		return n.Names(ctx, prefix, after)
	}
	return func(yield func(string, error) bool) {
		for info, err := range s.List(ctx, prefix, after) {
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
