// Package role knows by what commands a system shows that it does what it is there for.
//
// Everything here is a pure function that returns commands to be run in the guest. An exit status
// of 0 passes, [Final] fails for good, and with any other the check is tried again. In Windows the
// commands are PowerShell scripts, passed in a form that nothing on the way has to quote; see
// windows.go.
package role

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/holdfast-vm/holdfast/internal/drill/inside"
)

var (
	// ErrRole reports a role that is not known.
	ErrRole = errors.New("no such role")
	// ErrArgument reports an argument that a role does not take, or lacks.
	ErrArgument = errors.New("wrong argument of a role")
)

// Final is the exit status of a check that has failed for good.
const Final = 3

// MaxScript is the longest script that is copied into a guest, in bytes.
const MaxScript = 1 << 20

// Check is a question to the guest.
type Check struct {
	Name string // for people
	Unix inside.Command
	// Windows is what a Windows is asked instead; without a path it is not asked at all, and
	// NotWindows says why.
	Windows    inside.Command
	NotWindows string
}

// For returns the command for a guest.
func (c Check) For(windows bool) (inside.Command, error) {
	if !windows {
		return c.Unix, nil
	}
	if c.Windows.Path == "" {
		return inside.Command{}, fmt.Errorf("it cannot be checked in a Windows: %s", c.NotWindows)
	}
	return c.Windows, nil
}

// known are the roles.
var known = map[string]func(arg string) (Check, error){
	"systemd": systemd, "service": service, "tcp": tcp, "postgresql": postgresql, "http": web, "file": file,
	"sqlite": sqlite,
}

