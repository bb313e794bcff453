package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/holdfast-vm/holdfast/internal/child"
	"github.com/holdfast-vm/holdfast/internal/restore"
)

const (
	detachFlag   = "--detach"
	detachPoll   = 50 * time.Millisecond
	detachLogEnd = 2000 // bytes of a log in an error
)

// detachInstant runs this very command without --detach in the background and returns when the
// machine's disks are served.
func (a *app) detachInstant(ctx context.Context, storage, name string) error {
	key, err := a.vaultKey(ctx)
	if err != nil {
		return err
	}
	dir, err := a.stateDir()
	if err == nil {
		err = os.MkdirAll(dir, 0o700)
	}
	if err != nil {
		return err
	}
	path := filepath.Join(dir, "instant-"+filepath.Base(name)+".log")
	log, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := child.Self(slices.DeleteFunc(slices.Clone(a.env.Args), func(s string) bool {
		return s == detachFlag || strings.HasPrefix(s, detachFlag+"=") || s == "--json"
	})...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	sent, err := handKey(cmd, key)
	if err != nil {
		return err
	}
	err = cmd.Start()
	sent()
	if err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	if err := awaitDetached(ctx, storage, name, path, ended); err != nil {
		return err
	}
	st, err := restore.ReadInstant(storage, name)
	if errors.Is(err, restore.ErrNoInstant) { // it is done already
		return a.println(name + " is restored")
	}
	if err != nil {
		return err
	}
	report, err := a.reportInstant(st)
	if err != nil {
		return err
	}
	if a.json {
		return a.printJSON(report)
	}
	is := "is defined"
	if st.Start {
		is = "runs"
	}
	return a.println(fmt.Sprintf("%s %s; process %d serves and copies its disks, and writes to %s", name, is,
		cmd.Process.Pid, path))
}

// awaitDetached returns when the process in the background has come to hydrate, or the error that
// it ended with.
func awaitDetached(ctx context.Context, storage, name, log string, ended <-chan error) error {
	for {
		st, err := restore.ReadInstant(storage, name)
		if err == nil && st.Step == restore.InstantHydrating && (st.Started || !st.Start) {
			if served, err := restore.InstantServed(storage, name); err != nil || served {
				return err
			}
		}
		select {
		case err := <-ended:
			text, readErr := os.ReadFile(log)
			if err == nil || readErr != nil {
				return readErr
			}
			said := strings.TrimSpace(string(text[max(0, len(text)-detachLogEnd):]))
			return fmt.Errorf("the process in the background ended (%w); it said: %s", err, said)
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(detachPoll):
		}
	}
}
