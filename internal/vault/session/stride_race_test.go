//go:build race

package session_test

// Under the race detector all is slow.
const (
	stride    = 61  // calls apart tests let something fail
	worlds    = 3   // random ones that tests try
	manyPacks = 100 // in pieces that are smaller
)
