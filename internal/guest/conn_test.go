package guest

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-vm/holdfast/internal/guest/guesttest"
	"github.com/holdfast-vm/holdfast/internal/hypervisor"
	"github.com/holdfast-vm/holdfast/internal/point"
)

func dialed(t *testing.T, g *guesttest.Guest) *Conn {
	t.Helper()
	c, err := DialUnix(t.Context(), serve(t, g))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func TestCommand(t *testing.T) {
	c := dialed(t, with(plain(), func(g *guesttest.Guest) { g.Disabled = []string{"guest-exec"} }))
	got, err := c.Command(t.Context(), "guest-get-host-name", nil)
	if err != nil || string(got) != `{"host-name":"guest1"}` {
		t.Errorf("guest-get-host-name = %s, %v", got, err)
	}
	for command, class := range map[string]string{"guest-exec": "CommandNotFound", "guest-dance": "CommandNotFound",
		"guest-file-open": "GenericError"} {
		_, err := c.Command(t.Context(), command, map[string]string{"path": "/x"})
		var e *Error
		if !errors.As(err, &e) || e.Class != class || !strings.Contains(err.Error(), command) {
			t.Errorf("%s: %v, want a %s", command, err, class)
		}
	}
}

func TestCommandsOfManyCallersDoNotMix(t *testing.T) {
	c := dialed(t, with(plain(), func(g *guesttest.Guest) {
		for i := range 20 {
			g.Files[fmt.Sprint(i)] = fmt.Sprint("content of ", i)
		}
	}))
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			l := line{agent: c}
			got, err := l.readFile(t.Context(), fmt.Sprint(i))
			if err != nil || string(got) != fmt.Sprint("content of ", i) {
				t.Errorf("file %d is %q, %v", i, got, err)
			}
		})
	}
	wg.Wait()
}

// After any answer that did not come or was nonsense, the next command gets its own answer.
func TestConnRecovers(t *testing.T) {
	for _, kind := range []guesttest.Kind{guesttest.Mute, guesttest.Ignore, guesttest.Junk, guesttest.Partial,
		guesttest.Huge, guesttest.Late} {
		synctest.Test(t, func(t *testing.T) {
			g := faulty(plain(), "guest-get-host-name", guesttest.Fault{Kind: kind})
			agent, err := pipeOpener(g)(t.Context(), "")
			if err != nil {
				t.Fatal(err)
			}
			defer agent.Close()
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			if got, err := agent.Command(ctx, "guest-get-host-name", nil); err == nil {
				t.Errorf("fault %d: no error, but %s", kind, got)
			}
			if got, err := agent.Command(t.Context(), "guest-fsfreeze-status", nil); err != nil || string(got) != `"thawed"` {
				t.Errorf("fault %d: the next command got %s, %v", kind, got, err)
			}
		})
	}
}

func TestSlowAnswerIsDroppedWhenItComes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := faulty(plain(), "guest-get-host-name", guesttest.Fault{Delay: 5 * time.Second})
		agent, err := pipeOpener(g)(t.Context(), "")
		if err != nil {
			t.Fatal(err)
		}
		defer agent.Close()
		for _, limit := range []time.Duration{time.Second, time.Second} {
			ctx, cancel := context.WithTimeout(t.Context(), limit)
			defer cancel()
			if _, err := agent.Command(ctx, "guest-get-host-name", nil); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("a busy agent: %v", err)
			}
		}
		if got, err := agent.Command(t.Context(), "guest-fsfreeze-status", nil); err != nil || string(got) != `"thawed"` {
			t.Errorf("the next command got %s, %v", got, err)
		}
	})
}

func TestDialWithoutAgent(t *testing.T) {
	dir := shortDir(t)
	stale := filepath.Join(dir, "stale")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: stale})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	for _, path := range []string{filepath.Join(dir, "none"), stale} {
		if _, err := DialUnix(t.Context(), path); !errors.Is(err, hypervisor.ErrNoAgent) || errors.Is(err, ErrSilent) {
			t.Errorf("DialUnix(%s) = %v", path, err)
		}
	}
}

// A guest whose QEMU has ended is not held any more; nobody waits for its agent.
func TestQEMUEndedWhileHeld(t *testing.T) {
	dir, notes := shortDir(t), t.TempDir()
	path := filepath.Join(dir, "qga")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	leave(t, notes)
	open := func(ctx context.Context) (hypervisor.Agent, error) { return DialUnix(ctx, path) }
	if did, err := ThawLeftover(t.Context(), open, notes, "m"); did || err != nil || !noNote(notes)() {
		t.Errorf("ThawLeftover() = %v, %v", did, err)
	}
	a := attempt{line: line{open: open}, touched: true, limits: Limits{}.withDefaults(false), dismiss: func() error {
		return nil
	}}
	a.out.Level = point.Filesystem
	if err := a.releaseUntil(t.Context()); err != nil || a.out.Level != point.Crash || a.out.Stuck != "" {
		t.Errorf("releaseUntil() = %v: %+v", err, a.out)
	}
}

