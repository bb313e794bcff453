package role

import (
	"bytes"
	"encoding/base64"
	"strings"
	"testing"
	"unicode/utf16"
)

// scriptOf decodes the script of a PowerShell command.
func scriptOf(t *testing.T, args []string) string {
	t.Helper()
	b, err := base64.StdEncoding.DecodeString(args[len(args)-1])
	if err != nil || len(b)%2 != 0 {
		t.Fatalf("%q is no script: %v", args, err)
	}
	var u []uint16
	for i := 0; i < len(b); i += 2 {
		u = append(u, uint16(b[i])|uint16(b[i+1])<<8)
	}
	return string(utf16.Decode(u))
}

// No argument has anything in it that the agent, Windows or a program would quote, escape or take
// apart.
func TestNothingToQuote(t *testing.T) {
	script, err := Script("it's \"odd\" %PATH%.ps1", []byte("Write-Output \"x\""))
	if err != nil {
		t.Fatal(err)
	}
	checks := []Check{script, FileSystems(), Given(`findstr "a b" C:\x\y.txt & echo %PATH%^|'it''s'`)}
	for _, s := range []string{"service", "service=My \"odd\" service's", "tcp=80", "postgresql",
		"http=https://localhost/?a=b&c='d'", `file=C:\Program Files\it's`} {
		c, err := Parse(s)
		if err != nil {
			t.Fatal(err)
		}
		checks = append(checks, c)
	}
	for _, c := range checks {
		command, err := c.For(true)
		if err != nil {
			t.Errorf("%s: %v", c.Name, err)
			continue
		}
		for _, arg := range command.Args {
			if strings.ContainsAny(arg, " \t\n\"'%^&|<>()!`$\\") || arg == "" {
				t.Errorf("%s: argument %q", c.Name, arg)
			}
		}
		if command.Path != powershellPath || command.Shown == "" ||
			!strings.HasPrefix(scriptOf(t, command.Args), prelude) {
			t.Errorf("%s: %+v", c.Name, command)
		}
	}
}

// What cmd.exe can not run is said before it is asked; what it can has room on the command line
// that PowerShell is started with.
func TestCmdLine(t *testing.T) {
	long := strings.Repeat("é\"", maxCmdLine/3)
	c, err := Given(long).For(true)
	if err != nil || len(powershellPath)+len(strings.Join(c.Args, " ")) > 32000 {
		t.Errorf("a long line: %d bytes, %v", len(strings.Join(c.Args, " ")), err)
	}
	for _, s := range []string{"one\ntwo", strings.Repeat("x", maxCmdLine+1)} {
		if _, err := Given(s).For(true); err == nil || !strings.Contains(err.Error(), "use --script") {
			t.Errorf("%.20q: %v", s, err)
		}
	}
}

// A script arrives byte for byte, with the mark that PowerShell knows UTF-8 by.
func TestWindowsScript(t *testing.T) {
	text := []byte("Write-Output 'größe'\r\n" + strings.Repeat("# long\n", 2000))
	for name, want := range map[string]string{"a.ps1": "\ufeff" + string(text), "a": "\ufeff" + string(text),
		"a.CMD": string(text), "b.bat": string(text)} {
		c := windowsScript(name, text)
		var all []byte
		for line := range bytes.Lines(c.Input) {
			all = append(all, bytes.TrimSuffix(line, []byte("\n"))...)
		}
		got, err := base64.StdEncoding.DecodeString(string(all))
		if err != nil || string(got) != want {
			t.Errorf("%s: %q, %v", name, got[:min(len(got), 40)], err)
		}
		ext := ".ps1"
		if len(name) > 1 {
			ext = strings.ToLower(name[1:])
		}
		if s := scriptOf(t, c.Args); !strings.Contains(s, "'"+ext+"'") {
			t.Errorf("%s becomes\n%s", name, s)
		}
	}
	if marked := []byte("\ufeffx"); !bytes.Equal(windowsScript("a", marked).Input, lines64(marked)) {
		t.Error("a mark is doubled")
	}
}

// readPS reads a single-quoted word as PowerShell does: five characters are quotes, and two in a
// row are one.
func readPS(s string) (word string, ok bool) {
	isQuote := func(r rune) bool { return strings.ContainsRune("'‘’‚‛", r) }
	runes := []rune(s)
	if len(runes) < 2 || !isQuote(runes[0]) {
		return "", false
	}
	var out []rune
	for i := 1; i < len(runes); i++ {
		if isQuote(runes[i]) {
			if i+1 == len(runes) {
				return string(out), true
			}
			if i++; !isQuote(runes[i]) {
				return "", false
			}
		}
		out = append(out, runes[i])
	}
	return "", false
}

// Whatever is quoted is one word, and the same.
func FuzzQuotePS(f *testing.F) {
	for _, s := range []string{"", "plain", "it's", "‘x’", "a'‚'b", "''", "$(x) `n \"", "‛"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		s = strings.ToValidUTF8(s, "?")
		if got, ok := readPS(quotePS(s)); !ok || got != s {
			t.Errorf("%q becomes %q, which is %q", s, quotePS(s), got)
		}
	})
}
