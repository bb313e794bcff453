package cli

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/term"
)

const lineEvery = 5 * time.Second // between two plain progress lines of a stage

// meter shows how far a piece of work has come: bars on a terminal, a line now and then elsewhere.
// It is safe for concurrent use; its zero value shows nothing.
type meter struct {
	out io.Writer
	now func() time.Time

	mu     sync.Mutex
	bars   *mpb.Progress // nil where lines are printed
	stages map[string]*stage
}

type stage struct {
	bar         *mpb.Bar
	total       int64 // bytes
	began, said time.Time
}

func (a *app) meter() *meter {
	if a.quiet || a.json {
		return &meter{}
	}
	m := &meter{out: a.env.Stderr, now: a.env.Now, stages: map[string]*stage{}}
	if f, ok := a.env.Stderr.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		m.bars = mpb.New(mpb.WithOutput(f), mpb.WithRefreshRate(150*time.Millisecond), mpb.WithWidth(40))
	}
	return m
}

// Update says that done of total bytes of a stage are behind us. The total may grow.
func (m *meter) Update(name string, done, total int64) {
	if m.stages == nil || total <= 0 {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.stages[name]
	if s == nil {
		s = &stage{began: m.now(), said: m.now()}
		m.stages[name] = s
		if m.bars != nil {
			s.bar = m.newBar(name, total)
		}
	}
	s.total = total
	if s.bar != nil {
		s.bar.SetTotal(total, false)
		s.bar.SetCurrent(done)
		return
	}
	if now := m.now(); now.Sub(s.said) >= lineEvery {
		s.said = now
		fmt.Fprintln(m.out, progressLine(name, done, total, now.Sub(s.began)))
	}
}

func (m *meter) newBar(name string, total int64) *mpb.Bar {
	return m.bars.New(total, mpb.BarStyle().Lbound(" [").Rbound("] "),
		mpb.PrependDecorators(decor.Name(name, decor.WCSyncSpaceR),
			decor.CountersKibiByte("% .1f of % .1f", decor.WCSyncSpace)),
		mpb.AppendDecorators(decor.AverageSpeed(decor.SizeB1024(0), "% .1f", decor.WCSyncSpace), decor.Name(" "),
			decor.OnComplete(decor.AverageETA(decor.ET_STYLE_GO), "done")))
}

func progressLine(name string, done, total int64, took time.Duration) string {
	line := fmt.Sprintf("%s: %s of %s (%d%%)", name, humanSize(done), humanSize(total), done*100/total)
	if rate := float64(done) / took.Seconds(); rate > 0 && took > 0 {
		left := time.Duration(float64(total-done) / rate * float64(time.Second)).Round(time.Second)
		line += fmt.Sprintf(", %s/s, %s left", humanSize(int64(rate)), max(left, 0))
	}
	return line
}

// Close ends the display, leaving bars where they are.
func (m *meter) Close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.bars == nil {
		return
	}
	for _, s := range m.stages {
		if done := s.bar.Current(); done > 0 && done >= s.total {
			s.bar.SetTotal(done, true)
		} else {
			s.bar.Abort(false) // leave it as far as it came
		}
	}
	m.bars.Wait()
	m.bars = nil
	m.stages = nil
}

// within shows the work of one stage whose parts only say how much more is done.
func (m *meter) within(name string, total int64) func(more int64) {
	var mu sync.Mutex
	var done int64
	m.Update(name, 0, total)
	return func(more int64) {
		mu.Lock()
		defer mu.Unlock()
		done += more
		m.Update(name, done, total)
	}
}
