package ext4

import (
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/cases"
	"golang.org/x/text/unicode/norm"
)

const encodingUTF8 = 1 // in Unicode 12.1, says the kernel

// comparison returns what tells whether a stored name is the one that is looked for.
func (f *FS) comparison(dir *inode, name string) (func(stored string) bool, error) {
	if f.sb.incompat&incompatCasefold == 0 || !dir.has(flagCasefold) || !utf8.ValidString(name) {
		return func(stored string) bool { return stored == name }, nil
	}
	if f.sb.encoding != encodingUTF8 {
		return nil, unsupported("names in encoding %d", f.sb.encoding)
	}
	want := folded(name)
	return func(stored string) bool {
		return stored == name || utf8.ValidString(stored) && folded(stored) == want
	}, nil
}

// folded returns what names that are the same without regard to case have in common: canonically
// decomposed, folded, and without what is not to be seen.
func folded(name string) string {
	visible := strings.Map(func(r rune) rune {
		if ignorable(r) {
			return -1
		}
		return r
	}, name)
	return norm.NFD.String(cases.Fold().String(norm.NFD.String(visible)))
}

// ignorable is Default_Ignorable_Code_Point, derived as the Unicode Character Database does.
func ignorable(r rune) bool {
	if r < 0x80 {
		return false
	}
	switch {
	case r >= 0xFFF9 && r <= 0xFFFB, r >= 0x13430 && r <= 0x13440, unicode.Is(unicode.White_Space, r),
		unicode.Is(unicode.Prepended_Concatenation_Mark, r):
		return false
	}
	return unicode.In(r, unicode.Other_Default_Ignorable_Code_Point, unicode.Cf, unicode.Variation_Selector)
}