func TestDialClosedAtOnce(t *testing.T) {
	g := faulty(plain(), "guest-sync-delimited", guesttest.Fault{Kind: guesttest.Hangup})
	if _, err := DialUnix(t.Context(), serve(t, g)); !errors.Is(err, hypervisor.ErrNoAgent) {
		t.Errorf("DialUnix = %v", err)
	}
}

// QEMU's own socket: nothing answers where no guest runs, and it takes one client.
func TestQEMUSocket(t *testing.T) {
	path := filepath.Join(shortDir(t), "qga")
	cmd := exec.Command("qemu-system-x86_64", "-S", "-nodefaults", "-display", "none", "-machine", "q35,accel=tcg",
		"-m", "32",
		"-device", "virtio-serial", "-chardev", "socket,id=q,server=on,wait=off,path="+path,
		"-device", "virtserialport,chardev=q,name=org.qemu.guest_agent.0")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	var first net.Conn
	eventually(t, "QEMU listens", func() (ok bool) {
		c, err := net.Dial("unix", path)
		first = c
		return err == nil
	})
	eventually(t, "QEMU has accepted", func() bool { return hasClient(path) })
	dial := func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		c, err := DialUnix(ctx, path)
		if err == nil {
			c.Close()
		}
		return err
	}
	if err := dial(); !errors.Is(err, ErrInUse) || !errors.Is(err, hypervisor.ErrNoAgent) {
		t.Errorf("dial beside another client: %v", err)
	}
	first.Close()
	var err error
	eventually(t, "QEMU has let the first client go", func() bool { // and each of ours
		err = dial()
		return !errors.Is(err, ErrInUse)
	})
	if !errors.Is(err, ErrSilent) || !errors.Is(err, hypervisor.ErrNoAgent) {
		t.Errorf("dial without a guest: %v", err)
	}
}

func TestReport(t *testing.T) {
	r, err := Report(t.Context(), dialed(t, plain()))
	if err != nil {
		t.Fatal(err)
	}
	got := fmt.Sprintf("%+v", *r)
	want := "{OS:Debian GNU/Linux 12 (bookworm) Hostname:guest1 Agent:7.2.22 Mounts:[/ (ext4) /srv (xfs)] " +
		"Addresses:[192.0.2.7]}"
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestReportLeavesOutWhatIsNotAnswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := faulty(plain(), "guest-get-fsinfo", guesttest.Fault{Kind: guesttest.Ignore})
		g.Disabled = []string{"guest-get-host-name"}
		agent, err := pipeOpener(g)(t.Context(), "")
		if err != nil {
			t.Fatal(err)
		}
		defer agent.Close()
		r, err := Report(t.Context(), agent)
		if err != nil || r.Hostname != "" || r.Mounts != nil || r.OS == "" {
			t.Errorf("got %+v, %v", r, err)
		}
		g.Kill()
		start := time.Now()
		if r, err := Report(t.Context(), agent); err == nil || time.Since(start) > reportTime {
			t.Errorf("a dead agent reports %+v after %v", r, time.Since(start))
		}
	})
}

func FuzzReply(f *testing.F) {
	for _, s := range []string{"{\"return\":{}}\n", "\xff{\"return\":5}\n",
		"{\"error\":{\"class\":\"GenericError\",\"desc\":\"x\"}}\n",
		"\n\n{\"return\":\"a\"}", "junk\xff\xff{\"return\": 5}\n", "{\"return\":4}\n\xff{\"return\":5}\n",
		"{\"return\":null}\n"} {
		f.Add([]byte(s))
	}
	f.Add([]byte("\xff" + strings.Repeat("x", 2*maxSync)))
	f.Fuzz(func(t *testing.T, data []byte) {
		if line, err := readLine(bufio.NewReaderSize(bytes.NewReader(data), 16), 100); err == nil {
			if len(line) == 0 || len(line) > 100 || bytes.ContainsRune(line, '\n') {
				t.Errorf("readLine(%q) = %q", data, line)
			}
			if result, err := parseReply(line); err == nil && len(result) == 0 {
				t.Errorf("parseReply(%q) is empty", line)
			}
		}
		// Whatever was said before, and cut at whatever byte, the answer to a sync is found.
		stream := append(bytes.Clone(data), "\xff{\"return\": 77}\n{\"return\": \"next\"}\n"...)
		r := bufio.NewReaderSize(bytes.NewReader(stream), 16)
		if bytes.Contains(data, []byte("77")) {
			return
		}
		if err := awaitSync(r, 77); err != nil {
			t.Fatalf("sync after %q: %v", data, err)
		}
		if line, err := readLine(r, 100); err != nil || string(line) != `{"return": "next"}` {
			t.Errorf("after %q the next answer is %q, %v", data, line, err)
		}
	})
}

func FuzzSocketStates(f *testing.F) {
	f.Add("Num       RefCount Protocol Flags    Type St Inode Path\n0000: 00000002 00000000 00010000 0001 01 123 "+
		"/run/a b\n", "/run/a b")
	f.Fuzz(func(t *testing.T, table, path string) {
		for state := range parseSocketStates(strings.NewReader(table), path) {
			if strings.ContainsAny(state, " \n") {
				t.Errorf("state %q", state)
			}
		}
	})
}
