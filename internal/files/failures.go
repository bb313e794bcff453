package files

import (
	"errors"
	"fmt"
	"strings"

	"github.com/holdfast-vm/holdfast/internal/filesystem"
)

// Failure is a file that could not be read.
type Failure struct {
	Path string
	Err  error
}

// Incomplete is the error of work that was done except for some files. It is what the errors of
// these files are.
type Incomplete struct {
	What     string // was done: "fetched"
	Failures []Failure
	More     int64 // files beside these: of each kind of error so many are kept and no more
}

func (e *Incomplete) Error() string {
	const most = 3
	var parts []string
	for i, f := range e.Failures {
		if i == most {
			parts = append(parts, fmt.Sprintf("and %d more", e.count()-most))
			break
		}
		parts = append(parts, fmt.Sprintf("%s: %v", Short(f.Path), f.Err))
	}
	files := "files"
	if e.count() == 1 {
		files = "file"
	}
	return fmt.Sprintf("%d %s could not be %s: %s", e.count(), files, e.What, strings.Join(parts, "; "))
}

// Short returns a path as people can read it: of one that goes on and on, the beginning and the
// end.
func Short(path string) string {
	const most = 240 // characters
	r := []rune(path)
	if len(r) <= most {
		return path
	}
	return string(r[:most/2]) + "…" + string(r[len(r)-most/2+1:])
}

func (e *Incomplete) count() int64 { return int64(len(e.Failures)) + e.More }

// Unwrap returns the errors of the files.
func (e *Incomplete) Unwrap() []error {
	var out []error
	for _, f := range e.Failures {
		out = append(out, f.Err)
	}
	return out
}

// keptFailures of each kind are kept: a guest can make any number of them.
const keptFailures = 10_000

// failures gathers what could not be read.
type failures struct {
	list []Failure
	kept [3]int // of each kind
	more int64
}

func (f *failures) add(path string, err error) {
	kind := 0
	switch {
	case errors.Is(err, filesystem.ErrUnsupported):
		kind = 1
	case errors.Is(err, filesystem.ErrCorrupt):
		kind = 2
	}
	if f.kept[kind] == keptFailures {
		f.more++
		return
	}
	f.kept[kind]++
	f.list = append(f.list, Failure{path, err})
}

// incomplete returns the error of all of them; nil if there is none.
func (f *failures) incomplete(what string) error {
	if len(f.list) == 0 {
		return nil
	}
	return &Incomplete{what, f.list, f.more}
}