// Names returns the roles that are known.
func Names() []string {
	var names []string
	for name := range known {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// Parse reads NAME or NAME=ARGUMENT. Errors are [ErrRole] or [ErrArgument].
func Parse(s string) (Check, error) {
	name, arg, given := strings.Cut(s, "=")
	ask, ok := known[name]
	switch {
	case !ok:
		return Check{}, fmt.Errorf("%w: %q; there are %s", ErrRole, name, strings.Join(Names(), ", "))
	case given && arg == "":
		return Check{}, fmt.Errorf("%w: %s: there is nothing after the =", ErrArgument, name)
	case strings.ContainsAny(arg, "\x00\n"):
		return Check{}, fmt.Errorf("%w: %s: %q is not of one line", ErrArgument, name, arg)
	}
	c, err := ask(arg)
	if err != nil {
		return Check{}, fmt.Errorf("%w: %s: %w", ErrArgument, name, err)
	}
	c.Name = s
	return c, nil
}

// Given is a check by a command line of the user's.
func Given(command string) Check {
	c := Check{Name: command, Unix: shell(command), Windows: cmdLine(command)}
	switch {
	case strings.ContainsAny(command, "\r\n"):
		c.Windows, c.NotWindows = inside.Command{}, "cmd.exe takes one line; use --script"
	case len(command) > maxCmdLine:
		c.Windows, c.NotWindows = inside.Command{}, "the line is too long for cmd.exe; use --script"
	}
	return c
}

// Script is a check by a script of the user's. In a Unix it may have an interpreter of its own; in
// a Windows it is one of PowerShell, or by its name's end (.cmd, .bat) one of cmd.exe.
func Script(name string, text []byte) (Check, error) {
	if len(text) > MaxScript {
		return Check{}, fmt.Errorf("script %s has %d bytes, %d are the most", name, len(text), MaxScript)
	}
	run := shell(runScript)
	run.Input, run.Shown = text, "script "+name
	return Check{Name: "script " + name, Unix: run, Windows: windowsScript(name, text)}, nil
}

// runScript copies standard input to a file that can be run, and runs it.
const runScript = `for d in /tmp /var/tmp /run /root; do
	f=$d/.hf-drill-$$
	{ (umask 077; printf '#!/bin/sh\nexit 0\n' >"$f") && chmod 700 "$f" && "$f"; } 2>/dev/null && break
	rm -f "$f" 2>/dev/null
	f=
done
[ -n "$f" ] || { echo "the guest has no directory that a script can be run from"; exit 3; }
cat >"$f" || exit 1
"$f" </dev/null; s=$?
rm -f "$f"
exit $s`

func shell(script string) inside.Command {
	return inside.Command{Path: "/bin/sh",
		Args: []string{"-c", "exec 2>&1; PATH=$PATH:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n" +
			script}, Shown: script}
}

// quote writes s as one word of a shell.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

func systemd(unit string) (Check, error) {
	const windows = "it has no systemd; use --role service"
	if unit != "" {
		return Check{Unix: shell("s=$(systemctl is-active -- " + quote(unit) + ")\necho \"$s\"\n[ \"$s\" = active ]"),
			NotWindows: windows}, nil
	}
	return Check{NotWindows: windows, Unix: shell(`s=$(systemctl is-system-running)
case $s in
running) exit 0 ;;
degraded) echo "failed units:"; systemctl --failed --no-legend --plain; exit 1 ;;
esac
echo "systemd is ${s:-not there}"
exit 1`)}, nil
}

// service is a unit of systemd's, or a service of Windows.
func service(name string) (Check, error) {
	c, err := systemd(name)
	c.NotWindows = ""
	if c.Windows = powershell(failedServices); name != "" {
		c.Windows = powershell(oneService(name))
	}
	return c, err
}

func tcp(port string) (Check, error) {
	if port == "" {
		return Check{}, errors.New("it needs the number of a port")
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 {
		return Check{}, fmt.Errorf("%q is not the number of a port", port)
	}
	row := fmt.Sprintf(`^ *[0-9]+: [0-9A-F]+:%04X [0-9A-F]+:0000 0A `, n)
	return Check{
		Unix: shell(fmt.Sprintf("cat /proc/net/tcp /proc/net/tcp6 2>/dev/null | grep -qE %s && exit 0\necho "+
			"\"nothing listens on TCP port %d\"\nexit 1", quote(row), n)),
		Windows: powershell(listens(n)),
	}, nil
}

// postgresql asks the server whether it takes connections, and reads its catalog of databases as
// its own user.
func postgresql(port string) (Check, error) {
	if port == "" {
		port = "5432"
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return Check{}, fmt.Errorf("%q is not the number of a port", port)
	}
	return Check{Windows: powershell(postgresReady(port)), Unix: shell(`for d in /usr/lib/postgresql/*/bin /usr/pgsql-*/bin; do PATH=$PATH:$d; done
if command -v pg_isready >/dev/null; then pg_isready -q -p ` + port + ` || { pg_isready -p ` + port + `; exit 1; }; fi
q='SELECT 1; SELECT count(*) FROM pg_database; SELECT count(*) FROM pg_class'
c="psql -XAtq -v ON_ERROR_STOP=1 -p ` + port + ` -d postgres"
if [ "$(id -u)" != 0 ]; then echo "$q" | $c
elif command -v runuser >/dev/null; then cd / && echo "$q" | runuser -u postgres -- $c
else cd / && echo "$q" | su -s /bin/sh postgres -c "$c"
fi`)}, nil
}

func web(url string) (Check, error) {
	if url == "" {
		return Check{}, errors.New("it needs a URL")
	}
	if !strings.HasPrefix(url, "http://") && !strings.HasPrefix(url, "https://") || strings.ContainsAny(url, " \t\"") {
		return Check{}, fmt.Errorf("%q is no URL", url)
	}
	u := quote(url)
	return Check{
		Unix: shell(`if command -v curl >/dev/null; then exec curl -fsSkL -m 20 -o /dev/null ` + u + `; fi
if command -v wget >/dev/null; then
	wget -q -T 20 -O /dev/null ` + u + ` && exit 0
	echo "wget ended with status $? (4: no answer, 8: the answer is an error)"
	exit 1
fi
echo "the guest has neither curl nor wget"
exit 3`),
		Windows: powershell(request(url)),
	}, nil
}

func file(path string) (Check, error) {
	if path == "" {
		return Check{}, errors.New("it needs a path")
	}
	return Check{
		Unix:    shell("[ -r " + quote(path) + " ] && exit 0\necho 'it cannot be read'\nexit 1"),
		Windows: powershell(readable(path)),
	}, nil
}

// sqlite has a database check itself.
func sqlite(path string) (Check, error) {
	if path == "" {
		return Check{}, errors.New("it needs the path of a database")
	}
	return Check{NotWindows: "use --check with sqlite3",
		Unix: shell("[ -f " + quote(path) + " ] || { echo 'no such database'; exit 1; }\n" +
			"s=$(sqlite3 -cmd '.timeout 20000' " + quote(path) +
			" 'PRAGMA quick_check(5)') || { echo \"$s\"; exit 1; }\n" +
			"[ \"$s\" = ok ] && exit 0\necho \"$s\"\nexit 3")}, nil
}
