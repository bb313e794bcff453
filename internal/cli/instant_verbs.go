package cli

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdfast-vm/holdfast/internal/hypervisor"
	"github.com/holdfast-vm/holdfast/internal/restore"
	"github.com/holdfast-vm/holdfast/internal/vault"
)

// InstantReport is what instant show --json prints, and instant list of each.
type InstantReport struct {
	Name    string                `json:"name"`
	Host    string                `json:"host"`
	VM      string                `json:"vm"`
	Point   string                `json:"point"`
	Vault   string                `json:"vault"`
	Began   time.Time             `json:"began"`
	Step    restore.InstantStep   `json:"step"`
	Served  bool                  `json:"served"` // a process serves the disks
	Paused  bool                  `json:"paused"`
	Rate    int64                 `json:"rate"` // bytes a second; 0 means no limit
	Started bool                  `json:"started"`
	Problem string                `json:"problem,omitempty"`
	Disks   []restore.InstantDisk `json:"disks"`
}

func (a *app) reportInstant(st restore.InstantState) (InstantReport, error) {
	served, err := restore.InstantServed(st.Storage, st.Name)
	if err != nil {
		return InstantReport{}, err
	}
	wish, err := restore.ReadInstantWish(st.Storage, st.Name)
	return InstantReport{
		Name: st.Name, Host: st.Host, VM: st.Point.VM, Point: string(st.Point.ID), Vault: st.Vault, Began: st.Began,
		Step: st.Step, Served: served,
		Paused: wish.Paused, Rate: wish.Rate, Started: st.Started, Problem: st.Problem, Disks: st.Disks,
	}, err
}

func (r InstantReport) sums() (done, total int64) {
	for _, d := range r.Disks {
		if d.Local {
			d.Done = d.Total
		}
		done, total = done+d.Done, total+d.Total
	}
	return done, total
}

// state is for people.
func (r InstantReport) state() string {
	switch {
	case !r.Served:
		return "waits for `instant resume`"
	case r.Problem != "":
		return "waits: " + oneLine(r.Problem)
	case r.Paused:
		return "paused"
	}
	return string(r.Step)
}

func percent(done, total int64) string {
	if total <= 0 {
		return "0%"
	}
	return strconv.FormatInt(done*100/total, 10) + "%"
}

// instantVerb is a command about one instant restore.
func (a *app) instantVerb(c command, flags func(cmd *cobra.Command),
	run func(ctx context.Context, storage, name string) error) *cobra.Command {
	var storage string
	c.args = cobra.ExactArgs(1)
	c.run = func(cmd *cobra.Command, args []string) error {
		if storage == "" {
			return usagef("%s: --storage DIR is missing: the directory that the machine was restored to", verbOf(cmd))
		}
		if err := run(cmd.Context(), storage, args[0]); err != nil {
			return fmt.Errorf("%s %s: %w", verbOf(cmd), args[0], err)
		}
		return nil
	}
	cmd := c.build()
	cmd.Flags().StringVar(&storage, "storage", "", "`directory` that the machine was restored to")
	if flags != nil {
		flags(cmd)
	}
	return cmd
}

func (a *app) instantList() *cobra.Command {
	var storage string
	cmd := command{
		use: "list --storage DIR", short: "List the instant restores that are under way in a directory",
		args:     cobra.NoArgs,
		examples: "holdfast instant list --storage /srv/images",
		run: func(cmd *cobra.Command, _ []string) error {
			if storage == "" {
				return usagef("instant list: --storage DIR is missing")
			}
			states, err := restore.Instants(storage)
			if err != nil {
				return err
			}
			reports := []InstantReport{}
			for _, st := range states {
				r, err := a.reportInstant(st)
				if err != nil {
					return err
				}
				reports = append(reports, r)
			}
			return a.printInstants(reports)
		},
	}.build()
	cmd.Flags().StringVar(&storage, "storage", "", "`directory` that machines were restored to")
	return cmd
}

func (a *app) printInstants(reports []InstantReport) error {
	if a.json {
		return a.printJSON(reports)
	}
	var rows [][]string
	for _, r := range reports {
		done, total := r.sums()
		rows = append(rows, []string{r.Name, r.VM, r.Point[:8], humanAge(a.env.Now(), r.Began), percent(done, total),
			humanSize(total), r.state()})
	}
	return a.printTable([]string{"name", "of vm", "point", "began", ">copied", ">of", "state"}, rows)
}

