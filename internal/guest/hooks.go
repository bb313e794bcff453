package guest

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"path"
	"strings"
	"time"
)

const (
	evidenceTime  = 3 * time.Second // for all that is looked up about hooks
	maxHook       = 64 << 10        // bytes of a hook or configuration file that are looked at
	defaultHook   = "/etc/qemu/fsfreeze-hook"
	defaultConfig = "/etc/qemu/qemu-ga.conf"
	hookDir       = "fsfreeze-hook.d" // beside the hook: what a dispatcher runs
	hookDirEnv    = "FSFREEZE_HOOK_DIR"
)

// hooks is what is known of the freeze hooks of a guest that is not Windows.
type hooks struct {
	Active bool   // they run, and the quiesce fails when one of them does
	Why    string // what makes us think so, or why they do not count
}

// noHooks says why hooks do not count.
func noHooks(format string, args ...any) hooks { return hooks{Why: fmt.Sprintf(format, args...)} }

// findHooks looks for evidence that hooks run at a freeze, through the agent itself: its own
// command line (it is the agent that reads /proc/self), its configuration, and the hook that these
// name. Whatever cannot be found out counts as no hooks.
func findHooks(ctx context.Context, l *line) hooks {
	ctx, cancel := context.WithTimeout(ctx, evidenceTime)
	defer cancel()
	hook, err := hookPath(ctx, l)
	switch {
	case disabled(err):
		return noHooks(reasonNoFiles)
	case err != nil:
		return noHooks(reasonHooksUnknown, err)
	case hook == "":
		return noHooks(reasonNoHook)
	}
	script, err := l.readFile(ctx, hook)
	if err != nil {
		return noHooks(reasonHookUnread, hook, err)
	}
	switch text := string(script); {
	case ignoresFailures(text):
		return noHooks(reasonHooksIgnored, hook)
	case strings.Contains(text, hookDir):
		return dispatched(ctx, l, hook, text)
	}
	return hooks{Active: true, Why: fmt.Sprintf(reasonHookRan, hook)}
}

// dispatched says what a dispatcher runs that stops the quiesce when a hook fails, as ours does:
// the executable files of a directory.
func dispatched(ctx context.Context, l *line, hook, script string) hooks {
	dir := path.Join(path.Dir(hook), hookDir)
	if strings.Contains(script, hookDirEnv) {
		env, err := l.readFile(ctx, "/proc/self/environ")
		if err != nil {
			return noHooks(reasonWhereUnknown, hook, err)
		}
		dir = firstOf(variable(string(env), hookDirEnv), path.Join(path.Dir(defaultHook), hookDir))
	}
	names, err := l.executables(ctx, dir)
	switch {
	case disabled(err):
		return noHooks(reasonNoPrograms, dir)
	case err != nil:
		return noHooks(reasonListUnknown, dir, err)
	case len(names) == 0:
		return noHooks(reasonNoHooks, dir)
	}
	return hooks{Active: true, Why: fmt.Sprintf(reasonHooksRan, strings.Join(names, ", "))}
}

// variable returns the value of a variable in the form of /proc/PID/environ.
func variable(env, name string) string {
	for v := range strings.SplitSeq(env, "\x00") {
		if value, ok := strings.CutPrefix(v, name+"="); ok {
			return value
		}
	}
	return ""
}

// hookPath returns the hook that the agent calls, or "" if none.
func hookPath(ctx context.Context, l *line) (string, error) {
	cmdline, err := l.readFile(ctx, "/proc/self/cmdline")
	if err != nil {
		return "", err
	}
	hook, config := parseCommandLine(strings.Split(strings.TrimRight(string(cmdline), "\x00"), "\x00"))
	if hook != "" {
		return hook, nil
	}
	text, err := l.readFile(ctx, config)
	if isMissing(err) {
		return "", nil
	}
	return parseConfig(string(text)), err
}

// isMissing reports whether the agent said that a file does not exist. It has one class for all
// that can go wrong with a file, and the words of the C library for what it was.
func isMissing(err error) bool {
	return answered(err) && strings.Contains(err.Error(), "No such file or directory")
}

// parseCommandLine finds the hook and the configuration file in the agent's arguments, which
// getopt_long reads.
func parseCommandLine(args []string) (hook, config string) {
	config = defaultConfig
	for i, arg := range args {
		if i == 0 {
			continue
		}
		next := ""
		if i+1 < len(args) {
			next = args[i+1]
		}
		if arg == "--" {
			break
		}
		if long, ok := strings.CutPrefix(arg, "--"); ok {
			name, value, given := strings.Cut(long, "=")
			switch {
			case len(name) > 1 && strings.HasPrefix("fsfreeze-hook", name):
				hook = firstOf(value, defaultHook)
			case len(name) > 1 && strings.HasPrefix("config", name):
				config = next
				if given {
					config = value
				}
			}
			continue
		}
		if i > 1 && takesValue(args[i-1]) || !strings.HasPrefix(arg, "-") {
			continue
		}
		switch flag, value := shortOption(arg[1:]); flag {
		case 'F':
			hook = firstOf(value, defaultHook)
		case 'c':
			config = firstOf(value, next)
		}
	}
	return hook, config
}

