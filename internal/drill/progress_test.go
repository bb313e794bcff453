package drill

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-vm/holdfast/internal/hypervisor"
	"github.com/holdfast-vm/holdfast/internal/hypervisor/accel"
	"github.com/holdfast-vm/holdfast/internal/point"
)

func at(places ...accel.Processor) []accel.Processor { return places }

var (
	entry = accel.Processor{At: 0x1000000, Bits: 32}                               // where a kernel begins
	loop  = accel.Processor{At: 0x1000008, Bits: 32}                               // a little further
	idle  = accel.Processor{At: 0xffffffff81000000, Bits: 64, Interrupts: true}    // where a kernel waits for work
	sleep = accel.Processor{At: 0xfd0a8, Bits: 32, Halted: true, Interrupts: true} // a second processor, not yet woken
	woken = accel.Processor{At: 0xffffffff81000020, Bits: 64, Interrupts: true}    // at work
)

// A guest stands still if its processors do and cannot be moved. One that idles, reads or writes
// makes progress, and so may one that cannot be seen.
func TestProgress(t *testing.T) {
	look := func(read int64, console string, p ...accel.Processor) sight { return sight{read, console, p} }
	for _, tt := range []struct {
		name           string
		sights         []sight // one every two seconds, and then the last for long
		stands, silent bool
		words          string
	}{
		{"stands at once", []sight{look(7, "", entry)}, true, true,
			"for 60 s it read nothing from its disks and wrote nothing to its serial console, and its processor " +
				"stood " +
				"at 0x1000000 in 32-bit code, interrupts off in all of 30 looks"},
		{"stands after it has read", []sight{look(7, "", entry), look(8, "", entry), look(8, "", entry)}, true, false,
			"for 56 s"},
		{"crawls", []sight{look(7, "", entry), look(7, "", loop)}, false, true,
			"its processor was last at 0x1000008 in 32-bit code, interrupts off"},
		{"idles, having booted from memory", []sight{look(7, "", entry), look(7, "", idle)}, false, true,
			"was last at"},
		{"idles, having written", []sight{look(7, "", entry), look(7, "up", idle)}, false, false, "was last at"},
		{"one of two stands", []sight{look(7, "", entry, sleep)}, false, true, "0x1000000 in 32-bit code, interrupts " +
			"off and 0xfd0a8 in 32-bit code"},
		{"works", []sight{look(7, "", idle), look(7, "", woken), look(9, "a", idle), look(9, "b", woken)}, false, false,
			""},
		{"cannot be seen", []sight{look(7, "")}, false, true,
			"for 60 s it read nothing from its disks and wrote nothing to its serial console"},
	} {
		now := time.Unix(0, 0)
		p := newProgress(now, 7)
		for n := range 30 {
			now = now.Add(2 * time.Second)
			p.note(now, tt.sights[min(n, len(tt.sights)-1)])
			if n < stillLooks-1 && p.stands() {
				t.Errorf("%s: stands after %d looks", tt.name, n+1)
			}
		}
		if p.stands() != tt.stands || p.silent() != tt.silent || !strings.Contains(p.words(), tt.words) {
			t.Errorf("%s: stands %v, silent %v, %s", tt.name, p.stands(), p.silent(), p.words())
		}
		if r := p.result(); r.Still != tt.stands || r.Looks != p.looks {
			t.Errorf("%s: %+v", tt.name, r)
		}
	}
}

// still is a host whose guest does not answer.
type still struct {
	fakeHost
	places  func() []accel.Processor
	console func() string
}

func (h still) OpenAgent(context.Context, hypervisor.Machine) (hypervisor.Agent, error) {
	return nil, hypervisor.ErrNoAgent
}

func (h still) Processors(context.Context, hypervisor.Machine) ([]accel.Processor, error) {
	if h.places == nil {
		return nil, errors.New("no monitor")
	}
	return h.places(), nil
}

func (h still) SerialText(context.Context, hypervisor.Machine, int64) (string, error) {
	return h.console(), nil
}

