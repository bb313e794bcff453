package files

import (
	"errors"
	"fmt"
	"math"
)

// Limits bounds what going through a machine's files takes, since who wrote a disk may have wished
// that it never ends. The zero value of each field is its default, which no honest disk reaches.
type Limits struct {
	Entries int64 // of all directories together; 0 means [DefaultEntries]
	Depth   int   // of directories in each other; 0 means [DefaultDepth]
	Bytes   int64 // that are written; 0 means 16 times what the disks hold, and at least 1 GiB
}

// Defaults of Limits.
const (
	DefaultEntries = 100_000_000
	DefaultDepth   = 2000

	bytesPerDisk = 16 // what compression or shared blocks make of a disk at most
	leastBytes   = 1 << 30
)

// Limit names a limit.
type Limit string

// The limits that a [LimitError] may be of.
const (
	LimitEntries Limit = "entries"
	LimitDepth   Limit = "depth"
	LimitBytes   Limit = "bytes"
	LimitTime    Limit = "time"
)

// ErrLimit is what every [LimitError] is.
var ErrLimit = errors.New("a limit is reached")

// LimitError reports what was left undone since there is a limit. One of [LimitDepth] is of the
// directory that it leaves out; the others end the work.
type LimitError struct {
	Limit Limit
	Text  string // which limit it is, with its number
}

// Error returns the text.
func (e *LimitError) Error() string { return e.Text }

// Is says that it is [ErrLimit].
func (e *LimitError) Is(target error) bool { return target == ErrLimit }

// Over returns the [LimitError] of a limit, in words that name its number.
func Over(l Limit, format string, args ...any) error {
	return &LimitError{l, fmt.Sprintf(format, args...)}
}

// WithDefaults fills in what is 0, for disks of size bytes in all.
func (l Limits) WithDefaults(size int64) Limits {
	if l.Entries == 0 {
		l.Entries = DefaultEntries
	}
	if l.Depth == 0 {
		l.Depth = DefaultDepth
	}
	if l.Bytes == 0 {
		l.Bytes = max(leastBytes, min(size, math.MaxInt64/bytesPerDisk)*bytesPerDisk)
	}
	return l
}

// plus adds what a guest says that it has, without going over.
func plus(a, b int64) int64 {
	if b > math.MaxInt64-a {
		return math.MaxInt64
	}
	return a + b
}
