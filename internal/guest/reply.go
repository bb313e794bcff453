package guest

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
)

// readLine returns the next line that is not blank, without its end. A line of more than limit bytes is ErrProtocol.
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

// awaitSync reads until the answer to the sync with the number id, however much comes before it.
func awaitSync(r *bufio.Reader, id int64) error {
	for {
		if err := skipTo(r, delimiter); err != nil {
			return err
		}
		line, err := readLine(r, 1<<10)
		if errors.Is(err, ErrProtocol) {
			continue
		}
		if err != nil {
			return err
		}
		// An older sync may be answered first, and its line may be followed by our delimiter only.
		line = line[bytes.LastIndexByte(line, delimiter)+1:]
		result, err := parseReply(line)
		if err != nil {
			continue
		}
		var got int64
		if json.Unmarshal(result, &got) == nil && got == id {
			return nil
		}
	}
}

func skipTo(r *bufio.Reader, delim byte) error {
	for {
		_, err := r.ReadSlice(delim)
		if !errors.Is(err, bufio.ErrBufferFull) {
			return err
		}
	}
}

// parseReply returns the result in an answer, an [*Error] if that is what the agent answered, or ErrProtocol.
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
