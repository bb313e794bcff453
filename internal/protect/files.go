package protect

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"

	"github.com/holdfast-vm/holdfast/internal/point"
)

// maxKept bounds the memory for files that must be read at the instant, in bytes.
const maxKept = 64 << 20

// memoryFile is a file of the machine as it was at the instant.
type memoryFile struct {
	point.File
	data []byte
}

// changing reports whether the machine writes the file while it runs.
func changing(f point.File) bool { return f.Role == "nvram" || f.Role == "tpm" }

// keepFiles reads the files that the machine writes, while it holds still. What cannot be read is
// a warning: a point without firmware variables is worth more than none.
func (r *run) keepFiles() {
	r.kept = nil
	var total int64
	for _, f := range r.files {
		if !changing(f) {
			continue
		}
		data, err := readAtMost(f.Path, maxKept-total)
		if err != nil {
			r.warnFile(f, err)
			continue
		}
		total += int64(len(data))
		f.Size = int64(len(data))
		r.kept = append(r.kept, memoryFile{f, data})
	}
}

func readAtMost(path string, limit int64) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	data, err := io.ReadAll(io.LimitReader(file, limit+1))
	if err == nil && int64(len(data)) > limit {
		err = fmt.Errorf("the machine's files are larger than %d MiB together", maxKept>>20)
	}
	return data, err
}

func (r *run) warnFile(f point.File, err error) {
	r.result.Warnings = append(r.result.Warnings,
		fmt.Sprintf("%s file %s is not in this point: %v", f.Role, f.Path, err))
}

// storeFiles stores what keepFiles read, and the files that do not change.
func (r *run) storeFiles(ctx context.Context) error {
	for _, f := range r.kept {
		if err := r.storeFile(ctx, f.File, bytes.NewReader(f.data)); err != nil {
			return err
		}
	}
	for _, f := range r.files {
		if changing(f) {
			continue
		}
		if err := r.storeStillFile(ctx, f); err != nil {
			return err
		}
	}
	return nil
}

func (r *run) storeStillFile(ctx context.Context, f point.File) error {
	file, err := os.Open(f.Path)
	if err != nil {
		r.warnFile(f, err)
		return nil
	}
	defer file.Close()
	info, err := file.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("it is no regular file")
	}
	if err != nil {
		r.warnFile(f, err)
		return nil
	}
	f.Size = info.Size()
	return r.storeFile(ctx, f, file)
}

func (r *run) storeFile(ctx context.Context, f point.File, source io.ReaderAt) error {
	root, err := r.intake.file(ctx, f.Size, source)
	if err != nil {
		return fmt.Errorf("store %s file %s: %w", f.Role, f.Path, err)
	}
	f.Root = root
	r.result.Files = append(r.result.Files, f)
	return nil
}
