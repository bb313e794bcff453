package qmp

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

const hello = `{"QMP":{"version":{"qemu":{"micro":22,"minor":2,"major":7},"package":"Debian"},"capabilities":["oob"]}}`

// shortDir is a temporary directory whose path leaves room for a socket's name.
func shortDir(t *testing.T) string {
	dir, err := os.MkdirTemp("", "hf")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

type request struct {
	Execute string
	OOB     string `json:"exec-oob"`
	ID      uint64
	Args    map[string]any `json:"arguments"`
}

// scripted answers every command by what script returns: lines to send, in order.
func scripted(t *testing.T, script func(r request) []string) string {
	path := filepath.Join(shortDir(t), "q.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			serving.Go(func() { serve(conn, script) })
		}
	})
	t.Cleanup(func() { l.Close(); serving.Wait() })
	return path
}

func serve(conn net.Conn, script func(r request) []string) {
	defer conn.Close()
	fmt.Fprintln(conn, hello)
	for sc := bufio.NewScanner(conn); sc.Scan(); {
		var r request
		if json.Unmarshal(sc.Bytes(), &r) != nil {
			return
		}
		lines := []string{fmt.Sprintf(`{"return":{},"id":%d}`, r.ID)}
		if r.Execute != "qmp_capabilities" {
			lines = script(r)
		}
		for _, line := range lines {
			if line == "hang up" {
				return
			}
			io.WriteString(conn, line+"\n")
		}
	}
}

