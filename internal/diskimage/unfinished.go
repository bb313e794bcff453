package diskimage

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Unfinished returns the files that calls of Create for path have left, which were killed before
// they could commit or abort. The caller knows that none is at work.
func Unfinished(path string) ([]string, error) {
	prefix, suffix := fmt.Sprintf(".%.200s.", filepath.Base(path)), ".hf"
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		return nil, fmt.Errorf("look for unfinished images: %w", err)
	}
	var out []string
	for _, e := range entries {
		random, ok := strings.CutPrefix(strings.TrimSuffix(e.Name(), suffix), prefix)
		if ok && len(random) == 8 && strings.HasSuffix(e.Name(), suffix) && e.Type().IsRegular() {
			out = append(out, filepath.Join(filepath.Dir(path), e.Name()))
		}
	}
	return out, nil
}
