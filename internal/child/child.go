// Package child starts the programs that this one needs, and is the only one that may
// (layers_test.go).
//
// What this process knows stays here. A child gets an environment of its own, made of names that
// programs need and that hold no secret, and no descriptor but those that it is handed: whoever
// breaks out of a guest into its QEMU finds none of our secrets there. A secret that another
// process of this program needs is handed over on a pipe, by [Hand] and [Receive], and is never in
// an environment, an argument or a file.
//
// Call [Seal] first of all in a program. A [Cmd] is used as package os/exec says.
package child

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Cmd is a program to be started.
type Cmd = exec.Cmd

// Command returns a command that runs a program, with an environment as [Environment] says.
func Command(name string, args ...string) *Cmd {
	return ready(exec.Command(name, args...), Environment())
}

// CommandContext is Command, killed when ctx ends.
func CommandContext(ctx context.Context, name string, args ...string) *Cmd {
	return ready(exec.CommandContext(ctx, name, args...), Environment())
}

// Self returns a command that runs this very program, also if its file was replaced since it was
// started. It gets what this program is told by its environment too, except for secrets.
func Self(args ...string) *Cmd {
	cmd := ready(exec.Command("/proc/self/exe", args...), pick(os.Environ(), forAll, forSelf))
	cmd.Args[0] = os.Args[0]
	return cmd
}

// Find returns the path of a program, or an error that says that there is none.
func Find(name string) (string, error) { return exec.LookPath(name) }

func ready(cmd *Cmd, env []string) *Cmd {
	Seal() // also against what a library has opened without care
	cmd.Env = env
	return cmd
}

// Seal keeps descriptors that this process was started with from its children. Those that package
// os opens are kept from them anyway.
func Seal() {
	const first = 3 // after standard input, output and error
	if unix.CloseRange(first, 1<<32-1, unix.CLOSE_RANGE_CLOEXEC) == nil {
		return
	}
	fds, _ := filepath.Glob("/proc/self/fd/*") // the pattern is well formed
	for _, path := range fds {
		if fd, err := strconv.Atoi(filepath.Base(path)); err == nil && fd >= first {
			unix.CloseOnExec(fd)
		}
	}
}

// forAll are the names that any program may need: to be found, to speak the user's language, to
// reach his session and to show a machine's console there. One that ends in * stands for all that
// begin so.
var forAll = []string{
	"PATH", "LD_LIBRARY_PATH", "HOME", "USER", "LOGNAME", "SHELL", "TMPDIR", "TERM", "TZ", "LANG", "LANGUAGE", "LC_*",
	"XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME",
	"DISPLAY", "WAYLAND_DISPLAY", "XAUTHORITY", "DBUS_SESSION_BUS_ADDRESS", "PULSE_SERVER", "QEMU_AUDIO_DRV",
	"QEMU_MODULE_DIR",
}

// forSelf are the names that this program reads, except for the one that holds a secret.
var forSelf = []string{
	"HOLDFAST_VAULT", "HOLDFAST_KEY_FILE", "HOLDFAST_PASSPHRASE_FILE", "HOLDFAST_CONNECT", "HOLDFAST_SCRATCH",
	"HOLDFAST_POOL",
	"HOLDFAST_PRICES", "HOLDFAST_STATE", "HOLDFAST_MEMORY", "GOMEMLIMIT", "GOGC", "GOMAXPROCS", "GODEBUG",
	"GOTRACEBACK", "GOCOVERDIR",
}

// Environment returns the environment of a child that is not of this program.
func Environment() []string { return pick(os.Environ(), forAll) }

func pick(env []string, lists ...[]string) []string {
	out := []string{}
	for _, entry := range env {
		name, _, _ := strings.Cut(entry, "=")
		if slices.ContainsFunc(slices.Concat(lists...), func(allowed string) bool { return matches(allowed, name) }) {
			out = append(out, entry)
		}
	}
	return out
}

func matches(allowed, name string) bool {
	prefix, all := strings.CutSuffix(allowed, "*")
	return name == allowed || all && strings.HasPrefix(name, prefix)
}

// maxSecret is the largest secret that Receive takes, in bytes.
const maxSecret = 1 << 20

// Hand has cmd get a secret when it is started, and returns the number of the descriptor, to be
// told in an argument. Call sent once it was started, or was not: nothing is left open then.
func Hand(cmd *Cmd, secret []byte) (fd int, sent func(), err error) {
	r, w, err := os.Pipe()
	if err != nil {
		return 0, nil, fmt.Errorf("hand over a secret: %w", err)
	}
	cmd.ExtraFiles = append(cmd.ExtraFiles, r)
	go func() {
		_, _ = w.Write(secret) // a child that does not want it, or has died, says so itself
		w.Close()
	}()
	return 2 + len(cmd.ExtraFiles), func() { r.Close() }, nil
}

// Receive returns the secret on a descriptor that [Hand] has told of, and closes it.
func Receive(fd int) ([]byte, error) {
	if fd < 3 {
		return nil, fmt.Errorf("take over a secret: descriptor %d is none of its kind", fd)
	}
	f := os.NewFile(uintptr(fd), "secret")
	if f == nil {
		return nil, fmt.Errorf("take over a secret: there is no descriptor %d", fd)
	}
	defer f.Close()
	secret, err := io.ReadAll(io.LimitReader(f, maxSecret+1))
	if err == nil && len(secret) > maxSecret {
		err = errors.New("it is too large to be one")
	}
	if err != nil {
		return nil, fmt.Errorf("take over a secret: %w", err)
	}
	return secret, nil
}

// KeepSecrets keeps the memory of this process out of core dumps, and from other processes of the
// same user, such as the QEMU of a machine that was broken out of.
func KeepSecrets() error {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("keep the memory of this process out of core dumps: %w", err)
	}
	return nil
}