func dialTest(t *testing.T, path string) *Client {
	c, err := Dial(t.Context(), path)
	// QEMU listens before it greets
	for end := time.Now().Add(2 * time.Minute); errors.Is(err, ErrInUse) && time.Now().Before(end); {
		c, err = Dial(t.Context(), path)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func TestExecute(t *testing.T) {
	c := dialTest(t, scripted(t, func(r request) []string {
		switch r.Execute {
		case "refuse":
			return []string{fmt.Sprintf(`{"id":%d,"error":{"class":"DeviceNotFound","desc":"no such thing"}}`, r.ID)}
		case "die":
			return []string{"hang up"}
		}
		return []string{`{"event":"NOISE","data":{"a":1},"timestamp":{"seconds":5,"microseconds":7}}`,
			fmt.Sprintf(`{"return":{"echo":%q,"oob":%t},"id":%d}`, r.Execute+r.OOB, r.OOB != "", r.ID)}
	}))
	if got := c.Version(); got.String() != "7.2.22 (Debian)" || !got.AtLeast(7, 2) || got.AtLeast(8, 0) {
		t.Errorf("version is %v", got)
	}
	events := c.Subscribe()
	var got struct {
		Echo string
		OOB  bool
	}
	if err := c.Execute(t.Context(), "one", map[string]any{"x": 1}, &got); err != nil || got.Echo != "one" || got.OOB {
		t.Errorf("execute: %+v, %v", got, err)
	}
	if err := c.ExecuteOOB(t.Context(), "two", nil, &got); err != nil || got.Echo != "two" || !got.OOB {
		t.Errorf("execute out of band: %+v, %v", got, err)
	}
	var refused *Error
	if err := c.Execute(t.Context(), "refuse", nil, nil); !errors.As(err, &refused) ||
		refused.Class != "DeviceNotFound" || !Refused(err) {
		t.Errorf("refused command returned %v", err)
	}
	if ev, err := events.Next(t.Context()); err != nil || ev.Name != "NOISE" || !ev.Time.Equal(time.Unix(5, 7000)) {
		t.Errorf("event is %+v, %v", ev, err)
	}
	if err := c.Execute(t.Context(), "die", nil, nil); !errors.Is(err, ErrClosed) {
		t.Errorf("command on a dying QEMU returned %v", err)
	}
	if _, err := events.Next(t.Context()); err != nil {
		t.Errorf("second event was lost: %v", err)
	}
	if _, err := events.Next(t.Context()); !errors.Is(err, ErrClosed) {
		t.Errorf("events after the end: %v", err)
	}
}

// Answers in any order reach the command that asked; one that gave up disturbs no other.
func TestConcurrentCommands(t *testing.T) {
	var mu sync.Mutex
	var held []string
	c := dialTest(t, scripted(t, func(r request) []string {
		mu.Lock()
		defer mu.Unlock()
		held = append(held, fmt.Sprintf(`{"return":%q,"id":%d}`, r.Execute, r.ID))
		if len(held) < 21 {
			return nil
		}
		for i, j := 0, len(held)-1; i < j; i, j = i+1, j-1 {
			held[i], held[j] = held[j], held[i]
		}
		return held
	}))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := c.Execute(ctx, "given-up", nil, nil); !errors.Is(err, context.Canceled) {
		t.Fatalf("command with an ended context returned %v", err)
	}
	var wg sync.WaitGroup
	for i := range 21 {
		wg.Go(func() {
			name, got := fmt.Sprint("command-", i), ""
			if err := c.Execute(t.Context(), name, nil, &got); err != nil || got != name {
				t.Errorf("%s got %q, %v", name, got, err)
			}
		})
	}
	wg.Wait()
}

// Nobody takes the events: the connection goes on, the newest are kept, and the loss is counted.
func TestEventStorm(t *testing.T) {
	c := dialTest(t, scripted(t, func(r request) []string {
		var out []string
		for i := range queueLimit + 10 {
			out = append(out, fmt.Sprintf(`{"event":"E%d"}`, i))
		}
		return append(out, fmt.Sprintf(`{"return":{},"id":%d}`, r.ID))
	}))
	s := c.Subscribe()
	defer s.Close()
	if err := c.Execute(t.Context(), "storm", nil, nil); err != nil {
		t.Fatal(err)
	}
	if ev, err := s.Next(t.Context()); err != nil || ev.Name != "E10" || s.Dropped() != 10 {
		t.Errorf("first event kept is %v (%v), %d dropped", ev.Name, err, s.Dropped())
	}
}

func startQEMU(t *testing.T, dir string) string {
	sock := filepath.Join(dir, "q.sock")
	cmd := exec.Command("qemu-system-x86_64", "-S", "-nodefaults", "-display", "none", "-M", "none", "-qmp",
		"unix:"+sock+",server=on,wait=off")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(2 * time.Minute); ; <-tick.C {
		if _, err := os.Stat(sock); err == nil {
			return sock
		}
		if time.Now().After(end) {
			t.Fatal("QEMU made no socket")
		}
	}
}

func TestRealQEMU(t *testing.T) {
	dir := shortDir(t)
	path := startQEMU(t, dir)
	c := dialTest(t, path)
	if exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", c.PeerPID())); err != nil || !strings.Contains(exe, "qemu") {
		t.Errorf("peer %d is %q, %v", c.PeerPID(), exe, err)
	}
	f, err := os.CreateTemp(dir, "f")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	set, err := c.AddFD(t.Context(), f, "hf")
	if err != nil {
		t.Fatal(err)
	}
	var sets []struct {
		ID int `json:"fdset-id"`
	}
	if err := c.Execute(t.Context(), "query-fdsets", nil, &sets); err != nil || len(sets) != 1 || sets[0].ID != set {
		t.Errorf("descriptor sets are %v, want one with ID %d: %v", sets, set, err)
	}
	if err := c.GetFD(t.Context(), "hf", f); err != nil {
		t.Error(err)
	}
	for range 4 { // the last ones do not even get into the socket's queue
		if _, err := dial(t.Context(), path, 50*time.Millisecond); !errors.Is(err, ErrInUse) {
			t.Errorf("second client: %v, want %v", err, ErrInUse)
		}
	}
	c.Close()
	again := dialTest(t, path)
	if err := again.Execute(t.Context(), "quit", nil, nil); err != nil {
		t.Error(err)
	}
	<-again.Done()
	if err := again.Execute(t.Context(), "query-status", nil, nil); !errors.Is(err, ErrClosed) {
		t.Errorf("command after quit: %v", err)
	}
}

func TestDialErrors(t *testing.T) {
	if _, err := Dial(t.Context(), filepath.Join(t.TempDir(), "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no socket: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	path := scripted(t, nil)
	if _, err := Dial(ctx, path); !errors.Is(err, context.Canceled) {
		t.Errorf("ended context: %v", err)
	}
}

// Whatever comes, decode returns exactly one kind of message or an error.
func FuzzDecode(f *testing.F) {
	for _, s := range []string{hello, `{"return":{},"id":1}`, `{"error":{"class":"C","desc":"d"},"id":2}`, `{"return":[],"id":"x"}`,
		`{"event":"E","data":{},"timestamp":{"seconds":1,"microseconds":2}}`, `{"return":null}`, `[]`, `{"error":{}}`, `{"id":-1,"return":1}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		m, err := decode(line)
		if err != nil {
			return
		}
		kinds := 0
		for _, is := range []bool{m.greeting != nil, m.event != nil, m.err != nil, m.result != nil} {
			if is {
				kinds++
			}
		}
		if kinds != 1 {
			t.Errorf("decode(%q) is %d kinds of message: %+v", line, kinds, m)
		}
	})
}