// The wait for a guest that stands still ends early, and so does that for one that does nothing on
// a host where no guest runs. The verdict names what was seen, and whose fault it is. Others are
// waited for to the end.
func TestStandingStill(t *testing.T) {
	unfit := fmt.Errorf("%w: a test guest crawls", hypervisor.ErrKVMUnfit)
	began := time.Now
	moving := func() []accel.Processor { return at(accel.Processor{At: uint64(began().UnixNano()), Bits: 32}) }
	for _, tt := range []struct {
		name    string
		accel   string
		trouble error
		places  func() []accel.Processor
		console func() string
		seconds float64
		want    []string
		tried   int
	}{
		{"stands, emulated", "tcg", nil, func() []accel.Processor { return at(entry) }, nil, 31,
			[]string{"the guest made no progress", "stood at 0x1000000"}, 1},
		{"stands, KVM is unfit", "kvm", unfit, func() []accel.Processor { return at(entry) }, nil, 31,
			[]string{"the guest made no progress", "stood at 0x1000000",
				"it is not the point's fault: KVM of this host does not run guests: a test guest crawls"}, 1},
		{"crawls, KVM is unfit", "kvm", unfit, moving, nil, 31,
			[]string{"the guest made no progress", "was last at", "it is not the point's fault"}, 1},
		{"moves, KVM is fit", "kvm", nil, moving, nil, 300,
			[]string{"the guest agent did not answer within 5m0s: the guest made no progress: for 300 s"}, 1},
		{"idles", "kvm", nil, func() []accel.Processor { return at(idle) }, func() string { return "login:" }, 300,
			[]string{"did not answer within 5m0s: the guest has not booted so far, or runs no agent"}, 1},
		{"writes for ever, KVM is unfit", "kvm", unfit, moving, func() string { return began().String() }, 300,
			[]string{"did not answer within 5m0s: the guest has not booted so far", "it is not the point's fault"}, 1},
		{"cannot be seen", "tcg", nil, nil, nil, 300, []string{"the guest made no progress: for 300 s it read nothing"},
			1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := still{fakeHost{name: "m"}, tt.places, tt.console}
				if h.console == nil {
					h.console = func() string { return "" }
				}
				tried := 0
				o := Options{Trouble: func(_ context.Context, p hypervisor.Prospect) error {
					if tried++; p.Accel != tt.accel {
						t.Errorf("%+v was tried", p)
					}
					return tt.trouble
				}}
				r := newRun(nil, Request{Point: &point.RecoveryPoint{}, Timeout: 5 * time.Minute}, o.withDefaults())
				r.note.Name, r.host, r.disks = "m", h, &disks{ended: make(chan struct{})}
				r.prospect.Accel = tt.accel
				r.started = time.Now()
				err := r.ask(t.Context())
				var f *failure
				if !errors.As(err, &f) {
					t.Fatalf("no verdict: %v", err)
				}
				for _, want := range tt.want {
					if !strings.Contains(f.reason, want) {
						t.Errorf("the verdict lacks %q: %s", want, f.reason)
					}
				}
				if took := time.Since(r.started).Seconds(); took < tt.seconds-1 || took > tt.seconds+4 {
					t.Errorf("it took %.0f s, want %.0f", took, tt.seconds)
				}
				if tried != tt.tried || r.res.Progress == nil {
					t.Errorf("a test guest was tried %d times; progress %+v", tried, r.res.Progress)
				}
			})
		})
	}
}

// left is a host whose machine left it to QEMU what runs it.
type left struct {
	fakeHost
	by string
}

func (h left) RunBy(context.Context, hypervisor.Machine) (string, error) {
	if h.by == "" {
		return "", errors.New("no monitor")
	}
	return h.by, nil
}

// What the verdict says of what ran the machine is what ran it, as far as that can be found out.
func TestWhatRunsIsAsked(t *testing.T) {
	for _, tt := range []struct{ by, want string }{{"tcg", "tcg"}, {"kvm", "kvm"}, {"", "kvm"}} {
		r := newRun(nil, Request{Point: &point.RecoveryPoint{}}, Options{}.withDefaults())
		r.host, r.prospect.Accel, r.res.Accel = left{fakeHost{name: "m"}, tt.by}, "kvm", "kvm"
		r.whatRuns(t.Context())
		if r.res.Accel != tt.want || r.prospect.Accel != tt.want {
			t.Errorf("run by %q, the verdict says %q and %q is tried", tt.by, r.res.Accel, r.prospect.Accel)
		}
	}
}
