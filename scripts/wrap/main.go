// Command wrap lists the lines of Go files that are too wide, and wraps them with -w.
//
// Comments end at column 100 and code at column 120, a tab being four columns wide. What stands
// between back quotes, and all behind it on its line, is data and may be as wide as it likes.
package main

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"strings"
)

const (
	commentWidth = 100
	codeWidth    = 120
	tabWidth     = 4
)

func main() {
	write := flag.Bool("w", false, "wrap the lines in the files")
	flag.Parse()
	wide, err := run(flag.Args(), *write)
	if err != nil {
		fmt.Fprintln(os.Stderr, "wrap:", err)
		os.Exit(2)
	}
	if wide {
		os.Exit(1)
	}
}

// run looks at the files named, or at all that git tracks, and reports whether a line is too wide.
func run(names []string, write bool) (wide bool, err error) {
	if len(names) == 0 {
		if names, err = tracked(); err != nil {
			return false, err
		}
	}
	for _, name := range names {
		src, err := os.ReadFile(name)
		if err != nil {
			return false, err
		}
		if write {
			wrapped, err := wrap(src)
			if err != nil {
				return false, fmt.Errorf("%s: %w", name, err)
			}
			if !bytes.Equal(src, wrapped) {
				if err := os.WriteFile(name, wrapped, 0o644); err != nil {
					return false, err
				}
			}
			src = wrapped
		}
		found, err := tooWide(src)
		if err != nil {
			return false, fmt.Errorf("%s: %w", name, err)
		}
		for _, l := range found {
			wide = true
			fmt.Printf("%s:%d: %d columns, at most %d\n", name, l.number, l.width, l.limit)
		}
	}
	return wide, nil
}

func tracked() ([]string, error) {
	out, err := exec.Command("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "*.go").Output()
	if err != nil {
		return nil, fmt.Errorf("git ls-files: %w", err)
	}
	var names []string
	for name := range strings.SplitSeq(strings.TrimRight(string(out), "\x00"), "\x00") {
		if _, err := os.Stat(name); err == nil {
			names = append(names, name)
		}
	}
	return names, nil
}
