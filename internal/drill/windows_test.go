package drill

import (
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"
	"unicode/utf16"

	"github.com/holdfast-vm/holdfast/internal/drill/role"
	"github.com/holdfast-vm/holdfast/internal/drill/role/pstest"
	"github.com/holdfast-vm/holdfast/internal/guest"
	"github.com/holdfast-vm/holdfast/internal/guest/guesttest"
	"github.com/holdfast-vm/holdfast/internal/point"
)

// windows plays a Windows: it does what the scripts of PowerShell that it knows would do there, and
// nothing else.
type windows struct {
	t     *testing.T
	dirty bool
	lines map[string]int // what cmd.exe can run: line and exit status
	ran   []string       // command lines of cmd.exe, as it got them
	calls atomic.Int32   // programs that were run
}

// exec is the agent's guest-exec.
func (w *windows) exec(path string, args []string, input []byte) (out, errs string, code int) {
	defer w.calls.Add(1)
	if path != `C:\Windows\System32\WindowsPowerShell\v1.0\powershell.exe` || args[len(args)-2] != "-EncodedCommand" {
		w.t.Errorf("a Windows has no %s %q", path, args)
		return "", "", 127
	}
	raw, err := base64.StdEncoding.DecodeString(args[len(args)-1])
	if err != nil {
		w.t.Error(err)
	}
	var units []uint16
	for i := 0; i+1 < len(raw); i += 2 {
		units = append(units, uint16(raw[i])|uint16(raw[i+1])<<8)
	}
	script := string(utf16.Decode(units))
	tokens, err := pstest.Read(script)
	if err != nil {
		w.t.Errorf("PowerShell does not read\n%s\n%v", script, err)
		return "", "", 1
	}
	return w.run(tokens, input)
}

// run does what a script is for, which its words tell.
func (w *windows) run(tokens []pstest.Token, input []byte) (out, errs string, code int) {
	has := func(word string) bool { return pstest.Has(tokens, word) }
	given := func(variable string) string {
		text, found := pstest.Assigned(tokens, variable)
		if !found {
			w.t.Errorf("$%s has no string in %v", variable, tokens)
		}
		return text
	}
	says := func(ok bool, why string) (string, string, int) {
		if ok {
			return "", "", 0
		}
		return why + "\r\n", "", 1
	}
	switch {
	case has("Diagnostics.ProcessStartInfo"):
		return w.cmd(`/d /s /c "` + given("line") + `"`)
	case slices.Contains(tokens, pstest.Token{Kind: pstest.Variable, Text: "input"}):
		return w.script(tokens, input)
	case has("Win32_Volume"):
		return says(!w.dirty, `volume C:\ is marked dirty: chkdsk has to repair it`)
	case has("Get-Service"):
		return says(given("name") == "Print Spooler's", "it is Stopped")
	case has("Win32_Service"):
		return says(true, "")
	case has(".GetActiveTcpListeners"):
		return says(has("443"), "nothing listens on TCP port")
	case has("-p") && has("5432"):
		return "localhost:5432 - accepting connections\r\n", "", 0
	case has("curl.exe"):
		return says(given("url") == "https://localhost/?a=b&c=d", "404")
	case has("::Open"):
		return says(given("path") == `C:\Program Files\it's there`, "no such file")
	}
	w.t.Errorf("an unknown script: %v", tokens)
	return "", "", 1
}

// cmd is cmd.exe with the raw rest of its command line.
func (w *windows) cmd(rest string) (out, errs string, code int) {
	w.ran = append(w.ran, rest)
	quoted, ok := strings.CutPrefix(rest, "/d /s /c ")
	line := strings.TrimSuffix(strings.TrimPrefix(quoted, `"`), `"`)
	code, known := w.lines[line]
	if !ok || !known {
		return "", fmt.Sprintf("'%s' is not recognized as an internal or external command,\r\noperable program or "+
			"batch file.\r\n", line), 1
	}
	return "ran\r\n", "a warning\r\n", code
}

func (w *windows) script(boot []pstest.Token, input []byte) (out, errs string, code int) {
	named := func(ext string) bool { return slices.Contains(boot, pstest.Token{Kind: pstest.String, Text: ext}) }
	text, err := base64.StdEncoding.DecodeString(strings.ReplaceAll(string(input), "\n", ""))
	if err != nil {
		w.t.Error(err)
	}
	if named(".cmd") && string(text) == "@echo off\r\nexit /b 3\r\n" {
		return "", "", 3
	}
	if named(".ps1") && string(text) == "\ufeff# größe\nexit 0\n" {
		return "größe\r\n", "", 0
	}
	return "", fmt.Sprintf("an unknown script %q", text), 1
}

