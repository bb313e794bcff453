package disks

import (
	"fmt"

	"github.com/holdfast-vm/holdfast/internal/diskimage"
)

// checkRoom returns diskimage.ErrNoSpace if the pool cannot take need bytes in addition to what the
// disks will need that are being filled.
func (p *Pool) checkRoom(need int64) error {
	all, _ := p.Disks() // what is wrong with the records of others is said elsewhere
	promised := int64(0)
	for _, d := range all {
		if h := d.Hydration; h != nil && h.Partial == nil { // our own copy reserved its room at the beginning
			promised += max(0, h.Total-h.Done)
		}
	}
	return p.freeFor(need, promised)
}

// freeFor returns diskimage.ErrNoSpace if the pool cannot take need bytes in addition to those that
// are promised to others.
func (p *Pool) freeFor(need, promised int64) error {
	free, err := diskimage.Room(p.dir)
	if err != nil || free-promised >= need {
		return err
	}
	why := ""
	if promised > 0 {
		why = fmt.Sprintf(", %d of them for disks that are being filled", promised)
	}
	return fmt.Errorf("%w in pool %s: %d bytes needed, %d free%s", diskimage.ErrNoSpace, p.dir, need, free, why)
}
