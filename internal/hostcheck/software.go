package hostcheck

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"regexp"
	"strings"

	"github.com/holdfast-vm/holdfast/internal/child"
	"github.com/holdfast-vm/holdfast/internal/hypervisor"
	"github.com/holdfast-vm/holdfast/internal/hypervisor/accel"
	"github.com/holdfast-vm/holdfast/internal/qmp"
)

// The oldest versions that this program is for, and those below which increments are impossible.
var (
	testedQEMU, leastQEMU       = version{7, 2, 0}, version{6, 1, 0}
	testedLibvirt, leastLibvirt = version{9, 0, 0}, version{7, 6, 0}
)

// version is that of a program.
type version [3]int

var digits = regexp.MustCompile(`\d+\.\d+(?:\.\d+)?`)

// parseVersion finds the first version in text.
func parseVersion(text string) (v version, ok bool) {
	n, _ := fmt.Sscanf(digits.FindString(text), "%d.%d.%d", &v[0], &v[1], &v[2])
	return v, n >= 2
}

func (v version) String() string { return fmt.Sprintf("%d.%d.%d", v[0], v[1], v[2]) }

func (v version) before(o version) bool {
	for i := range v {
		if v[i] != o[i] {
			return v[i] < o[i]
		}
	}
	return false
}

// installed returns the version of this host's QEMU, and what it says of itself.
func installed(ctx context.Context) (v version, said, program string, err error) {
	if program, err = accel.Program(); err != nil {
		return v, "", "", err
	}
	out, err := child.CommandContext(ctx, program, "--version").Output()
	if err != nil {
		return v, "", program, fmt.Errorf("%s --version: %w", program, err)
	}
	said, _, _ = strings.Cut(string(out), "\n")
	v, ok := parseVersion(said)
	if !ok {
		return v, said, program, fmt.Errorf("%s --version says %q", program, said)
	}
	return v, said, program, nil
}

// checkQEMU looks for the program that runs machines.
func checkQEMU(ctx context.Context, _ *look) []Finding {
	v, said, program, err := installed(ctx)
	if err != nil {
		return one(Finding{Verdict: Fails, Found: err.Error(),
			Lost:   "running machines here: restores that start one, instant restores, drills",
			Advice: "install QEMU for x86 (Debian: qemu-system-x86; Fedora, RHEL: qemu-kvm)"})
	}
	f := Finding{Verdict: Works, Found: said + ", " + program}
	f.age(v, testedQEMU, leastQEMU)
	return one(f)
}

// age says what is wrong with a version that is too old.
func (f *Finding) age(v, tested, least version) {
	switch {
	case v.before(least):
		f.Verdict, f.Lost = Fails, "backups of what has changed: there are none before "+least.String()
		f.Advice = "use " + tested.String() + " or later"
	case v.before(tested):
		f.Verdict, f.Lost = Limited, "it may do things that nobody has seen: Holdfast is tested from "+tested.String()+
			" on"
	}
}

// tools are programs that some commands need.
var tools = []struct{ name, verdict, lost, advice string }{
	{"qemu-img", string(Fails), "checking and resizing disk images: `disk resize`, `disk delete` of what others are " +
		"based " +
		"on, images of machines that are off", "install it (Debian: qemu-utils; Fedora, RHEL: qemu-img)"},
	{"qemu-nbd", string(Fails), "reading disk images that are not raw: `image backup` of them and backups of " +
		"machines that " +
		"are off", "install it (Debian: qemu-utils; Fedora, RHEL: qemu-img)"},
	{"swtpm", string(Limited), "machines with an emulated TPM do not start", "install it (package swtpm)"},
}

// checkTools looks for the other programs.
func checkTools(context.Context, *look) []Finding {
	var all []Finding
	for _, t := range tools {
		path, err := child.Find(t.name)
		f := Finding{Subject: t.name, Verdict: Works, Found: path}
		if err != nil {
			f = Finding{Subject: t.name, Verdict: Verdict(t.verdict), Found: "not found in PATH", Lost: t.lost,
				Advice: t.advice}
		}
		all = append(all, f)
	}
	return all
}

// checkHosts asks each host what it is.
func checkHosts(_ context.Context, l *look) []Finding {
	var all []Finding
	for _, h := range l.met {
		all = append(all, l.checkHost(h))
	}
	return all
}

func (l *look) checkHost(h met) Finding {
	f := Finding{Subject: h.URI()}
	switch {
	case errors.Is(h.err, qmp.ErrInUse):
		f.Verdict, f.Found = Unknown,
			"another program is connected: a backup runs, or QEMU needs a -qmp socket for Holdfast"
	case l.Assumed && errors.Is(h.err, fs.ErrNotExist):
		f.Verdict, f.Found = Unknown, "there is no libvirt here"
		f.Advice = "name a plain QEMU with --connect qmp:SOCKET"
	case h.err != nil:
		f.Verdict, f.Found = Fails, h.err.Error()
		f.Lost = "everything with its machines: backups, restores to it, drills"
		f.Advice = "see that it runs and lets you in: as root, or for libvirt as a member of its group"
	default:
		f.describe(h)
	}
	return f
}

// describe says what a host is that answered.
func (f *Finding) describe(h met) {
	running := 0
	for _, m := range h.machines {
		if m.State == hypervisor.Running {
			running++
		}
	}
	s := h.software
	f.Verdict = Works
	f.Found = fmt.Sprintf("QEMU %s, machines: %d, running: %d", s.QEMU, len(h.machines), running)
	if s.Libvirt != "" {
		f.Found = "libvirt " + s.Libvirt + ", " + f.Found
	}
	if v, ok := parseVersion(s.QEMU); ok {
		f.age(v, testedQEMU, leastQEMU)
	} else {
		f.Verdict, f.Lost = Limited, "no machine runs: libvirt knows no QEMU"
		f.Found = strings.Replace(f.Found, "QEMU ,", "no QEMU,", 1)
	}
	if v, ok := parseVersion(s.Libvirt); ok && f.Verdict == Works {
		f.age(v, testedLibvirt, leastLibvirt)
	}
}
