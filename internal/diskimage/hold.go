package diskimage

import (
	"errors"
	"fmt"
	"io"
	"os"
)

// Hold keeps everybody from writing to the image at path, so that no machine can be started from
// it, until what it returns is closed. It returns ErrInUse if somebody may write it now.
func Hold(path string) (io.Closer, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("hold disk image: %w", err)
	}
	if err := lockShared(f); err != nil {
		return nil, errors.Join(fmt.Errorf("hold disk image %s: %w", path, err), f.Close())
	}
	return f, nil
}
