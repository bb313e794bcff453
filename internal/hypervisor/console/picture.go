package console

import (
	"bytes"
	"errors"
	"fmt"
	"image"
	"image/png"
	"strconv"
)

// ErrFormat reports a picture that is neither PNG nor PPM, or is cut.
var ErrFormat = errors.New("not a picture of a console")

const (
	maxSide   = 16384
	maxPixels = 64 << 20
)

var pngMagic = []byte("\x89PNG\r\n\x1a\n")

// PNG returns data as a PNG: as it is if it is one already.
func PNG(data []byte) ([]byte, error) {
	if bytes.HasPrefix(data, pngMagic) {
		return data, nil
	}
	picture, err := readPPM(data)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	if err := (&png.Encoder{CompressionLevel: png.BestCompression}).Encode(&out, picture); err != nil {
		return nil, fmt.Errorf("encode a picture: %w", err)
	}
	return out.Bytes(), nil
}

func readPPM(data []byte) (image.Image, error) {
	rest, ok := bytes.CutPrefix(data, []byte("P6"))
	if !ok {
		return nil, fmt.Errorf("%w: it begins with %q", ErrFormat, data[:min(len(data), 8)])
	}
	var numbers [3]int // width, height, largest value
	for i := range numbers {
		var err error
		if numbers[i], rest, err = number(rest); err != nil {
			return nil, err
		}
	}
	width, height, most := numbers[0], numbers[1], numbers[2]
	if width < 1 || height < 1 || width > maxSide || height > maxSide || width*height > maxPixels || most != 255 {
		return nil, fmt.Errorf("%w: %d by %d pixels of %d", ErrFormat, width, height, most)
	}
	if len(rest) < 1+width*height*3 {
		return nil, fmt.Errorf("%w: it is cut", ErrFormat)
	}
	rest = rest[1:] // one white space ends the head
	out := image.NewNRGBA(image.Rect(0, 0, width, height))
	for i := range width * height {
		copy(out.Pix[i*4:], rest[i*3:i*3+3])
		out.Pix[i*4+3] = 0xff
	}
	return out, nil
}

// number reads one number of a head, with the space and comments before it.
func number(b []byte) (int, []byte, error) {
	for len(b) > 0 {
		if b[0] == '#' {
			_, b, _ = bytes.Cut(b, []byte("\n"))
			continue
		}
		if !isSpace(b[0]) {
			break
		}
		b = b[1:]
	}
	end := 0
	for end < len(b) && end < 8 && b[end] >= '0' && b[end] <= '9' {
		end++
	}
	n, err := strconv.Atoi(string(b[:end]))
	if err != nil {
		return 0, nil, fmt.Errorf("%w: its head is damaged", ErrFormat)
	}
	return n, b[end:], nil
}

func isSpace(c byte) bool { return c == ' ' || c == '\n' || c == '\t' || c == '\r' }
