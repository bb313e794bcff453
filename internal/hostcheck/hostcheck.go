// Package hostcheck says what this host can do, what will not work on it and why, by trying it.
//
// [Run] makes the checks that are asked for, in the order of [Names], and returns what each found.
// A check that cannot be made is a finding too, never an error. Whatever a check makes is gone when
// it returns, and nothing of the host is changed; machines are asked, and none is disturbed.
package hostcheck

import (
	"context"
	"slices"
	"time"

	"github.com/holdfast-vm/holdfast/internal/hypervisor"
)

// Verdict is what came of a check.
type Verdict string

// Verdicts.
const (
	Works   Verdict = "works"
	Avoided Verdict = "avoided" // a trap of other people's software that this program stays out of
	Limited Verdict = "limited" // works, but not for every machine, or not as well
	Fails   Verdict = "fails"
	Unknown Verdict = "unknown" // could not be found out, or there was nothing to try it on
)

// Finding is what one check found of one thing. Fields are added, never changed.
type Finding struct {
	Check   string  `json:"check"`             // one of Names
	Subject string  `json:"subject,omitempty"` // where a check looks at several: a host, a trap
	Verdict Verdict `json:"verdict"`
	Found   string  `json:"found"`                   // what was seen, in words
	Ours    string  `json:"holdfast,omitempty"`      // what keeps this program out of a trap
	Lost    string  `json:"will_not_work,omitempty"` // or not for all, or less well, in words
	Advice  string  `json:"advice,omitempty"`
	See     string  `json:"see,omitempty"` // page and section of the manual
}

// Host is what a check needs of a host.
type Host interface {
	hypervisor.Host
	// Software says what runs its machines.
	Software(ctx context.Context) (hypervisor.Software, error)
}

// Options says what to look at.
type Options struct {
	Scratch  string // directory for scratch space; it need not be there
	StateDir string // directory for locks and notes; it need not be there
	Hosts    []Host
	Assumed  bool     // Hosts are a default that nobody asked for
	Checks   []string // of Names; none means all
}

// hostTime is what a host may take to answer one question.
const hostTime = 20 * time.Second

// checks are all checks, in the order in which they are made and printed.
var checks = []struct {
	name string
	make func(ctx context.Context, o *look) []Finding
}{
	{"kvm", checkKVM}, {"tcg", checkTCG}, {"qemu", checkQEMU}, {"tools", checkTools}, {"hosts", checkHosts},
	{"agents", checkAgents}, {"traps", checkTraps}, {"scratch", checkScratch}, {"state", checkState},
	{"nbd", checkNBD}, {"namespaces", checkNamespaces}, {"isolation", checkIsolation},
	{"confinement", checkConfinement}, {"fuse", checkFUSE},
}

// Names returns the names of all checks, in order.
func Names() []string {
	var all []string
	for _, c := range checks {
		all = append(all, c.name)
	}
	return all
}

// Run makes the checks. It returns ctx's error if that ended first, and no other.
func Run(ctx context.Context, o Options) ([]Finding, error) {
	l := &look{Options: o}
	l.meet(ctx)
	var all []Finding
	for _, c := range checks {
		if len(o.Checks) > 0 && !slices.Contains(o.Checks, c.name) {
			continue
		}
		for _, f := range c.make(ctx, l) {
			f.Check = c.name
			if f.See == "" {
				f.See = manual + "#" + c.name
			}
			all = append(all, f)
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
	}
	return all, nil
}

// manual is where the findings are explained.
const manual = "docs/manual/host.md"

// Fit reports whether nothing fails.
func Fit(all []Finding) bool {
	return !slices.ContainsFunc(all, func(f Finding) bool { return f.Verdict == Fails })
}

// look is one run: what was asked for, and what several checks need to know.
type look struct {
	Options
	met []met
}

// met is a host that was asked what it is.
type met struct {
	Host
	software hypervisor.Software
	machines []hypervisor.Machine
	err      error
}

// meet asks all hosts what they are.
func (l *look) meet(ctx context.Context) {
	for _, h := range l.Hosts {
		m := met{Host: h}
		limited, cancel := context.WithTimeout(ctx, hostTime)
		m.software, m.err = h.Software(limited)
		if m.err == nil {
			m.machines, m.err = h.Machines(limited)
		}
		cancel()
		l.met = append(l.met, m)
	}
}

// one is a check with one finding.
func one(f Finding) []Finding { return []Finding{f} }
