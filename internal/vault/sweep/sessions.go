package sweep

import (
	"context"
	"errors"
	"fmt"

	"github.com/holdfast-vm/holdfast/internal/vault/log"
	"github.com/holdfast-vm/holdfast/internal/vault/state"
)

// sessions gives up those that are proved gone, or were silent for too long.
func (r *run) sessions(ctx context.Context) error {
	var open []state.Session
	if err := r.Journal.View(ctx, func(s *state.State) (err error) {
		open, err = s.Sessions(ctx)
		return err
	}); err != nil {
		return fmt.Errorf("look for silent sessions: %w", err)
	}
	byID := map[log.Session]*state.Session{}
	for i := range open {
		byID[open[i].ID] = &open[i]
	}
	left := map[string]bool{}
	var silent []state.Adopted
	for i := range open {
		x := &open[i]
		mark := markOf(byID, x)
		left[mark] = true
		if r.since(r.seen.Sessions, mark) >= r.Policy.Silent || r.isGone(byID, x) {
			silent = append(silent, state.Adopted{Session: x.ID, Progress: uint32(len(x.Progress))})
		}
	}
	for mark := range r.seen.Sessions {
		if !left[mark] {
			delete(r.seen.Sessions, mark)
		}
	}
	return r.giveUp(ctx, silent)
}

// goesOn returns the sessions that go on from one, itself first, as far as they told of progress.
func goesOn(open map[log.Session]*state.Session, x *state.Session) []*state.Session {
	chain := []*state.Session{x}
	for next := open[x.AdoptedBy]; next != nil && len(chain) <= len(open); next = open[next.AdoptedBy] {
		chain = append(chain, next)
	}
	return chain
}

// markOf names a session as it stands, with those that go on from it: it changes with any progress.
func markOf(open map[log.Session]*state.Session, x *state.Session) string {
	mark := ""
	for _, y := range goesOn(open, x) {
		mark += fmt.Sprintf("%s.%d>", y.ID, len(y.Progress))
	}
	return mark
}

// isGone reports whether who went on from a session last is proved gone. One that went on and told
// of no progress yet proves nothing.
func (r *run) isGone(open map[log.Session]*state.Session, x *state.Session) bool {
	chain := goesOn(open, x)
	last := chain[len(chain)-1]
	n := len(last.Progress)
	return last.AdoptedBy == (log.Session{}) && n > 0 && r.Gone(last.Progress[n-1].Holder)
}

// atOnce is how many names one entry tells of.
const atOnce = 1000

func (r *run) giveUp(ctx context.Context, silent []state.Adopted) error {
	if r.dry {
		r.report.GivenUp = len(silent)
		return nil
	}
	for len(silent) > 0 {
		some := silent[:min(len(silent), atOnce)]
		silent = silent[len(some):]
		n := 0
		_, err := r.Journal.Append(ctx, func(ctx context.Context, s *state.State) ([]log.Op, error) {
			g, err := stillSilent(ctx, s, some)
			if n = len(g.Sessions); n == 0 || err != nil {
				return nil, err
			}
			return []log.Op{g.Op()}, nil
		})
		if err != nil {
			return fmt.Errorf("give up silent sessions: %w", err)
		}
		r.report.GivenUp += n
		r.Log("%d silent sessions are given up", n)
	}
	return nil
}

// stillSilent returns those that are as they were.
func stillSilent(ctx context.Context, s *state.State, some []state.Adopted) (g state.GiveUp, err error) {
	for _, a := range some {
		one := state.GiveUp{Sessions: []state.Adopted{a}}
		err := one.Check(ctx, s)
		if errors.Is(err, state.ErrNoChange) {
			continue
		}
		if err != nil {
			return g, err
		}
		g.Sessions = append(g.Sessions, a)
	}
	return g, nil
}
