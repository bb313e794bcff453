package durable

import (
	"errors"
	"io"
	"syscall"
)

// crashFile is a [File] of a [Crashable].
type crashFile struct {
	fs   *Crashable
	name string
	node *node
}

func (f *crashFile) Write(p []byte) (n int, err error) {
	err = f.fs.mutate(func() error {
		n = len(p)
		if f.fs.space >= 0 {
			n = int(min(int64(n), f.fs.space))
			f.fs.space -= int64(n)
		}
		f.node.data = append(f.node.data, p[:n]...)
		if n < len(p) {
			return failed("write", f.name, syscall.ENOSPC)
		}
		return nil
	})
	if errors.Is(err, ErrPowerLost) {
		n = 0
	}
	return n, err
}

func (f *crashFile) SetReadOnly() error {
	return f.fs.mutate(func() error { return nil })
}

func (f *crashFile) Sync() error {
	return f.fs.sync(func() error {
		f.node.synced = len(f.node.data)
		return nil
	})
}

func (f *crashFile) Close() error {
	return f.fs.look(func() error {
		f.node.held = false
		return nil
	})
}

// crashReader is a [Reader] of a [Crashable].
type crashReader struct {
	fs   *Crashable
	node *node
}

func (r *crashReader) ReadAt(p []byte, off int64) (n int, err error) {
	err = r.fs.look(func() error {
		if off < int64(len(r.node.data)) {
			n = copy(p, r.node.data[off:])
		}
		if n < len(p) {
			return io.EOF
		}
		return nil
	})
	return n, err
}

func (r *crashReader) Stat() (info Info, err error) {
	err = r.fs.look(func() error {
		info = r.node.info()
		return nil
	})
	return info, err
}

func (r *crashReader) Close() error { return nil }
