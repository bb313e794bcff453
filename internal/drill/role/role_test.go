package role_test

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/drill/inside"
	"github.com/holdfast-vm/holdfast/internal/drill/role"
)

// run runs a command on this very system, as a guest would.
func run(t *testing.T, c inside.Command) (status int, output string) {
	t.Helper()
	cmd := exec.Command(c.Path, c.Args...)
	cmd.Stdin = bytes.NewReader(c.Input)
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), string(out)
}

// The commands say yes and no of a real system.
func TestRoles(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	open := l.Addr().(*net.TCPAddr).Port
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	free := closed.Addr().(*net.TCPAddr).Port
	closed.Close()
	odd := filepath.Join(t.TempDir(), "it's; $(touch x)")
	if err := os.WriteFile(odd, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		role   string
		status int
		says   string
	}{
		{fmt.Sprintf("tcp=%d", open), 0, ""},
		{fmt.Sprintf("tcp=%d", free), 1, fmt.Sprintf("nothing listens on TCP port %d", free)},
		{"file=" + odd, 0, ""}, {"file=" + odd + "'", 1, "can not be read"},
		{"sqlite=" + odd + "none", 1, "no such database"},
	} {
		c, err := role.Parse(tt.role)
		if err != nil {
			t.Fatal(err)
		}
		if status, out := run(t, c.Unix); status != tt.status || !strings.Contains(out, tt.says) {
			t.Errorf("%s: status %d, %q", tt.role, status, out)
		}
	}
}

func TestScript(t *testing.T) {
	c, err := role.Script("s", []byte("#!/usr/bin/env -S sh -u\necho \"in $0\"; read x; exit 7\n"))
	if err != nil {
		t.Fatal(err)
	}
	status, out := run(t, c.Unix)
	name := strings.TrimPrefix(strings.TrimSpace(out), "in ")
	if status != 7 || !strings.Contains(name, ".hf-drill-") {
		t.Errorf("status %d, %q", status, out)
	}
	if _, err := os.Stat(name); err == nil {
		t.Errorf("%s is left behind", name)
	}
	if _, err := role.Script("big", make([]byte, role.MaxScript+1)); err == nil {
		t.Error("a script of any size is taken")
	}
	if status, out := run(t, role.Given("echo one; false").Unix); status != 1 || out != "one\n" {
		t.Errorf("a command: %d, %q", status, out)
	}
}

func TestParse(t *testing.T) {
	for _, s := range []string{"", "nothing", "tcp", "tcp=0", "tcp=65536", "tcp=x", "tcp=", "http", "http=ftp://x",
		"http=http://x/ y", "http=http://x/\"", "file", "sqlite", "postgresql=a b", "file=a\nb"} {
		if _, err := role.Parse(s); !errors.Is(err, role.ErrRole) {
			t.Errorf("%q: %v", s, err)
		}
	}
	for _, s := range []string{"systemd", "systemd=ssh.service", "service", "service=ssh", "tcp=5432", "postgresql",
		"postgresql=5433", "http=http://localhost/", "file=/etc/passwd", "sqlite=/a"} {
		c, err := role.Parse(s)
		if err != nil || c.Name != s {
			t.Errorf("%q: %+v, %v", s, c, err)
			continue
		}
		if out, err := exec.Command("sh", "-n", "-c", c.Unix.Args[1]).CombinedOutput(); err != nil {
			t.Errorf("%q is no shell script: %s", s, out)
		}
		if _, err := c.For(true); (err == nil) != (c.NotWindows == "") {
			t.Errorf("%q for Windows: %v", s, err)
		}
	}
	if out, err := exec.Command("sh", "-n", "-c", role.FileSystems().Unix.Args[1]).CombinedOutput(); err != nil {
		t.Errorf("the check of file systems is no shell script: %s", out)
	}
}

// No argument becomes more than one word of the shell.
func FuzzParse(f *testing.F) {
	for _, s := range []string{"file=/a'b", "systemd=$(x)", "tcp=80", "http=http://a'b", "sqlite='"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		c, err := role.Parse(s)
		if err != nil {
			return
		}
		script, inWord := c.Unix.Args[1], false
		for i := 0; i < len(script); i++ {
			if script[i] == '\\' && !inWord {
				i++
			} else if script[i] == '\'' {
				inWord = !inWord
			}
		}
		if inWord && strings.Count(script, `"`) == 0 {
			t.Errorf("%q leaves a word open: %s", s, script)
		}
	})
}
