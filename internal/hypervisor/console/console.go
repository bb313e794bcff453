// Package console is what a machine shows: as a picture, and as the text of its serial port.
//
// [PNG] turns what hypervisors give as the picture of a display into a PNG; it reads PNG and binary
// PPM (P6, 8 bits a colour). [Tail] reads the end of the file that a serial port writes to. Nothing
// of what they read is trusted: sizes are checked before memory is taken for them.
package console

import (
	"io"
	"os"
)

// Tail returns the last max bytes of a file, which may grow or be cut meanwhile.
func Tail(path string, max int64) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return "", err
	}
	size := min(info.Size(), max)
	text, err := io.ReadAll(io.NewSectionReader(f, info.Size()-size, size))
	return string(text), err
}
