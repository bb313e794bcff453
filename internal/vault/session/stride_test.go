//go:build !race

package session_test

const (
	stride    = 7    // calls apart tests let something fail
	worlds    = 12   // random ones that tests try
	manyPacks = 1100 // more than an entry of the log has room for
)
