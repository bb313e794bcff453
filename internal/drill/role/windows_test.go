package role

import (
	"bytes"
	"encoding/base64"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode/utf16"

	"github.com/holdfast-vm/holdfast/internal/drill/role/pstest"
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
	checks := append(every(t), script)
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

// every returns a check of every kind, with arguments that are hard to quote.
func every(t *testing.T) []Check {
	t.Helper()
	checks := []Check{FileSystems(), Given(`findstr "a b" C:\x\y.txt & echo %PATH%^|'it''s'`)}
	for _, name := range []string{"x.ps1", "x.cmd"} {
		c, err := Script(name, []byte("exit 0"))
		if err != nil {
			t.Fatal(err)
		}
		checks = append(checks, c)
	}
	for _, s := range []string{"service", "service=My \"odd\" service's", "tcp=80", "postgresql", "postgresql=5433",
		"http=https://localhost/?a=b&c='d'", `file=C:\Program Files\it's`} {
		c, err := Parse(s)
		if err != nil {
			t.Fatal(err)
		}
		checks = append(checks, c)
	}
	return checks
}

// commands are those that scripts use; each is in PowerShell 2, or asked for before it is used.
var commands = []string{"Get-WmiObject", "Get-Command", "Get-Volume", "Get-WinEvent", "Get-Service", "Get-ChildItem",
	"Where-Object", "ForEach-Object", "Write-Output", "Join-Path", "Remove-Item", "Test-Path", "New-Object",
	"Invoke-WebRequest", "Out-Null"}

// given are the variables that PowerShell has by itself.
var given = []string{"_", "input", "LASTEXITCODE", "true", "false", "null", "ProgressPreference",
	"ErrorActionPreference"}

// Scripts are ones that PowerShell reads: quotes and brackets are whole, commands exist, and
// variables have a value before they are used.
func TestScriptsAreRead(t *testing.T) {
	for _, c := range every(t) {
		tokens, err := pstest.Read(scriptOf(t, c.Windows.Args))
		if err != nil {
			t.Errorf("%s: %v", c.Name, err)
			continue
		}
		known := slices.Clone(given)
		for i, token := range tokens {
			next := pstest.Token{}
			if i+1 < len(tokens) {
				next = tokens[i+1]
			}
			name, _ := strings.CutPrefix(token.Text, "global:")
			switch {
			case token.Kind == pstest.Word && regexp.MustCompile("^[A-Z][a-z]+-[A-Z]").MatchString(token.Text):
				if !slices.Contains(commands, token.Text) {
					t.Errorf("%s: there is no command %s", c.Name, token.Text)
				}
			case token.Kind != pstest.Variable || strings.HasPrefix(name, "env:"):
			case next == (pstest.Token{Kind: pstest.Sign, Text: "="}) ||
				next == (pstest.Token{Kind: pstest.Word, Text: "in"}):
				known = append(known, name)
			case !slices.Contains(known, name):
				t.Errorf("%s: $%s has no value", c.Name, name)
			}
		}
	}
}

// An argument is one string of the script, whatever it holds, and changes nothing else of it.
func TestArgumentsAreStrings(t *testing.T) {
	script := func(kind, arg string) []pstest.Token {
		t.Helper()
		c := Given(arg)
		if kind != "" {
			var err error
			if c, err = Parse(kind + "=" + arg); err != nil {
				t.Fatal(err)
			}
		}
		tokens, err := pstest.Read(scriptOf(t, c.Windows.Args))
		if err != nil {
			t.Fatalf("%s of %q: %v", kind, arg, err)
		}
		return tokens
	}
	for _, kind := range []string{"", "service", "file", "http"} {
		const plain = "http://plain"
		want := script(kind, plain)
		at := slices.Index(want, pstest.Token{Kind: pstest.String, Text: plain})
		if at < 0 {
			t.Fatalf("%q: its argument is no string: %v", kind, want)
		}
		for _, arg := range []string{"http://a'b", "http://a';x;'b", "http://‘x’‛y‚", "http://$(x)`n", "http://{#",
			"http://a''"} {
			want[at].Text = arg
			if got := script(kind, arg); !slices.Equal(got, want) {
				t.Errorf("%q of %q is read as\n%v\nwant\n%v", kind, arg, got, want)
			}
		}
	}
}

// What cmd.exe cannot run is said before it is asked; what it can has room on the command line
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
		tokens, err := pstest.Read(scriptOf(t, c.Args))
		if err != nil || !slices.Contains(tokens, pstest.Token{Kind: pstest.String, Text: ext}) {
			t.Errorf("%s has no %s: %v, %v", name, ext, tokens, err)
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
