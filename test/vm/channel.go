package vm

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"time"
)

// channel is a connection to a monitor or a guest agent of the lab's own: one command at a time.
type channel struct {
	conn net.Conn
	in   *bufio.Reader
}

type reply struct {
	Return json.RawMessage `json:"return"`
	Error  *struct {
		Class string `json:"class"`
		Desc  string `json:"desc"`
	} `json:"error"`
}

func dial(socket string, deadline time.Time) (*channel, error) {
	conn, err := net.DialTimeout("unix", socket, time.Until(deadline))
	if err != nil {
		return nil, err
	}
	if err := conn.SetDeadline(deadline); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return &channel{conn: conn, in: bufio.NewReader(conn)}, nil
}

// dialMonitor connects to a QMP socket and leaves its negotiation behind.
func dialMonitor(socket string, deadline time.Time) (*channel, error) {
	c, err := dial(socket, deadline)
	if err != nil {
		return nil, err
	}
	if err := c.call("qmp_capabilities", nil, nil); err != nil {
		return nil, errors.Join(err, c.close())
	}
	return c, nil
}

// dialAgent connects to a guest agent and drops what an earlier client left unread.
func dialAgent(socket string, deadline time.Time) (*channel, error) {
	c, err := dial(socket, deadline)
	if err != nil {
		return nil, err
	}
	if err := c.sync(); err != nil {
		return nil, errors.Join(fmt.Errorf("guest agent at %s: %w", socket, err), c.close())
	}
	return c, nil
}

func (c *channel) close() error { return c.conn.Close() }

// sync resets the agent's parser and its output: everything before its 0xFF byte is from before.
func (c *channel) sync() error {
	id := rand.Uint64() >> 12
	_, err := fmt.Fprintf(c.conn, "\xff{\"execute\":\"guest-sync-delimited\",\"arguments\":{\"id\":%d}}\n", id)
	if err != nil {
		return err
	}
	for {
		if _, err := c.in.ReadBytes(0xff); err != nil {
			return err
		}
		var got uint64
		answer, err := c.read()
		if err != nil {
			return err
		}
		if json.Unmarshal(answer.Return, &got) == nil && got == id {
			return nil
		}
	}
}

// call runs a command and decodes what it returns into result, unless that is nil.
func (c *channel) call(command string, arguments, result any) error {
	request := map[string]any{"execute": command}
	if arguments != nil {
		request["arguments"] = arguments
	}
	line, err := json.Marshal(request)
	if err != nil {
		return err
	}
	if _, err := c.conn.Write(append(line, '\n')); err != nil {
		return fmt.Errorf("%s: %w", command, err)
	}
	for {
		answer, err := c.read()
		switch {
		case err != nil:
			return fmt.Errorf("%s: %w", command, err)
		case answer.Error != nil:
			return fmt.Errorf("%s: %s: %s", command, answer.Error.Class, answer.Error.Desc)
		case answer.Return == nil: // a greeting or an event
			continue
		case result == nil:
			return nil
		}
		return json.Unmarshal(answer.Return, result)
	}
}

func (c *channel) read() (reply, error) {
	line, err := c.in.ReadBytes('\n')
	if err != nil {
		return reply{}, err
	}
	var answer reply
	return answer, json.Unmarshal(line, &answer)
}