func (a *app) instantShow() *cobra.Command {
	return a.instantVerb(command{
		use: "show NAME --storage DIR", short: "Show how far an instant restore is",
		examples: "holdfast instant show web --storage /srv/images",
	}, nil, func(_ context.Context, storage, name string) error {
		st, err := restore.ReadInstant(storage, name)
		if err != nil {
			return err
		}
		r, err := a.reportInstant(st)
		if err != nil {
			return err
		}
		if a.json {
			return a.printJSON(r)
		}
		return a.printInstant(r)
	})
}

func (a *app) printInstant(r InstantReport) error {
	rate := "no limit"
	if r.Rate > 0 {
		rate = humanSize(r.Rate) + "/s"
	}
	err := a.printFields(
		[2]string{"name", r.Name}, [2]string{"host", r.Host}, [2]string{"of vm", r.VM}, [2]string{"point", r.Point},
		[2]string{"began", humanTime(r.Began) + " UTC, " + humanAge(a.env.Now(), r.Began) + " ago"},
		[2]string{"step", string(r.Step)},
		[2]string{"state", r.state()}, [2]string{"rate", rate})
	var rows [][]string
	for _, d := range r.Disks {
		copied := percent(d.Done, d.Total)
		if d.Local {
			copied = "local"
		}
		rows = append(rows, []string{d.Disk, d.File, d.Format, humanSize(d.Size), humanSize(d.Done), humanSize(d.Total),
			copied})
	}
	return errors.Join(err, a.println(""),
		a.printTable([]string{"disk", "file", "format", ">size", ">copied", ">of", ">done"}, rows))
}

// changeWish changes what is asked of the process that hydrates.
func (a *app) changeWish(storage, name, said string, change func(w *restore.InstantWish)) error {
	w, err := restore.ReadInstantWish(storage, name)
	if err != nil {
		return err
	}
	change(&w)
	if err := restore.SetInstantWish(storage, name, w); err != nil {
		return err
	}
	if a.json {
		return a.printJSON(map[string]any{"name": name, "paused": w.Paused, "rate": w.Rate})
	}
	return a.println(said)
}

func (a *app) instantPause() *cobra.Command {
	return a.instantVerb(command{
		use: "pause NAME --storage DIR", short: "Pause the copying behind an instant restore",
		long:     "The machine goes on, and reads what it needs from the vault.",
		examples: "holdfast instant pause web --storage /srv/images",
	}, nil, func(_ context.Context, storage, name string) error {
		return a.changeWish(storage, name, "the disks of "+name+" are not copied for now",
			func(w *restore.InstantWish) { w.Paused = true })
	})
}

func (a *app) instantContinue() *cobra.Command {
	return a.instantVerb(command{
		use: "continue NAME --storage DIR", short: "Continue the copying that was paused",
		examples: "holdfast instant continue web --storage /srv/images",
	}, nil, func(_ context.Context, storage, name string) error {
		return a.changeWish(storage, name, "the disks of "+name+" are copied", func(w *restore.InstantWish) {
			w.Paused = false
		})
	})
}

func (a *app) instantLimit() *cobra.Command {
	var text string
	return a.instantVerb(command{
		use:   "limit NAME --rate SIZE/s --storage DIR",
		short: "Change how fast the disks are copied behind an instant restore",
		long:  "--rate 0 lifts the limit.",
		examples: `
holdfast instant limit web --rate 50MiB/s --storage /srv/images
holdfast instant limit web --rate 0 --storage /srv/images`,
	}, func(cmd *cobra.Command) {
		cmd.Flags().StringVar(&text, "rate", "", "at most `size` a second for each disk, such as 100MiB/s")
	}, func(_ context.Context, storage, name string) error {
		if text == "" {
			return usagef("instant limit: --rate is missing")
		}
		rate, err := parseRate(text)
		if text == "0" {
			rate, err = 0, nil
		}
		if err != nil {
			return usagef("--rate: %v", err)
		}
		return a.changeWish(storage, name, "the disks of "+name+" are copied at most at "+text,
			func(w *restore.InstantWish) { w.Rate = rate })
	})
}

