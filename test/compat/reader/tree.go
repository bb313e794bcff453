package main

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/bits"
)

const holeID = "\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00" +
	"\x00\x00\x00\x00\x00\x00\x00"

// copyDisk writes the disk, or the file ROLE/NAME, of a point: docs/formats/tree.md.
func (v *vaultDir) copyDisk(w io.Writer, m *manifest, name string) error {
	for _, d := range m.Disks {
		if d.Name == name {
			return v.copyTree(w, d)
		}
	}
	for _, f := range m.Files {
		if f.Role+"/"+f.Name == name {
			return v.copyTree(w, f)
		}
	}
	return fmt.Errorf("point %s has no disk %q", m.ID, name)
}

func (v *vaultDir) copyTree(w io.Writer, d diskOf) error {
	root := holeID
	if d.Root != "" {
		b, err := hex.DecodeString(d.Root)
		if err != nil || len(b) != 32 {
			return fmt.Errorf("root %q of disk %s is no ID", d.Root, d.Name)
		}
		root = string(b)
	}
	n := (d.Size + v.chunkSize - 1) / v.chunkSize
	levels, span := 1, int64(64)
	for span < n {
		levels++
		span *= 64
	}
	out := &diskWriter{w: w, v: v, left: d.Size}
	if err := out.subtree(root, levels-1, span); err != nil {
		return fmt.Errorf("disk %s: %w", d.Name, err)
	}
	return nil
}

// diskWriter writes a disk from its beginning to its end.
type diskWriter struct {
	w    io.Writer
	v    *vaultDir
	left int64 // bytes of the disk not yet written
}

// subtree writes the chunks below a node, which covers span chunks.
func (d *diskWriter) subtree(id string, level int, span int64) error {
	if id == holeID {
		return d.zeros(span)
	}
	b, err := d.v.chunk(id, 2)
	if err != nil {
		return err
	}
	children, err := parseNode(b, level)
	if err != nil {
		return fmt.Errorf("node %x: %w", id, err)
	}
	for _, child := range children {
		switch {
		case level > 0:
			err = d.subtree(child, level-1, span/64)
		case child == holeID:
			err = d.zeros(1)
		default:
			err = d.chunk(child)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (d *diskWriter) chunk(id string) error {
	b, err := d.v.chunk(id, 1)
	if err != nil {
		return err
	}
	if int64(len(b)) != d.v.chunkSize {
		return fmt.Errorf("chunk %x has %d bytes", id, len(b))
	}
	if d.left == 0 {
		return errors.New("a chunk stands after the end of the disk")
	}
	b = b[:min(d.left, d.v.chunkSize)]
	d.left -= int64(len(b))
	_, err = d.w.Write(b)
	return err
}

func (d *diskWriter) zeros(chunks int64) error {
	zero := make([]byte, d.v.chunkSize)
	for ; chunks > 0 && d.left > 0; chunks-- {
		n := min(d.left, d.v.chunkSize)
		if _, err := d.w.Write(zero[:n]); err != nil {
			return err
		}
		d.left -= n
	}
	return nil
}

func parseNode(b []byte, level int) (children [64]string, err error) {
	if len(b) < 16 || string(b[:7]) != "HFTREE1" {
		return children, errors.New("it does not begin as a node")
	}
	if int(b[7]) != level {
		return children, fmt.Errorf("level %d where %d belongs", b[7], level)
	}
	present := binary.LittleEndian.Uint64(b[8:])
	if present == 0 || len(b) != 16+32*bits.OnesCount64(present) {
		return children, errors.New("its length is not what its children take")
	}
	b = b[16:]
	for i := range children {
		children[i] = holeID
		if present>>i&1 == 0 {
			continue
		}
		if children[i] = string(b[:32]); children[i] == holeID {
			return children, errors.New("a hole is said to be present")
		}
		b = b[32:]
	}
	return children, nil
}
