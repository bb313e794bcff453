package guest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/holdfast-vm/holdfast/internal/hypervisor"
)

// An Opener opens the agent of one machine; it is called again when the connection was lost.
type Opener func(ctx context.Context) (hypervisor.Agent, error)

// answerTime is how long a living agent may take for a question that needs no work.
const answerTime = 3 * time.Second

// line is a channel to an agent that is opened when needed and dropped when it failed, so that a
// thaw can always be tried again.
type line struct {
	open  Opener
	agent hypervisor.Agent
}

// connect makes sure that there is an agent to talk to.
func (l *line) connect(ctx context.Context) error {
	if l.agent != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 2*answerTime)
	defer cancel()
	type opened struct {
		agent hypervisor.Agent
		err   error
	}
	done := make(chan opened, 1)
	go func() {
		agent, err := l.open(ctx)
		done <- opened{agent, err}
	}()
	select {
	case o := <-done:
		if o.err != nil { // whatever came with it, perhaps a typed nil, is not an agent
			return o.err
		}
		l.agent = o.agent
		return nil
	case <-time.After(3 * answerTime): // an opener that does not heed its context
		go func() {
			if o := <-done; o.err == nil {
				o.agent.Close()
			}
		}()
		return fmt.Errorf("open guest agent: %w", context.DeadlineExceeded)
	}
}

// ask runs one command and decodes its result into result, unless that is nil. It returns soon
// after timeout even if the agent's driver does not.
func (l *line) ask(ctx context.Context, timeout time.Duration, name string, args, result any) error {
	if err := l.connect(ctx); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	type answer struct {
		data []byte
		err  error
	}
	done := make(chan answer, 1)
	agent := l.agent
	go func() {
		data, err := agent.Command(ctx, name, args)
		done <- answer{data, err}
	}()
	var a answer
	select {
	case a = <-done:
	case <-ctx.Done():
		select {
		case a = <-done:
		case <-time.After(time.Second):
			l.drop()
			return fmt.Errorf("%s: %w", name, ctx.Err())
		}
	}
	if a.err != nil {
		if !answered(a.err) && ctx.Err() == nil {
			l.drop() // broken, not slow: a new connection may do better
		}
		return a.err
	}
	if result == nil {
		return nil
	}
	if err := json.Unmarshal(a.data, result); err != nil {
		return fmt.Errorf("%s: %w: %.60q", name, ErrProtocol, a.data)
	}
	return nil
}

func (l *line) drop() {
	if l.agent == nil {
		return
	}
	agent := l.agent
	l.agent = nil
	go agent.Close() // may hang in a driver that hangs
}

func (l *line) close() {
	if l.agent != nil {
		l.agent.Close()
		l.agent = nil
	}
}

// answered reports whether err is what the agent said, not the lack of an answer.
func answered(err error) bool {
	var e *Error
	return errors.As(err, &e)
}

func disabled(err error) bool {
	var e *Error
	return errors.As(err, &e) && e.Disabled()
}
