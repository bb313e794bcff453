package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// tenure returns the newest of which the log has an entry.
func (l *logDir) tenure() (at position, err error) {
	dirs, err := os.ReadDir(filepath.Join(l.dir, "log"))
	for _, d := range dirs { // the newest is the last
		if _, err := fmt.Sscanf(d.Name(), "%08x-%04x", &at.tenure, &at.region); err != nil {
			return at, fmt.Errorf("log/%s is no tenure: %w", d.Name(), err)
		}
	}
	return at, err
}

// state returns what the log folds to: the newest checkpoint that reads, and the entries after it;
// or all entries, where there is none.
func (l *logDir) state() (*logState, error) {
	files, err := os.ReadDir(filepath.Join(l.dir, "checkpoint"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	for _, f := range files { // the newest is the first
		s, err := l.stateFrom("checkpoint/" + f.Name())
		if err == nil {
			return s, nil
		}
		fmt.Fprintf(os.Stderr, "reader: passing over checkpoint/%s: %v\n", f.Name(), err)
	}
	return l.stateOfAll()
}

func (l *logDir) stateOfAll() (*logState, error) {
	all, err := l.entries()
	if err != nil {
		return nil, err
	}
	return foldLog(all)
}

func (l *logDir) stateFrom(name string) (*logState, error) {
	s, err := l.checkpoint(name, nil)
	if err != nil {
		return nil, err
	}
	after, err := l.entriesAfter(s)
	if err != nil {
		return nil, err
	}
	return s, s.foldOn(after)
}
