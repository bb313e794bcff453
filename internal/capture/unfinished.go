package capture

import (
	"slices"
	"strings"
)

// MayDrop reports whether cleaning up after an unfinished capture may remove the record
// of changes that it began. vault and keep are what he knows: a vault, "" if none, and the records
// that its points count from. read says that the capture had read everything: then the vault that
// it was for may have committed the point, and only that one knows.
func MayDrop(bitmap string, read bool, vault string, keep []string) bool {
	if read && (vault == "" || !strings.HasPrefix(bitmap, BitmapPrefix(vault))) {
		return false
	}
	return !slices.Contains(keep, bitmap)
}

// Undecided says of a record of changes that MayDrop spares, in words, that it stays.
func Undecided(bitmap string) string {
	vault, _, _ := strings.Cut(strings.TrimPrefix(bitmap, "hf-"), "-")
	return "left the record of changes " + bitmap + " alone: vault " + vault + " may have a point that counts from it"
}
