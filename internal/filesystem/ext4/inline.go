package ext4

const (
	attrIndexSystem = 7
	inlineAttrName  = "data"
)

// inlineData returns the two pieces in which an inode holds data itself: 60 bytes, and behind them
// an attribute, if there is one.
func (f *FS) inlineData(in *inode) (head, tail []byte, err error) {
	body := in.attrBody()
	if body == nil {
		return in.block(), nil, nil
	}
	for a, err := range attrEntries(body, 0) {
		if err != nil {
			return nil, nil, in.wrap(err)
		}
		if a.index == attrIndexSystem && a.name == inlineAttrName {
			tail, err = a.value(body)
			return in.block(), tail, in.wrap(err)
		}
	}
	return in.block(), nil, nil
}

// inlineDir yields the entries of a directory that its inode holds itself: behind the number of its
// parent, then in the attribute.
func (f *FS) inlineDir(in *inode, yield func(dirent, error) bool) {
	head, tail, err := f.inlineData(in)
	if err != nil {
		yield(dirent{}, err)
		return
	}
	dots := []dirent{{name: ".", inode: uint32(in.number), kind: direntDir},
		{name: "..", inode: le32(head, 0), kind: direntDir}}
	for _, d := range dots {
		if !yield(d, nil) {
			return
		}
	}
	for _, region := range [][]byte{head[4:], tail} {
		if !f.direntsOf(in, region, yield) {
			return
		}
	}
}
