package hostcheck

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestVersions(t *testing.T) {
	for text, want := range map[string]string{
		"QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)": "7.2.22",
		"QEMU emulator version 10.1.0 (qemu-10.1.0-3.fc43)":              "10.1.0",
		"9.0": "9.0.0", "": "", "none": "",
	} {
		v, ok := parseVersion(text)
		if ok != (want != "") || ok && v.String() != want {
			t.Errorf("%q has version %v, %v; want %q", text, v, ok, want)
		}
	}
}

// A trap is told of the versions that have it, and of no other.
func TestTrapsOfVersions(t *testing.T) {
	of := func(kind, text string) (ids []string) {
		v, _ := parseVersion(text)
		for _, trap := range traps {
			if trap.of == kind && slices.ContainsFunc(trap.in, func(s span) bool { return s.has(v) }) {
				ids = append(ids, trap.id)
			}
		}
		return ids
	}
	for _, tt := range []struct {
		kind, version string
		has, hasNot   []string
	}{
		{"QEMU", "7.2.13", []string{"server-stop", "full-scratch", "stream-subclusters"}, []string{"backup-deadlock"}},
		{"QEMU", "7.2.14", []string{"full-scratch"}, []string{"server-stop", "mirror-zeroes"}},
		{"QEMU", "8.1.5", []string{"backup-deadlock", "server-stop"}, []string{"convert-lvm"}},
		{"QEMU", "10.1.0", []string{"mirror-zeroes", "convert-lvm"}, []string{"full-scratch", "server-stop"}},
		{"QEMU", "10.2.2", []string{"convert-lvm", "stream-crash"}, []string{"mirror-zeroes"}},
		{"libvirt", "9.0.0", []string{"no-reconnect"}, nil},
		{"libvirt", "11.10.0", nil, []string{"no-reconnect", "shutdown-ends-backup"}},
	} {
		got := of(tt.kind, tt.version)
		for _, id := range tt.has {
			if !slices.Contains(got, id) {
				t.Errorf("%s %s lacks trap %s: %q", tt.kind, tt.version, id, got)
			}
		}
		for _, id := range tt.hasNot {
			if slices.Contains(got, id) {
				t.Errorf("%s %s has trap %s", tt.kind, tt.version, id)
			}
		}
	}
}

// Whoever runs machines must get through every directory on the way to the scratch space.
func TestBarred(t *testing.T) {
	top := t.TempDir()
	closed := filepath.Join(top, "closed")
	inner := filepath.Join(closed, "scratch")
	if err := os.MkdirAll(inner, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(closed, 0o700); err != nil {
		t.Fatal(err)
	}
	const stranger = 64055
	for _, tt := range []struct {
		dir      string
		uid, gid int
		want     string
	}{
		{inner, stranger, stranger, closed}, {inner, os.Getuid(), stranger, ""}, {inner, 0, 0, ""},
	} {
		if got := barred(tt.dir, tt.uid, tt.gid); got != tt.want {
			t.Errorf("user %d is held up at %q on the way to %s, want %q", tt.uid, got, tt.dir, tt.want)
		}
	}
	if got := existing(filepath.Join(inner, "a", "b")); got != inner {
		t.Errorf("the nearest directory is %s, want %s", got, inner)
	}
}
