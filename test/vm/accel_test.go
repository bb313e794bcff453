package vm

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// bootCounter is a probe whose boot is counted, on a device that opens.
func bootCounter(t *testing.T, verdict Accel) (accelProbe, *atomic.Int32) {
	t.Helper()
	var boots atomic.Int32
	return accelProbe{
		device: os.DevNull, memory: filepath.Join(t.TempDir(), "image.accel"), key: "boot 1",
		boot: func(context.Context) (Accel, error) { boots.Add(1); return verdict, nil },
	}, &boots
}

func (p accelProbe) must(t *testing.T, want string) {
	t.Helper()
	if a, err := p.find(t.Context()); err != nil || a.Name != want || a.Why == "" {
		t.Errorf("find() = %q because of %q, %v; want %s and a reason", a.Name, a.Why, err, want)
	}
}

func TestAccelIsFoundOnceForABoot(t *testing.T) {
	p, boots := bootCounter(t, Accel{"kvm", "it ran"})
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() { p.must(t, "kvm") })
	}
	all.Wait()
	if n := boots.Load(); n != 1 {
		t.Errorf("%d kernels were booted, want one for all who ask", n)
	}
	p.key = "boot 2"
	p.must(t, "kvm")
	if n := boots.Load(); n != 2 {
		t.Errorf("after a restart of the machine %d kernels were booted in all, want 2", n)
	}
}

func TestAccelWithoutADevice(t *testing.T) {
	p, boots := bootCounter(t, Accel{"kvm", "it ran"})
	p.must(t, "kvm")
	p.device = filepath.Join(t.TempDir(), "kvm") // gone since
	p.must(t, "tcg")
	if n := boots.Load(); n != 1 {
		t.Errorf("%d kernels were booted, want none without a device", n-1)
	}
}

func TestAccelForgetsWhatItCannotRead(t *testing.T) {
	p, boots := bootCounter(t, Accel{"tcg", "it stood"})
	if err := os.WriteFile(p.memory, []byte(`{"key":"boot 1","na`), 0o644); err != nil {
		t.Fatal(err)
	}
	p.must(t, "tcg")
	p.must(t, "tcg")
	if n := boots.Load(); n != 1 {
		t.Errorf("%d kernels were booted, want 1", n)
	}
}

func TestAccelIsNotRememberedWhenNothingWasLearnt(t *testing.T) {
	p, _ := bootCounter(t, Accel{})
	interrupted := errors.New("interrupted")
	p.boot = func(context.Context) (Accel, error) { return Accel{}, interrupted }
	if _, err := p.find(t.Context()); !errors.Is(err, interrupted) {
		t.Fatalf("find() = %v, want %v", err, interrupted)
	}
	if _, err := os.Stat(p.memory); !os.IsNotExist(err) {
		t.Errorf("the memory exists: %v", err)
	}
}

func TestAccelOverride(t *testing.T) {
	for _, tt := range []struct{ env, want, err string }{
		{"kvm", "kvm", ""},
		{"tcg", "tcg", ""},
		{"KVM", "", "must be kvm or tcg"},
	} {
		t.Setenv(accelEnv, tt.env)
		a, err := findAccel(t.Context(), "/nowhere/kernel", "/nowhere/memory", io.Discard)
		if a.Name != tt.want || (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
			t.Errorf("%s=%s: %q, %v; want %q, %s", accelEnv, tt.env, a.Name, err, tt.want, tt.err)
		}
	}
}

// The kernel's loader speaks in real mode, where hosts still run that then stand still.
func TestOnlyAKernelsLineIsProof(t *testing.T) {
	const loader = "SeaBIOS\r\nProbing EDD (edd=off to disable)... ok\r\n"
	for text, want := range map[string]bool{
		"":     false,
		loader: false,
		loader + "[    0.000000] Linux version 6.1.0 (gcc)": true,
	} {
		if got := saysFirstLine(strings.NewReader(text)); got != want {
			t.Errorf("saysFirstLine(%q) = %v, want %v", text, got, want)
		}
	}
}
