package ntfs

import (
	"unicode/utf16"
	"unicode/utf8"
)

// decodeName returns UTF-16 as UTF-8, unpaired surrogates as three bytes each.
func decodeName(p []byte) string {
	out := make([]byte, 0, len(p))
	for i := 0; i+1 < len(p); i += 2 {
		r := rune(le.Uint16(p[i:]))
		if utf16.IsSurrogate(r) {
			if i+3 < len(p) {
				if pair := utf16.DecodeRune(r, rune(le.Uint16(p[i+2:]))); pair != utf8.RuneError {
					out = utf8.AppendRune(out, pair)
					i += 2
					continue
				}
			}
			out = append(out, 0xe0|byte(r>>12), 0x80|byte(r>>6&0x3f), 0x80|byte(r&0x3f))
			continue
		}
		out = utf8.AppendRune(out, r)
	}
	return string(out)
}

// encodeName is the reverse of decodeName.
func encodeName(s string) []uint16 {
	var out []uint16
	for len(s) > 0 {
		r, n := utf8.DecodeRuneInString(s)
		if r == utf8.RuneError && n == 1 && len(s) >= 3 && s[0] == 0xed && s[1] >= 0xa0 {
			out = append(out, uint16(s[0]&15)<<12|uint16(s[1]&0x3f)<<6|uint16(s[2]&0x3f))
			s = s[3:]
			continue
		}
		out = utf16.AppendRune(out, r)
		s = s[n:]
	}
	return out
}

// fold returns a name as it is compared where case does not matter.
func (f *FS) fold(name string) string {
	units := encodeName(name)
	raw := make([]byte, 0, 2*len(units))
	for _, u := range units {
		if f.upcase != nil {
			u = f.upcase[u]
		}
		raw = le.AppendUint16(raw, u)
	}
	return string(raw)
}
