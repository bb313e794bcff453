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
		{"file=" + odd, 0, ""}, {"file=" + odd + "'", 1, "cannot be read"},
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
	for s, want := range map[string]struct {
		is   error
		says string
	}{
		"": {role.ErrRole, "there are file, http, "}, "nothing": {role.ErrRole, `"nothing"`}, "nothing=x": {role.ErrRole, `"nothing"`},
		"tcp":   {role.ErrArgument, "tcp: it needs the number of a port"},
		"tcp=":  {role.ErrArgument, "tcp: there is nothing after the ="},
		"tcp=0": {role.ErrArgument, `"0" is not the number of a port`}, "tcp=65536": {role.ErrArgument, "not the number"},
		"tcp=x": {role.ErrArgument, "not the number"}, "http": {role.ErrArgument, "http: it needs a URL"},
		"http=ftp://x": {role.ErrArgument, `"ftp://x" is no URL`}, "http=http://x/ y": {role.ErrArgument, "no URL"},
		"http=http://x/\"": {role.ErrArgument, "no URL"}, "file": {role.ErrArgument, "it needs a path"},
		"sqlite": {role.ErrArgument, "it needs the path"}, "postgresql=a b": {role.ErrArgument, "not the number"},
		"file=a\nb": {role.ErrArgument, `file: "a\nb" is not of one line`},
	} {
		_, err := role.Parse(s)
		if !errors.Is(err, want.is) || !strings.Contains(err.Error(), want.says) {
			t.Errorf("%q: %v, want %v that says %s", s, err, want.is, want.says)
		}
		if errors.Is(err, role.ErrRole) && errors.Is(err, role.ErrArgument) {
			t.Errorf("%q: %v is of both kinds", s, err)
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

// quoted is how a shell's word is written that is s whatever it holds.
func quoted(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// An argument comes into a script as one quoted word or as a number, and in no other way: the
// script for any argument is that for another with this word exchanged.
func FuzzParse(f *testing.F) {
	for _, s := range []string{"file=/a'b", "systemd=$(x)", "tcp=80", "http=http://a'b", "sqlite='", "file=a'; x; 'b",
		"service=`x`", "postgresql=1", "file='\\''", "systemd=\r"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		c, err := role.Parse(s)
		if err != nil {
			return
		}
		name, arg, given := strings.Cut(s, "=")
		if !given || name == "tcp" || name == "postgresql" {
			if strings.Trim(arg, "0123456789") != "" {
				t.Fatalf("%q is no number", s)
			}
			return
		}
		const other = "http://other"
		with, err := role.Parse(name + "=" + other)
		if err != nil {
			t.Fatal(err)
		}
		script := with.Unix.Args[1]
		if n := strings.Count(script, other); n == 0 || n != strings.Count(script, quoted(other)) {
			t.Fatalf("%q has its argument outside of quotes: %s", name, script)
		}
		if want := strings.ReplaceAll(script, quoted(other), quoted(arg)); c.Unix.Args[1] != want {
			t.Errorf("%q becomes\n%s\nwant\n%s", s, c.Unix.Args[1], want)
		}
	})
}

// A quoted word is read by a real shell as what it was.
func TestQuotedWords(t *testing.T) {
	for _, s := range []string{"", "plain", "it's", "a'; echo x; 'b", "$(echo x)", "`echo x`", `\`, `'\''`, "\t \r", "ünï", "\xff\xfe"} {
		path := filepath.Join(t.TempDir(), "there")
		c, err := role.Parse("file=" + path + s)
		if err != nil {
			t.Fatal(err)
		}
		if status, _ := run(t, c.Unix); status != 1 {
			t.Errorf("%q, which is not there, ends with %d", path+s, status)
		}
		if err := os.WriteFile(path+s, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if status, out := run(t, c.Unix); status != 0 || out != "" {
			t.Errorf("%q: %d, %q", path+s, status, out)
		}
	}
}