// shortOption returns the last option of a cluster such as dF/path, and what is attached to it.
func shortOption(cluster string) (flag byte, value string) {
	for i := range len(cluster) {
		flag = cluster[i]
		if strings.IndexByte("mplfFbastc", flag) >= 0 {
			return flag, cluster[i+1:]
		}
	}
	return flag, ""
}

// takesValue reports whether the argument after arg belongs to it.
func takesValue(arg string) bool {
	if len(arg) < 2 || arg[0] != '-' || arg[1] == '-' {
		return false
	}
	flag, value := shortOption(arg[1:])
	return value == "" && strings.IndexByte("mplfbastc", flag) >= 0
}

// parseConfig returns the hook named in the agent's configuration file.
func parseConfig(text string) string {
	general := false
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "[") {
			general = line == "[general]"
		}
		key, value, ok := strings.Cut(line, "=")
		if general && ok && strings.TrimSpace(key) == "fsfreeze-hook" {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// ignoresFailures reports whether a hook is the dispatcher that QEMU ships, or one of its kind: it
// runs what is in a directory, and ends with success whatever that did.
func ignoresFailures(script string) bool {
	var code []string
	for line := range strings.Lines(script) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
			code = append(code, line)
		}
	}
	if len(code) == 0 {
		return true // does nothing
	}
	if code[len(code)-1] != "exit 0" {
		return false
	}
	for _, line := range code {
		if i := strings.Index(line, "exit "); i >= 0 && !strings.HasPrefix(line[i:], "exit 0") ||
			strings.HasPrefix(line, "set -e") {
			return false
		}
	}
	return true
}

// readFile returns the beginning of a file of the guest.
func (l *line) readFile(ctx context.Context, name string) ([]byte, error) {
	var handle int64
	err := l.ask(ctx, answerTime, "guest-file-open", map[string]string{"path": name, "mode": "r"}, &handle)
	if err != nil {
		return nil, err
	}
	defer l.ask(ctx, answerTime, "guest-file-close", map[string]int64{"handle": handle}, nil)
	var data []byte
	for len(data) < maxHook {
		var part struct {
			Data []byte `json:"buf-b64"`
			EOF  bool   `json:"eof"`
		}
		args := map[string]int64{"handle": handle, "count": maxHook}
		if err := l.ask(ctx, answerTime, "guest-file-read", args, &part); err != nil {
			return nil, err
		}
		data = append(data, part.Data...)
		if part.EOF || len(part.Data) == 0 {
			break
		}
	}
	return data, nil
}

// executables returns the names of the programs in a directory of the guest that a dispatcher would
// run.
func (l *line) executables(ctx context.Context, dir string) ([]string, error) {
	out, err := l.run(ctx, "find", "-L", dir, "-maxdepth", "1", "-type", "f", "-perm", "/111")
	if err != nil {
		return nil, err
	}
	var names []string
	for line := range strings.Lines(out) {
		if name := path.Base(strings.TrimSpace(line)); !ignoredName(name) {
			names = append(names, name)
		}
	}
	return names, nil
}

func ignoredName(name string) bool {
	for _, end := range []string{"~", ".bak", ".bk", ".sample", ".dpkg-old", ".dpkg-dist", ".dpkg-new", ".rpmsave",
		".rpmnew", ".rpmorig"} {
		if strings.HasSuffix(name, end) {
			return true
		}
	}
	return name == "" || name == "." || name[0] == '.'
}

// run executes a program in the guest and returns what it printed.
func (l *line) run(ctx context.Context, program string, args ...string) (string, error) {
	var started struct {
		PID int64 `json:"pid"`
	}
	err := l.ask(ctx, answerTime, "guest-exec", map[string]any{"path": program, "arg": args, "capture-output": true},
		&started)
	if err != nil {
		return "", err
	}
	for wait := time.Millisecond; ; wait = min(2*wait, 100*time.Millisecond) {
		var st struct {
			Exited bool   `json:"exited"`
			Code   int    `json:"exitcode"`
			Out    string `json:"out-data"`
		}
		if err := l.ask(ctx, answerTime, "guest-exec-status", started, &st); err != nil {
			return "", err
		}
		if st.Exited {
			out, err := base64.StdEncoding.DecodeString(st.Out)
			if st.Code != 0 {
				err = errors.Join(err, fmt.Errorf("%s in the guest ended with status %d", program, st.Code))
			}
			return string(out), err
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return "", fmt.Errorf("%s in the guest: %w", program, ctx.Err())
		}
	}
}
