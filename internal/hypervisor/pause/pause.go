// Package pause tells whether a machine stands still because we have stopped it, or because
// somebody else has.
//
// A hypervisor does not say who stopped a machine, and lets anybody who may resume it do so.
// Whoever stops one for a moment therefore notes a [Mark], durably, before, and another one
// afterwards, and who cleans up after him lets the machine go on only while that mark [Mark.Holds]:
// it is the same process of the same boot, and its virtual processors have not run since. A machine
// that somebody else has stopped later, or started anew, is his.
//
// What cannot be known here, as of a process in another container, says nothing against a mark.
// A process that stops a machine that already stands still leaves no trace at all.
package pause

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// ErrOthers reports that a machine stands still for another reason than the pause that was noted.
var ErrOthers = errors.New("somebody else has stopped it")

const (
	// atRest is how long the processors of a machine that stands still may have run meanwhile: what
	// it takes them to go to sleep, and to look up when they are asked something.
	atRest = time.Millisecond
	// onTheWay is how long each processor may have run since the note that the machine is about to
	// be stopped: what it takes to write that to a busy disk, and then to stop it.
	onTheWay = time.Second
)

// Mark is a machine at the moment when we stop it. Of what is the zero value nothing is known.
type Mark struct {
	Domain  int32  `json:"domain,omitempty"`  // libvirt's number of this run of the machine
	Boot    string `json:"boot,omitempty"`    // of the host, random
	Process int    `json:"process,omitempty"` // of the hypervisor
	Started uint64 `json:"started,omitempty"` // of the process, in clock ticks since the boot
	Threads []int  `json:"threads,omitempty"` // that are its virtual processors
	Ran     int64  `json:"ran,omitempty"`     // nanoseconds that they had run
	Stopped bool   `json:"stopped,omitempty"` // it stood still; else it was about to be stopped
}

// Of returns the mark of a machine that process runs. Its virtual processors are threads, by their
// IDs, or where none are given those that QEMU has named so.
func Of(process int, threads []int) Mark {
	m := Mark{Process: process}
	m.Boot = boot()
	var err error
	if m.Started, err = started(process); err != nil {
		return Mark{}
	}
	if len(threads) == 0 {
		threads = processors(process)
	}
	m.Threads = threads
	if m.Ran, err = ran(process, threads); err != nil {
		m.Threads, m.Ran = nil, 0
	}
	return m
}

// Again returns the mark of the same run of the machine now.
func (m Mark) Again() Mark {
	now := Of(m.Process, m.Threads)
	now.Domain = m.Domain
	return now
}

// Standing is Again for a machine that has been stopped.
func (m Mark) Standing() Mark {
	now := m.Again()
	now.Stopped = true
	return now
}

// Holds returns nil if a machine that stands still, and whose mark now is, does so because of the
// pause of m, else an [ErrOthers] that says how that is known.
func (m Mark) Holds(now Mark) error {
	switch {
	case m.Domain != 0 && now.Domain != 0 && m.Domain != now.Domain,
		m.Boot != "" && now.Boot != "" && m.Boot != now.Boot,
		m.Process != 0 && now.Process != 0 && (m.Process != now.Process || m.Started != now.Started):
		return fmt.Errorf("%w: it was started anew since", ErrOthers)
	case len(m.Threads) == 0 || !slices.Equal(m.Threads, now.Threads):
		return nil
	}
	limit := atRest
	if !m.Stopped {
		limit += time.Duration(len(m.Threads)) * onTheWay
	}
	if d := time.Duration(now.Ran - m.Ran); d > limit {
		return fmt.Errorf("%w: its processors have run for %v since", ErrOthers, d.Round(time.Millisecond/10))
	}
	return nil
}

func boot() string {
	text, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(text))
}

// started returns when a process began.
func started(process int) (uint64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", process))
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(string(text[bytes.LastIndexByte(text, ')')+1:]), " ")
	const at = 22 - 3 // starttime is the 22nd field, and rest begins with the 3rd
	fields := strings.Fields(rest)
	if len(fields) <= at {
		return 0, fmt.Errorf("/proc/%d/stat has only %d fields", process, len(fields)+2)
	}
	return strconv.ParseUint(fields[at], 10, 64)
}

// processors returns the threads of a QEMU that it has named as virtual processors, as libvirt has
// it do.
func processors(process int) (out []int) {
	names, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/comm", process)) // the pattern is well formed
	for _, name := range names {
		text, err := os.ReadFile(name)
		var n int
		if _, scanErr := fmt.Sscanf(string(text), "CPU %d/", &n); err != nil || scanErr != nil {
			continue
		}
		if id, err := strconv.Atoi(filepath.Base(filepath.Dir(name))); err == nil {
			out = append(out, id)
		}
	}
	slices.Sort(out)
	return out
}

// ran returns how long threads have run in all, in nanoseconds.
func ran(process int, threads []int) (int64, error) {
	var sum int64
	for _, id := range threads {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/schedstat", process, id))
		if err != nil {
			return 0, err
		}
		first, _, _ := strings.Cut(string(text), " ")
		n, err := strconv.ParseInt(first, 10, 64)
		if err != nil {
			return 0, err
		}
		sum += n
	}
	return sum, nil
}