func (a *app) instantResume() *cobra.Command {
	var start, detach bool
	return a.instantVerb(command{
		use: "resume NAME --storage DIR [--start]", short: "Go on with an instant restore whose process has ended",
		long: `
Serves the machine's disks again, lets the machine go on if it waits for them, and copies what
is left. It does not matter what ended the process, or the machine, or the host, or when. A
machine that --start had started and that did not end by itself is started again, unless KVM of
this host runs no guests any more: then only its disks are copied.`,
		examples: "holdfast --vault /srv/vault instant resume web --storage /srv/images",
		statuses: "3 damage found, " + vaultStatuses + ", 130 interrupted",
	}, func(cmd *cobra.Command) {
		cmd.Flags().BoolVar(&start, "start", false, "start the machine if it is off")
		cmd.Flags().BoolVar(&detach, "detach", false, "return when the disks are served and go on in the background")
	}, func(ctx context.Context, storage, name string) error {
		a.lean()
		st, err := restore.ReadInstant(storage, name)
		if err != nil {
			return err
		}
		if detach {
			return a.detachInstant(ctx, storage, name)
		}
		return a.withVault(ctx, func(v *vault.Vault) error { return a.resumeInstant(ctx, v, st, start) })
	})
}

func (a *app) resumeInstant(ctx context.Context, v *vault.Vault, st restore.InstantState, start bool) error {
	h, closeHost, err := a.instantHost(st.Host)
	if err != nil {
		return err
	}
	defer closeHost()
	done, err := a.hydrating(st.Storage, st.Name, func(o restore.InstantOptions) (restore.RestoredMachine, error) {
		return restore.ResumeInstant(ctx, v, h, st.Storage, st.Name, start, o)
	})
	if errors.Is(err, hypervisor.ErrNoKVM) || errors.Is(err, hypervisor.ErrKVMUnfit) {
		return withHint(err, "without --start its disks are copied while it is off; `holdfast host check` says more")
	}
	if err != nil {
		return err
	}
	return a.printRestored(&st.Point, done)
}

func (a *app) instantAbandon() *cobra.Command {
	return a.instantVerb(command{
		use: "abandon NAME --storage DIR", short: "Give an instant restore up and remove all of it",
		long: `
The machine is stopped at once, without asking its guest, and removed with everything that was
made for it: what the guest has written is lost. Nothing that was there before is touched.`,
		examples: "holdfast instant abandon web --storage /srv/images",
	}, nil, func(ctx context.Context, storage, name string) error {
		if _, err := restore.ReadInstant(storage, name); err != nil {
			return err
		}
		opened := false
		var err error
		if a.vaultPath() != "" {
			err = a.withVault(ctx, func(v *vault.Vault) error {
				opened = true
				return a.abandonInstant(ctx, v, storage, name)
			})
		}
		if opened {
			return err
		}
		return a.abandonInstant(ctx, nil, storage, name) // the vault may be what was lost
	})
}

// abandonInstant gives an instant restore up. v is nil if the vault cannot be opened.
func (a *app) abandonInstant(ctx context.Context, v *vault.Vault, storage, name string) error {
	st, err := restore.ReadInstant(storage, name)
	if err != nil {
		return err
	}
	h, closeHost, err := a.instantHost(st.Host)
	if err != nil {
		return err
	}
	defer closeHost()
	watch, err := restore.WatchInstant(storage, name)
	if err != nil {
		return err
	}
	defer watch.Close()
	await, err := restore.AbandonInstant(ctx, v, h, storage, name, restore.InstantOptions{Log: a.remark})
	if err == nil && await {
		err = awaitAbandoned(ctx, watch, storage, name)
	}
	if err != nil {
		return err
	}
	if a.json {
		return a.printJSON(map[string]string{"abandoned": name})
	}
	return a.println("removed " + name + " and all that was made for it")
}

const abandonPoll = 50 * time.Millisecond

// awaitAbandoned returns when the process that hydrates has removed everything, or has ended
// without.
func awaitAbandoned(ctx context.Context, watch *restore.InstantWatch, storage, name string) error {
	for {
		served, err := watch.Served()
		if err != nil {
			return err
		}
		if !served {
			break
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(abandonPoll):
		}
	}
	_, err := restore.ReadInstant(storage, name)
	switch {
	case errors.Is(err, restore.ErrNoInstant):
		return nil
	case err != nil:
		return err
	}
	return errors.New("the process that served it has ended without doing that: run this again")
}
