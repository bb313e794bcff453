package blob

import "io"

// What a store may be able to do beyond the contract. Callers ask for it by a type assertion and do
// without where it is not there; [Namer] is another.

// Sweeper is a store in which writers that died leave something behind that is no object.
type Sweeper interface {
	// SweepTemp removes it and returns how many pieces that were. What living writers, in whichever
	// process, are writing stays.
	SweepTemp() (int, error)
}

// Concerned is a Store that knows what endangers it where it lies.
type Concerned interface {
	// Concerns returns sentences for people, each with what to do; none where nothing is known.
	Concerns() []string
}

// Concerns returns what endangers a store, as far as it can tell.
func Concerns(s Store) []string {
	if c, ok := s.(Concerned); ok {
		return c.Concerns()
	}
	return nil
}

// Rooted is a store that lies in a directory of this host.
type Rooted interface {
	// Root returns the absolute path of the directory.
	Root() string
}

// Fixed is a store that may be one that cannot be written, as on a medium or by its permissions.
type Fixed interface {
	// ReadOnly reports that nothing can be put into the store. A store that cannot tell reports
	// false, and refuses when it is asked to write.
	ReadOnly() bool
}

// Close lets go of what a store keeps open, if it is an io.Closer.
func Close(s Store) error {
	if c, ok := s.(io.Closer); ok {
		return c.Close()
	}
	return nil
}

// ReadOnly reports whether a store is known to be one that cannot be written.
func ReadOnly(s Store) bool {
	f, ok := s.(Fixed)
	return ok && f.ReadOnly()
}
