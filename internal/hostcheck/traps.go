package hostcheck

import (
	"context"
	"fmt"
	"slices"
)

// span is the versions from one on and before another; the zero version is no limit.
type span struct{ from, before version }

func (s span) has(v version) bool {
	return !v.before(s.from) && (s.before == version{} || v.before(s.before))
}

// trap is a known fault of a version of QEMU or libvirt. The table in docs/manual/host.md has the
// same, and a test compares them.
type trap struct {
	id      string
	of      string // QEMU or libvirt
	in      []span
	what    string // happens
	ours    string // what keeps this program out of it; "" if nothing does
	advice  string
	verdict Verdict
}

var everywhere = []span{{}}

var traps = []trap{
	{"iothread-nbd", "QEMU", everywhere,
		"a client that leaves QEMU's own NBD server ends the machine, if the disk is on an iothread (seen with 7.2.22)",
		"nothing is read through QEMU's server unless a trial with a QEMU of its own has shown that this one " +
			"survives it",
		"keep other backup programs that pull (virtnbdbackup, oVirt) from machines with iothreads", Avoided},
	{"backup-deadlock", "QEMU", []span{{version{8, 0, 0}, version{8, 2, 0}}},
		"cancelling a backup, or draining a disk on an iothread, can leave the guest's disk waiting for ever", "",
		"use another QEMU, or no iothreads", Limited},
	{"full-scratch", "QEMU", []span{{version{}, version{10, 1, 0}}},
		"if the scratch space of a backup fills up, writes of the guest fail",
		"room is reserved before a backup begins, and a backup that would exceed it is broken off", "", Avoided},
	{"server-stop", "QEMU", []span{{version{}, version{7, 2, 14}}, {version{8, 0, 0}, version{9, 1, 0}}},
		"a client of QEMU's NBD server can end the machine (CVE-2024-7409)", "",
		"install the distribution's updates; keep QEMU's NBD server from networks", Limited},
	{"stream-crash", "QEMU", everywhere,
		"a crash right after `block-stream` (virsh blockpull) has ended can lose the whole disk",
		"disks are copied by mirroring, which flushes before it ends",
		"do not end an instant restore with blockpull", Avoided},
	{"stream-subclusters", "QEMU", []span{{version{}, version{8, 2, 0}}},
		"`block-stream` of an overlay with extended_l2=on ends the machine",
		"overlays have no subclusters, and nothing is streamed", "", Avoided},
	{"mirror-zeroes", "QEMU", []span{{version{10, 1, 0}, version{10, 2, 2}}},
		"a mirror in write-blocking mode ends the machine when its guest writes a few zeros",
		"mirrors are made in background mode", "", Avoided},
	{"discard-corruption", "QEMU", []span{{version{}, version{11, 0, 0}}},
		"a discard that meets a first write of the same cluster can damage a qcow2 image", "",
		"look whether the distribution's QEMU has the fix of April 2026; until then discard='ignore' is safe", Limited},
	{"convert-lvm", "QEMU", []span{{version{10, 1, 0}, version{11, 0, 0}}},
		"`qemu-img convert` to a logical volume fails", "a restore writes volumes itself",
		"use `holdfast point restore --to /dev/…`", Avoided},
	{"revert-refused", "QEMU", everywhere,
		"reverting to an internal snapshot is refused while records of changes exist", "",
		"`holdfast host reconcile --release` removes those of a vault", Limited},
	{"no-reconnect", "libvirt", []span{{version{}, version{9, 2, 0}}},
		"a machine on an export stands still at once when the process that serves it ends, instead of waiting 10 s", "",
		"`holdfast instant resume` lets it go on", Limited},
	{"shutdown-ends-backup", "libvirt", []span{{version{}, version{11, 10, 0}}},
		"a guest that shuts down during a backup ends it", "", "run the backup again: no change is lost", Limited},
}

// checkTraps says which traps the versions at hand have.
func checkTraps(ctx context.Context, l *look) []Finding {
	var all []Finding
	found := l.versions(ctx)
	for _, t := range traps {
		for _, v := range found[t.of] {
			if slices.ContainsFunc(t.in, func(s span) bool { return s.has(v) }) {
				all = append(all, t.finding(v))
			}
		}
	}
	if len(all) == 0 {
		return one(Finding{Verdict: Unknown, Found: "neither a QEMU nor a libvirt is there to have traps"})
	}
	return all
}

func (t trap) finding(v version) Finding {
	return Finding{Subject: t.id, Verdict: t.verdict, Found: fmt.Sprintf("%s %v: %s", t.of, v, t.what), Ours: t.ours,
		Advice: t.advice}
}

// versions returns those of QEMU and libvirt that are at work here, each once.
func (l *look) versions(ctx context.Context) map[string][]version {
	all := map[string][]version{}
	add := func(of, text string) {
		if v, ok := parseVersion(text); ok && !slices.Contains(all[of], v) {
			all[of] = append(all[of], v)
		}
	}
	if v, _, _, err := installed(ctx); err == nil {
		add("QEMU", v.String())
	}
	for _, h := range l.met {
		add("QEMU", h.software.QEMU)
		add("libvirt", h.software.Libvirt)
	}
	return all
}
