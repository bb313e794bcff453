package guest

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
)

// readLine returns the next line that is not blank, without its end. A line of more than limit
// bytes is ErrProtocol.
func readLine(r *bufio.Reader, limit int) ([]byte, error) {
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		if len(line)+len(part) > limit {
			return nil, fmt.Errorf("%w: longer than %d bytes", ErrProtocol, limit)
		}
		line = append(line, part...)
		if errors.Is(err, bufio.ErrBufferFull) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if line = bytes.TrimSpace(line); len(line) > 0 {
			return line, nil
		}
	}
}

// awaitSync reads until the answer to the sync with the number id, however much comes before it. It
// is a line that begins after the last delimiter byte; older syncs may be answered first.
func awaitSync(r *bufio.Reader, id int64) error {
	var line []byte
	begun := false
	for {
		b, err := r.ReadByte()
		switch {
		case err != nil:
			return err
		case b == delimiter:
			line, begun = line[:0], true
		case b == '\n' && begun:
			if answersSync(line, id) {
				return nil
			}
			begun = false
		case len(line) < maxSync:
			line = append(line, b)
		}
	}
}

func answersSync(line []byte, id int64) bool {
	result, err := parseReply(line)
	var got int64
	return err == nil && json.Unmarshal(result, &got) == nil && got == id
}

// parseReply returns the result in an answer, an [*Error] if that is what the agent answered, or
// ErrProtocol.
func parseReply(line []byte) (json.RawMessage, error) {
	line = bytes.TrimLeft(line, "\xff")
	var reply struct {
		Return json.RawMessage `json:"return"`
		Error  *Error          `json:"error"`
	}
	if err := json.Unmarshal(line, &reply); err != nil {
		return nil, fmt.Errorf("%w: %.60q", ErrProtocol, line)
	}
	if reply.Error != nil {
		return nil, reply.Error
	}
	if reply.Return == nil {
		return nil, fmt.Errorf("%w: %.60q", ErrProtocol, line)
	}
	return reply.Return, nil
}
