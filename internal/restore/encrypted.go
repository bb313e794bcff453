package restore

import (
	"errors"
	"fmt"

	"github.com/holdfast-vm/holdfast/internal/diskimage"
	"github.com/holdfast-vm/holdfast/internal/point"
)

var (
	// ErrWasEncrypted reports a disk whose image was encrypted where it came from, and that nobody
	// has said to write plain, or with which secret to encrypt it again.
	ErrWasEncrypted = errors.New("its image was encrypted on its host, and would be plain now")
	// ErrAsIs reports that the point holds an encrypted image as it lay there, and not what is in
	// it.
	ErrAsIs = errors.New("the point holds the encrypted image itself, not what is in it")
)

// errInstantKeys reports that an instant restore was to encrypt.
var errInstantKeys = errors.New("an instant restore writes plain images only: restore without it to encrypt them " +
	"again, " +
	"or say that they may be plain")

// Keys says how disks are written whose images were encrypted. The zero value refuses them.
type Keys struct {
	Secrets diskimage.Secrets // they are encrypted again
	Plain   bool              // they are written plain
}

// check refuses what would lose the encryption of a disk in silence.
func (k Keys) check(d point.Disk) error {
	e := d.Source.Encryption
	switch {
	case e == nil:
		return nil
	case e.AsIs && k.Secrets.Of(d.Name) != nil:
		return fmt.Errorf("disk %s: %w", d.Name, ErrAsIs)
	case e.AsIs, k.Plain, k.Secrets.Of(d.Name) != nil:
		return nil
	}
	return fmt.Errorf("disk %s: %w", d.Name, ErrWasEncrypted)
}

// of returns what a disk is encrypted with, the zero value if it is to be plain.
func (k Keys) of(d point.Disk) diskimage.Secret {
	if !d.WasEncrypted() || k.Plain {
		return diskimage.Secret{}
	}
	return k.Secrets.For(d.Name)
}

// CheckPlain returns nil if a disk may be written plain: it was, or somebody has said so.
func CheckPlain(d point.Disk, plain bool) error {
	if e := d.Source.Encryption; e != nil && e.AsIs && d.Source.Format != "raw" {
		return fmt.Errorf("disk %s: %w", d.Name, ErrAsIs)
	}
	return Keys{Plain: plain}.check(d)
}

// container returns the format of the image that the point holds as it lay, "" for a disk.
func container(d point.Disk) string {
	if e := d.Source.Encryption; e != nil && e.AsIs && d.Source.Format != "raw" {
		return d.Source.Format
	}
	return ""
}
