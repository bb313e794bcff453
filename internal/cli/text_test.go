package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/holdfast-vm/holdfast/internal/blob"
	"github.com/holdfast-vm/holdfast/internal/capture"
	"github.com/holdfast-vm/holdfast/internal/protect"
	"github.com/holdfast-vm/holdfast/internal/vault"
)

// Of a long console people see the end, and are told where the rest is.
func TestLastLines(t *testing.T) {
	for _, tt := range []struct{ in, want string }{
		{"one", "the end of the serial console:\n  one"},
		{"one\ntwo\n", "the end of the serial console:\n  one\n  two"},
		{"one\ntwo\nthree\nfour", "the last 2 lines of the serial console; `holdfast point show 01234567 --json` has " +
			"2 before them:\n  three\n  four"},
	} {
		if got := lastLines(tt.in, 2, "0123456789abcdef0123456789abcdef"); got != tt.want {
			t.Errorf("lastLines(%q) = %q, want %q", tt.in, got, tt.want)
		}
	}
}

// A size is a number that people write and one unit that they know; it is exact, and anything else
// is refused rather than taken for something near it.
func TestParseSize(t *testing.T) {
	for _, tt := range []struct {
		in   string
		want int64 // -1 means refused
	}{
		{"0", 0}, {"4096", 4096}, {"1k", 1024}, {"1KiB", 1024}, {"1.5G", 3 << 29}, {"2 GiB", 2 << 30}, {"1tb", 1 << 40},
		{"7B", 7}, {".5k", 512}, {"4095PiB", 4095 << 50}, {"9007199254740993", 1<<53 + 1}, {"0.1KiB", 102},
		{"", -1}, {"GiB", -1}, {"-1", -1}, {"1x", -1}, {"1KK", -1}, {"1e30", -1}, {"NaN", -1}, {"Inf", -1}, {"1iB", -1},
		{"10000000T", -1}, {"B", -1}, {"1BB", -1}, {"1BiB", -1}, {"1kbib", -1}, {"1Ei", -1}, {"+1", -1}, {"1e3", -1},
		{"0x10", -1}, {"0x1p4", -1}, {"0x_1", -1}, {"1,5G", -1}, {"4096PiB", -1}, {"1 k k", -1}, {".", -1},
	} {
		got, err := parseSize(tt.in)
		if err != nil {
			got = -1
		}
		if got != tt.want {
			t.Errorf("parseSize(%q) = %d (%v), want %d", tt.in, got, err, tt.want)
		}
	}
}

// What people read of a size leads back to the size, to a part in twenty.
func TestSizesForPeople(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.Int64Range(0, 1<<50).Draw(t, "bytes")
		back, err := parseSize(humanSize(n))
		if err != nil || back < n-n/20 || back > n+n/20 {
			t.Fatalf("%d is %q, which is %d (%v)", n, humanSize(n), back, err)
		}
	})
}

func TestHumanAge(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	for ago, want := range map[time.Duration]string{
		0: "0 s", 119 * time.Second: "119 s", 2 * time.Minute: "2 min", 3 * time.Hour: "3 h", 49 * time.Hour: "2 d",
		-time.Hour: "in the future",
	} {
		if got := humanAge(now, now.Add(-ago)); got != want {
			t.Errorf("%v ago is %q, want %q", ago, got, want)
		}
	}
}

