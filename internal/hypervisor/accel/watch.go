package accel

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/holdfast-vm/holdfast/internal/qmp"
)

const (
	// stageTime is for a stage of the test guest, which takes a tenth of a second where it runs. A
	// guest that is late is looked at.
	stageTime = 2 * time.Second
	lookPause = 500 * time.Millisecond // between two looks at a processor that is late
	lookTime  = 10 * time.Second       // for QEMU to answer

	// leastSpeed is what the guest counts at least in a second of processor time. A processor
	// counts 1,000 million and more, emulation 100.
	leastSpeed = 5e6
	// standTime is the time of a processor that must have been spent without a step, or with too
	// few, and blockedTime that of the clock, where none was spent. A guest that gets neither waits
	// for its turn on a busy host.
	standTime   = 200 * time.Millisecond
	blockedTime = 10 * time.Second
	hardTime    = 90 * time.Second // of the clock, in all

	clockTick = 10 * time.Millisecond // of /proc/PID/stat
)

// errBusy reports that a guest moved all the time, and had too little of a processor to tell more.
var errBusy = fmt.Errorf("it had no verdict within %v: this host is too busy", hardTime)

// watch follows the guest to its end, or until it is seen to stand still or to crawl.
func (g *guest) watch(ctx context.Context, t Trial, r *Result) error {
	ctx, cancel := context.WithTimeoutCause(ctx, hardTime, errBusy)
	defer cancel()
	late := time.NewTimer(t.Time)
	defer late.Stop()
	s := &stage{guest: g, least: t.least, since: time.Now()}
	var began time.Time
	for r.Verdict == "" {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-late.C:
			s.look(ctx, r)
			late.Reset(lookPause)
		case letter, more := <-g.letters:
			switch {
			case !more && ctx.Err() != nil: // that is what QEMU was killed for
				return context.Cause(ctx)
			case !more:
				r.Verdict, r.Said = Refused, g.lastWords()
			case letter == letterEnd:
				r.Verdict, r.Mode, r.Seconds = Runs, "", time.Since(began).Seconds()
			default:
				if began.IsZero() {
					began = time.Now()
				}
				r.Mode = modes[letter]
				s = &stage{guest: g, least: t.least, since: time.Now()}
				late.Reset(t.Time)
			}
		}
	}
	return nil
}

// stage is a stage of the guest that is late.
type stage struct {
	*guest
	least       float64
	first, last sight     // of the looks at it; last is the last that found it elsewhere
	since       time.Time // the guest was last seen to move
}

// sight is where the guest was, and what QEMU had had of processors by then.
type sight struct {
	Processor
	spent time.Duration
}

// look looks at the processor and sets the verdict if there is one. A guest that is only starved,
// by others on a busy host, has none.
func (s *stage) look(ctx context.Context, r *Result) {
	ctx, cancel := context.WithTimeout(ctx, lookTime)
	defer cancel()
	p, err := s.processor(ctx)
	if err != nil { // QEMU has not begun to answer, or never will
		r.Said = err.Error()
		if time.Since(s.since) > blockedTime {
			r.Verdict = Stands
		}
		return
	}
	now := sight{p, s.processorTime()}
	r.Said, r.At = "", now.String()
	if s.first.spent == 0 || s.first.counter < now.counter { // it counts down
		s.first = now
	}
	if s.last.Processor != now.Processor {
		s.last, s.since = now, time.Now()
	}
	burnt := now.spent - s.first.spent
	switch {
	case now.spent-s.last.spent > standTime, time.Since(s.since) > blockedTime:
		r.Verdict = Stands
	case burnt > standTime && s.last == now:
		r.Speed = float64(s.first.counter-now.counter) / burnt.Seconds()
		if r.Speed < s.least {
			r.Verdict = Crawls
		}
	}
}

func (g *guest) processor(ctx context.Context) (Processor, error) {
	c, err := qmp.Dial(ctx, g.monitor)
	if err != nil {
		return Processor{}, fmt.Errorf("QEMU does not answer: %w", err)
	}
	defer c.Close()
	all, err := Look(ctx, c)
	if err == nil && len(all) == 0 {
		err = errors.New("QEMU names no registers of an x86")
	}
	if err != nil {
		return Processor{}, err
	}
	return all[0], nil
}

// processorTime returns how much time of processors QEMU has had, the guest's included.
func (g *guest) processorTime() time.Duration {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", g.cmd.Process.Pid))
	if err != nil {
		return 0
	}
	const user, system = 11, 12 // fields after the name, which is in parentheses and may hold anything
	fields := bytes.Fields(text[bytes.LastIndexByte(text, ')')+1:])
	if len(fields) <= system {
		return 0
	}
	ticks := 0
	for _, f := range fields[user : system+1] {
		n, _ := strconv.Atoi(string(f))
		ticks += n
	}
	return time.Duration(ticks) * clockTick
}
