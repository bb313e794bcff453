package ntfs

import "fmt"

const (
	maxSecure      = 64 << 20  // bytes of $Secure:$SDS that are read
	secureMirror   = 256 << 10 // after each as many bytes follows a copy of them
	descriptorHead = 20
)

// descriptor returns a security descriptor that files share; nil if the volume has none of that ID.
func (f *FS) descriptor(id uint32) ([]byte, error) {
	f.secureOnce.Do(func() { f.secure, f.secureErr = f.readSecure() })
	if f.secureErr != nil {
		return nil, fmt.Errorf("security descriptors: %w", f.secureErr)
	}
	return f.secure[id], nil
}

func (f *FS) readSecure() (map[uint32][]byte, error) {
	ino, err := f.inode(recSecure, false)
	if err != nil {
		return nil, err
	}
	s, err := ino.stream(attrData, "$SDS")
	if err != nil {
		return nil, err
	}
	if s.size > maxSecure {
		return nil, corrupt("%d bytes of security descriptors", s.size)
	}
	raw := make([]byte, s.size)
	if s.size > 0 {
		if _, err := s.ReadAt(raw, 0); err != nil {
			return nil, err
		}
	}
	out := map[uint32][]byte{}
	for at := 0; at+descriptorHead <= len(raw); {
		id, off, n := le.Uint32(raw[at+4:]), int64(le.Uint64(raw[at+8:])), int(le.Uint32(raw[at+16:]))
		// the end of this half: the next begins behind its copy
		if off != int64(at) || n < descriptorHead || n > len(raw)-at {
			at = (at/(2*secureMirror) + 1) * 2 * secureMirror
			continue
		}
		out[id] = raw[at+descriptorHead : at+n]
		at += (n + 15) &^ 15
		if at%(2*secureMirror) >= secureMirror {
			at = (at/(2*secureMirror) + 1) * 2 * secureMirror
		}
	}
	return out, nil
}
