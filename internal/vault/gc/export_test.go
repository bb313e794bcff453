package gc

import "testing"

// ShortEntries has freed entries tell of little for the time of a test, so that walks take several.
func ShortEntries(t *testing.T, bytes int) {
	was := freedSize
	freedSize = bytes
	t.Cleanup(func() { freedSize = was })
}
