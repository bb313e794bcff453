// Package cli is the command line of Holdfast: it parses, asks, constructs and prints, and decides
// nothing.
//
// [Run] runs one command in an [Env], which holds all that a process has, so that commands are
// tested in process. What was asked for goes to standard output, as tables for people or, with
// --json, as exactly one JSON document; all else (progress, warnings, errors with their hints) goes
// to standard error. The exit status is one of the Status constants.
package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-vm/holdfast/internal/child"
)

// Version is the version of this program, set when it is linked.
var Version = "0.1.0-dev"

// Env is all that a command has of the process it runs in.
type Env struct {
	Args   []string // without the program's name
	Stdin  io.Reader
	Stdout io.Writer
	Stderr io.Writer
	Getenv func(string) string
	Guard  []string         // command that starts the guard of a guest; nil means this very program
	Now    func() time.Time // nil means time.Now
}

// Process returns the Env of this process. The passphrase in its environment is only there from
// then on: a library that starts a program by itself does not pass it on.
func Process() Env {
	secret := os.Getenv(passphraseEnv)
	os.Unsetenv(passphraseEnv)
	return Env{
		Args: os.Args[1:], Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
		Getenv: func(name string) string {
			if name == passphraseEnv {
				return secret
			}
			return os.Getenv(name)
		},
	}
}

// Main runs the command of this process until it ends or a signal stops it, and returns the exit
// status. The first SIGINT or SIGTERM stops the command, which cleans up; a second one quits at
// once.
func Main() int {
	child.Seal()
	env := Process()
	if err := child.KeepSecrets(); err != nil {
		fmt.Fprintf(os.Stderr, "holdfast: %v\n", err)
		return StatusError
	}
	if len(env.Args) > 0 && env.Args[0] == guardName {
		return Run(context.Background(), env) // it handles signals itself: its guest comes first
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, unix.SIGTERM)
	defer signal.Stop(signals)
	go func() {
		<-signals
		cancel(errInterrupted)
		<-signals
		os.Exit(StatusInterrupted)
	}()
	return Run(ctx, env)
}

// Run runs the command that env.Args names and returns its exit status. Everything it started has
// ended when it returns.
func Run(ctx context.Context, env Env) int {
	if env.Now == nil {
		env.Now = time.Now
	}
	a := &app{env: env}
	root := a.root()
	root.SetArgs(env.Args)
	root.SetIn(env.Stdin)
	root.SetOut(env.Stdout)
	root.SetErr(env.Stderr)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return StatusOK
	}
	if cause := context.Cause(ctx); cause != nil { // whatever else it may look like, we broke it off
		err = fmt.Errorf("%w (%w)", cause, err)
	}
	return a.fail(err)
}
