package ext4

import (
	"bytes"
	"fmt"

	"github.com/holdfast-vm/holdfast/internal/filesystem"
)

// ReadLink returns where a symbolic link points, as stored.
func (f *FS) ReadLink(id filesystem.ID) (string, error) {
	in, err := f.named(id)
	if err != nil {
		return "", err
	}
	if in.kind() != typeSymlink {
		return "", fmt.Errorf("read link: inode %d is not one", id)
	}
	if in.size > f.sb.blockSize || in.size == 0 {
		return "", in.damaged("a link to a name of %d bytes", in.size)
	}
	target, err := f.linkTarget(in)
	if err != nil {
		return "", err
	}
	if bytes.IndexByte(target, 0) >= 0 {
		return "", in.damaged("the target of a link has a zero byte")
	}
	return string(target), nil
}

func (f *FS) linkTarget(in *inode) ([]byte, error) {
	if f.isFastLink(in) && !in.has(flagEncrypted) {
		if in.size >= inodeBlockSize {
			return nil, in.damaged("a link to a name of %d bytes without a block", in.size)
		}
		return in.block()[:in.size], nil
	}
	file, err := f.data(in)
	if err != nil {
		return nil, err
	}
	target := make([]byte, in.size)
	if n, err := file.ReadAt(target, 0); n < len(target) {
		return nil, err
	}
	return target, nil
}

// isFastLink tells as the kernel does whether a link's target is in its inode: its flags do not
// say.
func (f *FS) isFastLink(in *inode) bool {
	if in.has(flagInlineData) {
		return false
	}
	if f.sb.incompat&incompatEAInode != 0 {
		return in.size < inodeBlockSize
	}
	used := in.storedSectors(f.sb)
	if in.attrBlock(f.sb) != 0 {
		used -= f.sb.clusterBlocks * uint64(f.sb.blockSize) / 512
	}
	return used == 0
}
