package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdfast-vm/holdfast/internal/child"
	"github.com/holdfast-vm/holdfast/internal/hypervisor"
	"github.com/holdfast-vm/holdfast/internal/point"
	"github.com/holdfast-vm/holdfast/internal/restore"
	"github.com/holdfast-vm/holdfast/internal/vault"
)

func (a *app) instantCommands() *cobra.Command {
	return noun("instant", "Look after machines that run while their disks are still being restored",
		a.instantList(), a.instantShow(), a.instantPause(), a.instantContinue(), a.instantLimit(), a.instantResume(),
		a.instantAbandon())
}

// instantHost returns the host at uri as one that can restore at once.
func (a *app) instantHost(uri string) (restore.InstantHost, func(), error) {
	hosts, err := a.openHosts([]string{uri})
	if err != nil {
		return nil, nil, err
	}
	h, ok := hosts[0].Host.(restore.InstantHost)
	if !ok {
		closeHosts(hosts)
		return nil, nil, fmt.Errorf("host %s cannot restore a machine at once", uri)
	}
	return h, func() { closeHosts(hosts) }, nil
}

// restoreInstant serves a machine's disks until they are local.
func (a *app) restoreInstant(ctx context.Context, v *vault.Vault, p *point.RecoveryPoint, flags restoreFlags) error {
	uris := a.connections()
	if len(uris) != 1 {
		return usagef("a machine is restored to one host: give --connect once")
	}
	req, err := flags.machineRequest(p)
	if err != nil {
		return err
	}
	rate, err := parseRate(flags.rate)
	if err != nil {
		return usagef("--rate: %v", err)
	}
	h, closeHost, err := a.instantHost(uris[0])
	if err != nil {
		return err
	}
	defer closeHost()
	done, err := a.hydrating(flags.storage, flags.as, func(o restore.InstantOptions) (restore.RestoredMachine, error) {
		return restore.Instant(ctx, v, h, req, rate, o)
	})
	if err != nil {
		return fmt.Errorf("restore vm %s as %s from point %s: %w", p.VM, flags.as, p.ID.Short(), err)
	}
	return a.printRestored(p, done)
}

// hydrating runs what hydrates and says what it comes to.
func (a *app) hydrating(storage, name string,
	run func(o restore.InstantOptions) (restore.RestoredMachine, error)) (restore.RestoredMachine, error) {
	m, began, started := a.meter(), a.env.Now(), false
	defer m.Close()
	runDir, err := a.stateDir()
	if err != nil {
		return restore.RestoredMachine{}, err
	}
	done, err := run(restore.InstantOptions{
		RunDir: runDir, Progress: m.Update, Log: a.remark, Now: a.env.Now,
		Guard: func(storage, name, host string) (func(), error) { return startInstantGuard(host, storage, name) },
		Started: func(r restore.RestoredMachine) {
			if !started {
				a.sayStarted(r, storage, a.env.Now().Sub(began))
			}
			started = true
		},
	})
	if err != nil && started && !errors.Is(err, restore.ErrAbandoned) {
		err = withHint(err, "%s needs its disks: `holdfast instant resume %s --storage %s` goes on; `holdfast "+
			"instant abandon` removes it", name, name, storage)
	}
	return done, err
}

func (a *app) sayStarted(r restore.RestoredMachine, storage string, took time.Duration) {
	if r.State == hypervisor.Running {
		a.remark("%s runs, %.1f s after the command; its disks are copied to %s behind it", r.Name, took.Seconds(),
			storage)
	} else {
		a.remark("%s is defined, %.1f s after the command, and its disks are copied to %s; until that is done it can "+
			"only run while this process does",
			r.Name, took.Seconds(), storage)
		if r.Start != "" {
			a.remark("start it with: %s", r.Start)
		}
	}
}

// parseRate reads a size a second; "" is no limit.
func parseRate(s string) (int64, error) {
	if s == "" {
		return 0, nil
	}
	rate, err := parseSize(strings.TrimSuffix(s, "/s"))
	if err == nil && rate < 1 {
		err = fmt.Errorf("%q would never come to an end", s)
	}
	return rate, err
}

const instantGuardName = "instant-guard"

// instantGuardCommand is the process that lets a machine go on if we cannot; nobody types it.
func (a *app) instantGuardCommand() *cobra.Command {
	return &cobra.Command{
		Use: instantGuardName + " URI DIR NAME", Hidden: true,
		Short: "Let a machine go on that another holdfast has stopped", Args: cobra.ExactArgs(3),
		RunE: func(cmd *cobra.Command, args []string) error {
			a.println("ready")
			if text, err := io.ReadAll(a.env.Stdin); err != nil || strings.TrimSpace(string(text)) == "done" {
				return err
			}
			h, closeHost, err := a.instantHost(args[0])
			if err != nil {
				return err
			}
			defer closeHost()
			return restore.RescueInstant(cmd.Context(), h, args[1], args[2])
		},
	}
}

// startInstantGuard starts the guard and returns what ends it.
func startInstantGuard(uri, storage, name string) (release func(), err error) {
	cmd := child.Self(instantGuardName, uri, storage, name)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // what kills our group spares it
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	release = func() {
		io.WriteString(in, "done\n")
		in.Close()
		cmd.Wait()
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || strings.TrimSpace(line) != "ready" {
		release()
		return nil, fmt.Errorf("it said %q: %w", line, err)
	}
	return release, nil
}
