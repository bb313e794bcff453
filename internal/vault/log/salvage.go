package log

import (
	"context"
	"errors"
	"fmt"

	"github.com/holdfast-vm/holdfast/internal/blob"
)

// Salvage calls do with every entry that reads by itself, chained or not, in the order of their
// places, until it reports false; and lost with the name of every object of the log that does not.
// What is void is among them: it is for repair, which believes what it finds.
func Salvage(ctx context.Context, s blob.Store, k *Keys, do func(*Entry) bool, lost func(name string)) error {
	for name, err := range blob.Names(ctx, s, prefixLog, "") {
		if err != nil {
			return fmt.Errorf("list the log: %w", err)
		}
		at, ok := parseEntryName(name)
		if !ok {
			continue
		}
		raw, err := blob.Read(ctx, s, name, limitOf(at))
		switch {
		case errors.Is(err, blob.ErrNotExist):
			continue
		case errors.Is(err, blob.ErrTooLarge):
			lost(name)
			continue
		case err != nil:
			return fmt.Errorf("read %s: %w", name, err)
		}
		e, err := parse(raw, at, k)
		if err != nil {
			lost(name)
			continue
		}
		if !do(e) {
			return nil
		}
	}
	return nil
}

// parseEntryName is the inverse of EntryName.
func parseEntryName(name string) (p Position, ok bool) {
	var folder uint32
	t := &p.Volume.Tenure
	_, err := fmt.Sscanf(name, prefixLog+"%08x-%04x/%08x/%03x/%06x", &t.Number, &t.Region, &p.Volume.Number, &folder,
		&p.Number)
	return p, err == nil && EntryName(p) == name
}