// Checks of a Windows arrive as they were given, through the protocol of a real agent's socket, and
// come to the right verdicts.
func TestWindows(t *testing.T) {
	parse := func(s string) role.Check {
		c, err := role.Parse(s)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	script := func(name, text string) role.Check {
		c, err := role.Script(name, []byte(text))
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	const quoted = `findstr /c:"it's 100%" "C:\Program Files\x.txt" | find /v "" & exit 0`
	for _, tt := range []struct {
		name  string
		check role.Check
		dirty bool
		want  string // of the verdict; "" is verified
		says  string // output of the check
	}{
		{"volumes", role.Given("ver"), true, `1 of 2 checks failed: file systems (volume C:\ is marked dirty: chkdsk has to repair it)`, "ran\na warning"},
		{"a line with quotes", role.Given(quoted), false, "", "ran\na warning"},
		{"a line that ends in quotes", role.Given(`"C:\a b\c.exe" "d"`), false, "", "ran"},
		{"an unknown line", role.Given("nonsense"), false,
			"1 of 2 checks failed: nonsense ('nonsense' is not recognized", "operable program"},
		{"a line that fails for good", role.Given("exit 3"), false, "1 of 2 checks failed: exit 3 (ran)", "ran"},
		{"two lines", role.Given("a\nb"), false,
			"1 of 2 checks failed: a\nb (it cannot be checked in a Windows: cmd.exe takes one line; use --script)",
			""},
		{"a script", script("x.ps1", "# größe\nexit 0\n"), false, "", "größe"},
		{"a batch file", script("x.cmd", "@echo off\r\nexit /b 3\r\n"), false,
			"1 of 2 checks failed: script x.cmd (exit status 3)", "exit status 3"},
		{"services", parse("service"), false, "", ""},
		{"a service", parse("service=Print Spooler's"), false, "", ""},
		{"a service that is off", parse("service=W32Time"), false,
			"1 of 2 checks failed: service=W32Time (it is Stopped)", "it is Stopped"},
		{"systemd", parse("systemd"), false,
			"1 of 2 checks failed: systemd (it cannot be checked in a Windows: it has no systemd; use --role service)",
			""},
		{"a port", parse("tcp=443"), false, "", ""},
		{"a closed port", parse("tcp=44"), false, "1 of 2 checks failed: tcp=44 (nothing listens", ""},
		{"PostgreSQL", parse("postgresql"), false, "", "localhost:5432 - accepting connections"},
		{"a URL", parse("http=https://localhost/?a=b&c=d"), false, "", ""},
		{"a file", parse(`file=C:\Program Files\it's there`), false, "", ""},
		{"no file", parse(`file=C:\x`), false, `1 of 2 checks failed: file=C:\x (no such file)`, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := &windows{t: t, dirty: tt.dirty, lines: map[string]int{"ver": 0, quoted: 0, `"C:\a b\c.exe" "d"`: 0, "exit 3": 3}}
			got, res := w.verdict(tt.check)
			if tt.want == "" && got != "" || !strings.HasPrefix(got, tt.want) {
				t.Errorf("verdict %q, want %q", got, tt.want)
			}
			if c := res.Checks[1]; !strings.Contains(c.Output, tt.says) || strings.Contains(c.Output, "\r") ||
				strings.Contains(c.Command, "EncodedCommand") {
				t.Errorf("%+v, want output %q; cmd.exe got %q", c, tt.says, w.ran)
			}
			if !strings.Contains(res.Guest, "Windows") {
				t.Errorf("the guest is %q", res.Guest)
			}
		})
	}
}

// verdict checks this Windows through an agent on a socket.
func (w *windows) verdict(check role.Check) (string, *Result) {
	t := w.t
	t.Helper()
	dir, err := os.MkdirTemp("", "hf")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	g := &guesttest.Guest{Windows: true, Exec: w.exec}
	g.Listen(t, filepath.Join(dir, "qga"))
	agent, err := guest.DialUnix(t.Context(), filepath.Join(dir, "qga"))
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	now := func() time.Time {
		if w.calls.Load() < 2 {
			return began
		}
		return began.Add(time.Hour) // when both checks have been tried once, the time is over
	}
	r := newRun(nil, Request{Point: &point.RecoveryPoint{}, Checks: []role.Check{check}, Timeout: 10 * time.Minute},
		Options{Now: now}.withDefaults())
	r.note.Name = "m"
	r.host, r.disks = agentHost{fakeHost{name: "m"}, agent}, &disks{ended: make(chan struct{})}
	r.started = began
	err = r.ask(t.Context())
	if err == nil {
		return "", r.res
	}
	return err.Error(), r.res
}