func TestCounted(t *testing.T) {
	for want, n := range map[string]int{"1 directory": 1, "0 directories": 0, "12 directories": 12} {
		if got := counted(n, "directory"); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	if got := counted(int64(2), "disk") + " " + counted(1, "disk"); got != "2 disks 1 disk" {
		t.Errorf("%q", got)
	}
}

func TestProgressLine(t *testing.T) {
	got := progressLine("store", 1<<30, 4<<30, 10*time.Second)
	if want := "store: 1.0 GiB of 4.0 GiB (25%), 102.4 MiB/s, 30s left"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

// Off a terminal a stage is told of now and then, and never when nothing is wanted.
func TestPlainProgress(t *testing.T) {
	var out bytes.Buffer
	now := time.Unix(0, 0)
	clock := func() time.Time { return now }
	work := func(m *meter) string {
		out.Reset()
		for i := range int64(100) {
			m.Update("store", i<<20, 100<<20)
			now = now.Add(time.Second)
		}
		m.Close()
		return out.String()
	}
	said := work((&app{env: Env{Stderr: &out, Now: clock}}).meter())
	var want strings.Builder
	for i := int64(5); i < 100; i += 5 {
		fmt.Fprintf(&want, "store: %d.0 MiB of 100.0 MiB (%d%%), 1.0 MiB/s, %v left\n", i, i,
			time.Duration(100-i)*time.Second)
	}
	if said != want.String() {
		t.Errorf("in 100 seconds it says\n%swant a line every 5 seconds:\n%s", said, want.String())
	}
	for name, a := range map[string]*app{
		"quiet":    {env: Env{Stderr: &out, Now: clock}, quiet: true},
		"document": {env: Env{Stderr: &out, Now: clock}, json: true},
	} {
		if said := work(a.meter()); said != "" {
			t.Errorf("%s: it says %q", name, said)
		}
	}
}

// Every error that callers decide by has its status, kind and hint; what only wraps it does not
// change that.
func TestErrorsAreTold(t *testing.T) {
	kinds := map[string]bool{}
	for _, c := range causes {
		text, status := explain(fmt.Errorf("do this\nto that: %w", c.is))
		if text.Kind != c.kind || status != c.status || text.Hint != c.hint || strings.Contains(text.Message, "\n") {
			t.Errorf("%v is told as %+v, status %d", c.is, text, status)
		}
		kinds[c.kind] = true
	}
	manual, err := os.ReadFile("../../docs/manual/cli.md")
	if err != nil {
		t.Fatal(err)
	}
	for k := range kinds {
		if !bytes.Contains(manual, []byte("`"+k+"`")) {
			t.Errorf("kind %s is not in the manual", k)
		}
	}
	for _, tt := range []struct {
		err    error
		status int
	}{
		{vault.ErrWrongKey, StatusKey}, {vault.ErrNotVault, StatusKey}, {vault.ErrNewer, StatusError},
		{vault.ErrCorrupt, StatusDamage},
		{protect.ErrConsistency, StatusConsistency}, {blob.ErrNoSpace, StatusError},
		{&capture.NeedScratch{}, StatusError},
		{errors.New("anything"), StatusError}, {usagef("x"), StatusUsage}, {errInterrupted, StatusInterrupted},
	} {
		if _, status := explain(tt.err); status != tt.status {
			t.Errorf("%v: status %d, want %d", tt.err, status, tt.status)
		}
	}
	if text, _ := explain(withHint(vault.ErrWrongKey, "do %s", "that")); text.Hint != "do that" {
		t.Errorf("a hint of its own is %q", text.Hint)
	}
}

// An interrupted command says so, with its own status, in one document if asked.
func TestInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancelCause(context.Background())
	cancel(errInterrupted)
	dir := t.TempDir()
	var out, errs bytes.Buffer
	env := Env{
		Args:  []string{"--json", "vault", "init", filepath.Join(dir, "v"), "--key-file", filepath.Join(dir, "k")},
		Stdin: &bytes.Buffer{}, Stdout: &out,
		Stderr: &errs, Getenv: func(string) string { return "" },
	}
	if status := Run(ctx, env); status != StatusInterrupted {
		t.Fatalf("status %d (%s), want %d", status, errs.String(), StatusInterrupted)
	}
	var doc Failure
	if err := json.Unmarshal(errs.Bytes(), &doc); err != nil || doc.Error.Kind != "interrupted" || out.Len() != 0 {
		t.Errorf("standard error %q, standard output %q (%v)", errs.String(), out.String(), err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("it left %v (%v)", left, err)
	}
}

func TestKeyFiles(t *testing.T) {
	const identity = "AGE-SECRET-KEY-1GFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPQ4EGAEX"
	for _, tt := range []struct {
		name, content, identity, passphrase string
		refused                             bool
	}{
		{"age identity", "# comment\n" + identity + "\n", identity, "", false},
		{"indented on a page", "HOLDFAST\n\n   " + identity + "  \r\n\nend", identity, "", false},
		{"passphrase", "correct horse\n", "", "correct horse", false},
		{"passphrase of a DOS editor", "correct horse\r\n", "", "correct horse", false},
		{"only one line end goes", "correct horse\n\n", "", "correct horse\n", false},
		{"too short", "1234567\n", "", "", true},
		{"empty", "", "", "", true},
		{"too large", strings.Repeat("x", maxKeyFile+1), "", "", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "key")
			if err := os.WriteFile(path, []byte(tt.content), 0o600); err != nil {
				t.Fatal(err)
			}
			key, err := readKeyFile(path)
			if (err != nil) != tt.refused || key.Identity != tt.identity || string(key.Passphrase) != tt.passphrase {
				t.Errorf("identity %q, passphrase %q (%v)", key.Identity, key.Passphrase, err)
			}
		})
	}
}

// Whatever is given: a size is taken if and only if it is written like one and a file can have it,
// it is what floating point says it is, as near as that goes, and it is the same in bytes.
func FuzzParseSize(f *testing.F) {
	for _, s := range []string{"1GiB", "0", "-1", "1.5k", "1e400", "iB", "1BB", "0x1p4", "9007199254740993", "8191P"} {
		f.Add(s)
	}
	form := regexp.MustCompile(`^ *([0-9]+\.?[0-9]*|\.[0-9]+) *(?:([kmgtp])(?:i?b)?|b)?$`)
	f.Fuzz(func(t *testing.T, s string) {
		n, err := parseSize(s)
		parts := form.FindStringSubmatch(strings.ToLower(s))
		if parts == nil {
			if err == nil {
				t.Errorf("%q is taken for %d", s, n)
			}
			return
		}
		about, rangeErr := strconv.ParseFloat(parts[1], 64)
		about *= math.Pow(1024, float64(strings.Index(" kmgtp", parts[2])))
		switch {
		case rangeErr != nil || about > 1.001*(1<<62):
			if err == nil {
				t.Errorf("%q is taken for %d", s, n)
			}
		case about < 0.999*(1<<62) && err != nil:
			t.Errorf("%q is refused: %v", s, err)
		case err == nil && (n < 0 || math.Abs(float64(n)-about) > 1+about/(1<<50)):
			t.Errorf("%q is %d, want about %.0f", s, n, about)
		case err == nil:
			if again, err := parseSize(fmt.Sprint(n)); err != nil || again != n {
				t.Errorf("%q is %d bytes, which are %d (%v)", s, n, again, err)
			}
		}
	})
}
