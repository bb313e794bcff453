package accel

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-vm/holdfast/internal/child"
	"github.com/holdfast-vm/holdfast/internal/hypervisor"
)

// changed is the test guest with other instructions at a place, which must have had old ones.
func changed(t *testing.T, at int, old, fresh []byte) []byte {
	t.Helper()
	image := rom()
	if !bytes.HasPrefix(image[at:], old) {
		t.Fatalf("the test guest has % x at %#x, not % x", image[at:at+8], at, old)
	}
	copy(image[at:], fresh)
	return image
}

// A guest that comes to its end runs. One that stands still or crawls is found out in whatever mode
// it does, also where it ran well before.
func TestTry(t *testing.T) {
	stand := []byte{0xeb, 0xfe} // jmp, to itself
	for _, tt := range []struct {
		name    string
		trial   Trial
		verdict Verdict
		mode    string
		words   string
	}{
		{"runs", Trial{}, Runs, "", "ran in 16, 32 and 64 bits"},
		{"stands in real mode", Trial{image: changed(t, 0x0c, []byte{0x66, 0x49}, stand)}, Stands, "16-bit code",
			"stands still in 16-bit code at 0x100c in 16-bit code, interrupts off"},
		{"stands in protected mode", Trial{image: changed(t, 0x37, []byte{0x49, 0x75}, stand)}, Stands, "32-bit code",
			"stands still in 32-bit code at 0x1037"},
		{"stands in long mode", Trial{image: changed(t, 0x92, []byte{0xff, 0xc9}, stand)}, Stands, "64-bit code",
			"stands still in 64-bit code at 0x1092"},
		{"stands at the first instruction", Trial{image: changed(t, resetAt, []byte{0xea}, stand)}, Stands, "",
			"stands still at 0xfff0"},
		{"counts far", Trial{least: 1e15,
			image: changed(t, 0x32, []byte{0xb9, 0, 0, 0x80, 0}, []byte{0xb9, 255, 255, 255, 255})},
			Crawls, "32-bit code", "crawls: in 32-bit code it counts"},
		{"no such processor", Trial{CPU: "abacus"}, Refused, "", "unable to find CPU model 'abacus'"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			tt.trial.Accel, tt.trial.Time = TCG, time.Second
			r, err := Try(t.Context(), tt.trial)
			if err != nil {
				t.Fatal(err)
			}
			if r.Verdict != tt.verdict || r.Mode != tt.mode || !strings.Contains(r.String(), tt.words) {
				t.Errorf("%+v: %v", r, r)
			}
			if errors.Is(r.Err(), hypervisor.ErrKVMUnfit) == r.Works() {
				t.Errorf("works %v, error %v", r.Works(), r.Err())
			}
			if tt.verdict == Crawls && r.Speed < 1e5 {
				t.Errorf("it counts %.0f a second", r.Speed)
			}
		})
	}
}

func TestTryWithoutQEMU(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	if _, err := Try(t.Context(), Trial{Accel: TCG}); !errors.Is(err, hypervisor.ErrNoQEMU) {
		t.Errorf("without QEMU: %v", err)
	}
}

// A trial that is broken off leaves no process and no file.
func TestTryLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	ctx, cancel := context.WithCancel(t.Context())
	program := filepath.Join(t.TempDir(), "qemu")
	script := "#!/bin/sh\necho $$ >" + dir + "/pid\nprintf R\nexec sleep 1000\n"
	if err := os.WriteFile(program, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	go func() {
		for ctx.Err() == nil {
			if _, err := os.Stat(dir + "/pid"); err == nil {
				cancel()
			}
		}
	}()
	if r, err := Try(ctx, Trial{Accel: TCG, Program: program}); !errors.Is(err, context.Canceled) {
		t.Errorf("broken off: %+v, %v", r, err)
	}
	left, err := filepath.Glob(dir + "/*")
	if err != nil || len(left) != 1 {
		t.Errorf("left behind: %q, %v", left, err)
	}
}

// QEMU's end and the order to end come in any order: what is killed at the caller's word is not
// taken for a QEMU that does not run the guest.
func TestTryBrokenOffIsNoVerdict(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for range 50 {
		g := &guest{letters: make(chan byte), cmd: child.Command("true")}
		close(g.letters)
		if err := g.watch(ctx, Trial{Time: time.Minute}, &Result{}); !errors.Is(err, context.Canceled) {
			t.Fatalf("broken off: %v", err)
		}
	}
}

// What KVM does here is not for a test to say, but whatever it does has a verdict.
func TestTryKVM(t *testing.T) {
	r, err := Try(t.Context(), Trial{Time: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Log(r)
	if missing := Available() != nil; missing != (r.Verdict == Missing) ||
		missing != errors.Is(r.Err(), hypervisor.ErrNoKVM) {
		t.Errorf("KVM is missing: %v; %+v", missing, r)
	}
}
