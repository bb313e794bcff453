package xfs

import (
	"fmt"

	"github.com/holdfast-vm/holdfast/internal/filesystem"
)

const (
	remoteHeader  = 56 // bytes before a part of a symbolic link or an attribute's value, in version 5
	maxLinkBlocks = 8  // of a target; where blocks have 512 bytes it has three
)

// ReadLink implements [filesystem.FS].
func (f *FS) ReadLink(id filesystem.ID) (string, error) {
	ino, err := f.inode(uint64(id))
	if err != nil {
		return "", err
	}
	if ino.kind() != modeLink {
		return "", fmt.Errorf("read link: inode %d is not a symbolic link", id)
	}
	target, err := f.linkTarget(ino)
	if err != nil {
		return "", fmt.Errorf("read link %d: %w", id, err)
	}
	return string(target), nil
}

func (f *FS) linkTarget(ino *inode) ([]byte, error) {
	if ino.size > maxLinkTarget {
		return nil, corrupt("target of %d bytes", ino.size)
	}
	size := int(ino.size)
	if ino.format == formatLocal {
		if size > len(ino.data) {
			return nil, corrupt("target of %d bytes in a fork of %d", size, len(ino.data))
		}
		return ino.data[:size], nil
	}
	list, err := f.dataMap(ino)
	if err != nil {
		return nil, err
	}
	var target []byte
	next := uint64(0)
	for _, m := range list {
		if len(target) == size {
			break
		}
		if m.off != next || m.unwritten || m.count > maxLinkBlocks {
			return nil, corrupt("target with a hole before block %d, or of %d blocks", m.off, m.count)
		}
		part, err := f.linkPart(ino.num, m, len(target), size-len(target))
		if err != nil {
			return nil, err
		}
		target, next = append(target, part...), m.end()
	}
	if len(target) != size {
		return nil, corrupt("%d bytes of a target of %d", len(target), size)
	}
	return target, nil
}

// linkPart reads the part of a target that one extent holds, at most want bytes from byte done of
// it.
func (f *FS) linkPart(owner uint64, m mapping, done, want int) ([]byte, error) {
	n := int(m.count) << f.sb.blockLog
	if f.sb.version != 5 {
		b, err := f.dev.meta(f.sb.offset(m.block), min(n, want))
		return b, err
	}
	b, err := f.readVerified(&symlinkLayout, m.block, n, owner)
	if err != nil {
		return nil, err
	}
	at, size := int64(be.Uint32(b[4:])), int64(be.Uint32(b[8:]))
	if at != int64(done) || size == 0 || size > int64(want) || size > int64(n-remoteHeader) {
		return nil, corrupt("part of a target: %d bytes from %d, where %d of %d are due", size, at, done, done+want)
	}
	return b[remoteHeader:][:size], nil
}
