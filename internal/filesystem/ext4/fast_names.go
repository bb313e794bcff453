package ext4

// fastDir is what fast commits changed in one directory.
type fastDir struct {
	created bool              // by a fast commit: it began empty
	parent  uint32            // of a created one
	before  map[string]uint32 // inodes of the wanted names that it had
	names   map[string]uint32 // inode of each name that was touched; 0 where it was removed
	order   []string          // in which they were first touched
}

// rename replays one tag about a name. What is there already, or is gone already, is passed over.
func (c *fastCommits) rename(f *FS, kind uint16, dir, inode uint32, name string) error {
	d, err := c.dir(f, dir)
	if err != nil {
		return err
	}
	now, touched := d.names[name]
	if !touched {
		now = d.before[name]
	}
	in, err := f.inode(uint64(inode))
	if err != nil || in.mode == 0 || in.links() == 0 && kind != fastCreate {
		return nil // it is gone in the end
	}
	s := c.state(inode)
	switch {
	case kind == fastUnlink && now != 0:
		if now == inode {
			d.set(name, 0)
		}
		s.setLinks(int(in.links()) - 1)
	case kind == fastLink && now == 0:
		d.set(name, inode)
		s.setLinks(int(in.links()) + 1)
	case kind == fastCreate:
		if in.isDir() {
			c.dirs[uint64(inode)] = &fastDir{created: true, parent: dir, names: map[string]uint32{}}
		}
		if now == 0 {
			d.set(name, inode)
		}
		s.setLinks(1)
	}
	return nil
}

func (d *fastDir) set(name string, inode uint32) {
	if _, touched := d.names[name]; !touched {
		d.order = append(d.order, name)
	}
	d.names[name] = inode
}

// dir returns what is known of a directory, to be changed. Its first use reads which of the wanted
// names it has.
func (c *fastCommits) dir(f *FS, n uint32) (*fastDir, error) {
	if d := c.dirs[uint64(n)]; d != nil {
		return d, nil
	}
	in, err := f.inode(uint64(n))
	if err != nil {
		return nil, err
	}
	if !in.isDir() {
		return nil, in.damaged("it is taken for a directory")
	}
	d := &fastDir{before: map[string]uint32{}, names: map[string]uint32{}}
	for e, err := range f.dirents(in) {
		if err != nil {
			return nil, in.wrap(err)
		}
		if c.looked++; c.looked > maxFastEntries {
			return nil, unsupported("fast commits in directories of more than %d entries", maxFastEntries)
		}
		if c.wanted[n][e.name] {
			d.before[e.name] = e.inode
		}
	}
	c.dirs[uint64(n)] = d
	return d, nil
}

// names yields the entries of a directory: those that base yields, except for the names that fast
// commits touched.
func (c *fastCommits) names(in *inode, base func(func(dirent, error) bool), yield func(dirent, error) bool) {
	if c == nil || c.dirs[in.number] == nil {
		base(yield)
		return
	}
	d := c.dirs[in.number]
	if d.created {
		base = func(yield func(dirent, error) bool) {
			_ = yield(dirent{name: ".", inode: uint32(in.number)}, nil) && yield(dirent{name: "..", inode: d.parent},
				nil)
		}
	}
	over := false
	base(func(e dirent, err error) bool {
		if _, touched := d.names[e.name]; touched && err == nil {
			return true
		}
		over = !yield(e, err) || err != nil
		return !over
	})
	for _, name := range d.order {
		if n := d.names[name]; n != 0 && !over {
			over = !yield(dirent{name: name, inode: n}, nil)
		}
	}
}
