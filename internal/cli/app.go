package cli

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
)

// app is one run of the program: its environment and the global flags.
type app struct {
	env Env

	vaultDir       string
	keyFile        string
	passphraseFile string
	keyFD          int    // see keyFDFlag
	handed         []byte // what was read there
	connect        []string
	json           bool
	quiet          bool
	scratch        string
	scratchLimit   string
	compression    string // of new chunks
	pool           string // of managed disks
	at             string // the entry as of which the vault is shown; "" for now
}

const rootHelp = `Holdfast takes consistent recovery points of running virtual machines, stores
them once, encrypted and deduplicated, and brings the machines back.

Two commands are enough to begin:

  holdfast vault init /srv/vault
  holdfast --vault /srv/vault vm backup NAME

The vault is a directory (--vault DIR, or file:///DIR), the machines are found through --connect: a libvirt URI
(qemu:///system, the default) or a plain QEMU process (qmp:SOCKET[,qga=SOCKET]).`

// exitStatusHelp says what the exit statuses mean.
func exitStatusHelp() string {
	text := "holdfast ends with one of these:\n\n"
	for _, s := range statuses {
		text += fmt.Sprintf("  %-4d %s\n", s.status, s.meaning)
	}
	return text + `
With --json an error is one document on standard error; standard output has a whole document or nothing:
  {"error":{"message":"…","hint":"…","kind":"wrong_key"}}`
}

const environmentHelp = `Flags that name things may be given by the environment; the flag wins:

  HOLDFAST_VAULT            --vault
  HOLDFAST_KEY_FILE         --key-file
  HOLDFAST_PASSPHRASE_FILE  --passphrase-file
  HOLDFAST_PASSPHRASE       the passphrase itself
  HOLDFAST_CONNECT          --connect; several are separated by white space
  HOLDFAST_SCRATCH          --scratch
  HOLDFAST_POOL             --pool
  HOLDFAST_PRICES           --prices
  HOLDFAST_STATE            directory of locks and notes (default /run/holdfast, else
                            $XDG_RUNTIME_DIR/holdfast)
  HOLDFAST_MEMORY           directory that remembers which vaults were used (default for root
                            /var/lib/holdfast/vaults, else ${XDG_STATE_HOME:-~/.local/state}/holdfast/vaults)

Without any of the key options, a vault's key is looked for in
${XDG_CONFIG_HOME:-~/.config}/holdfast/<first 8 digits of the vault's ID>.key,
where "vault init" puts it.`

// command is what all our commands have: help that ends with examples and the exit status.
type command struct {
	use, short, long, examples string
	statuses                   string // beyond the usual 0, 1 and 2
	args                       cobra.PositionalArgs
	reads                      bool // it shows what a vault holds, of an earlier entry too
	run                        func(cmd *cobra.Command, args []string) error
}

// showsEarlier marks a command that goes with --at.
const showsEarlier = "earlier"

func (c command) build() *cobra.Command {
	long := c.short + "."
	if c.long != "" {
		long += "\n\n" + strings.TrimSpace(c.long)
	}
	status := "Exit status: 0 done, 1 error, 2 usage"
	if c.statuses != "" {
		status += ", " + c.statuses
	}
	long += "\n\n" + status + " (holdfast help exit-status)."
	cmd := &cobra.Command{
		Use: c.use, Short: c.short, Long: long, Example: indent(c.examples),
		Args: usageArgs(c.args), RunE: c.run, DisableFlagsInUseLine: true,
	}
	if c.reads {
		cmd.Annotations = map[string]string{showsEarlier: ""}
	}
	return cmd
}

// checkEarlier refuses --at for what does not only read.
func (a *app) checkEarlier(cmd *cobra.Command, _ []string) error {
	if _, reads := cmd.Annotations[showsEarlier]; a.at == "" || reads {
		return nil
	}
	return withHint(usagef("%s: --at shows a vault as it was, and this does more than look at it", verbOf(cmd)),
		"what it goes with: %s", strings.Join(a.goWithAt(cmd.Root()), ", "))
}

// goWithAt lists the commands below c that go with --at.
func (a *app) goWithAt(c *cobra.Command) (names []string) {
	for _, sub := range c.Commands() {
		if _, reads := sub.Annotations[showsEarlier]; reads {
			names = append(names, verbOf(sub))
		}
		names = append(names, a.goWithAt(sub)...)
	}
	return names
}

func indent(examples string) string {
	lines := strings.Split(strings.TrimSpace(examples), "\n")
	return "  " + strings.Join(lines, "\n  ")
}

func usageArgs(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if check == nil {
			return nil
		}
		if err := check(cmd, args); err != nil {
			return withHint(usagef("%s: %v", verbOf(cmd), err), "usage: %s", cmd.UseLine())
		}
		return nil
	}
}

// noun is a command that only has verbs.
func noun(use, short string, verbs ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{
		Use: use, Short: short, Long: short + ".",
		RunE: func(cmd *cobra.Command, args []string) error {
			var names []string
			for _, v := range verbs {
				names = append(names, v.Name())
			}
			hint := fmt.Sprintf("%s has %s; see `holdfast %[1]s --help`",
				strings.TrimPrefix(cmd.CommandPath(), "holdfast "), strings.Join(names, ", "))
			if len(args) == 0 {
				return withHint(usagef("%s: no command was given", cmd.Name()), "%s", hint)
			}
			return withHint(usagef("%s: there is no command %q", cmd.Name(), args[0]), "%s", hint)
		},
		Args: cobra.ArbitraryArgs,
	}
	cmd.AddCommand(verbs...)
	return cmd
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use: "holdfast", Short: "Disaster recovery for virtual machines on QEMU/KVM", Long: rootHelp,
		SilenceErrors: true, SilenceUsage: true, Args: cobra.ArbitraryArgs, PersistentPreRunE: a.checkEarlier,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return cmd.Help()
			}
			return withHint(usagef("there is no command %q", args[0]), "`holdfast help` lists the commands")
		},
	}
	a.globalFlags(root)
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return withHint(usagef("%s: %v", verbOf(cmd), err), "`%s --help` lists the flags", cmd.CommandPath())
	})
	root.AddCommand(
		a.vaultCommands(), a.vmCommands(), a.imageCommands(), a.pointCommands(), a.instantCommands(), a.diskCommands(),
		a.snapshotCommands(), a.usageCommand(), a.hostCommands(), a.versionCommand(), a.guardCommand(),
		a.watchCommand(), a.instantGuardCommand(),
		&cobra.Command{Use: "exit-status", Short: "What the exit statuses mean", Long: exitStatusHelp()},
		&cobra.Command{Use: "environment", Short: "Environment variables and where keys are looked for",
			Long: environmentHelp},
	)
	return root
}

func (a *app) globalFlags(root *cobra.Command) {
	f := root.PersistentFlags()
	f.StringVar(&a.vaultDir, "vault", "", "`DIR|URI` of the vault (HOLDFAST_VAULT)")
	f.StringVar(&a.at, "at", "", "show the vault as of an earlier `entry`, VOLUME.NUMBER; only with commands that read")
	f.StringVar(&a.keyFile, "key-file", "", "`file` with an age identity or a passphrase (HOLDFAST_KEY_FILE)")
	f.StringVar(&a.passphraseFile, "passphrase-file", "",
		"`file` with a passphrase (HOLDFAST_PASSPHRASE_FILE, HOLDFAST_PASSPHRASE)")
	f.IntVar(&a.keyFD, keyFDFlag, 0, "descriptor that the key comes from; for processes in the background")
	f.MarkHidden(keyFDFlag) // nobody types it
	f.StringArrayVar(&a.connect, "connect", nil,
		"`URI` of a host: qemu:///system or qmp:SOCKET[,qga=SOCKET]; repeatable (HOLDFAST_CONNECT)")
	f.BoolVar(&a.json, "json", false, "print one JSON document")
	f.BoolVarP(&a.quiet, "quiet", "q", false, "no progress and no remarks")
	for _, name := range []string{"vault", "key-file", "passphrase-file", "connect", "at"} {
		root.RegisterFlagCompletionFunc(name, nil)
	}
}

func (a *app) versionCommand() *cobra.Command {
	return command{
		use: "version", short: "Print the version", args: cobra.NoArgs, examples: "holdfast version",
		run: func(*cobra.Command, []string) error {
			if a.json {
				return a.printJSON(map[string]string{"version": Version})
			}
			return a.println("holdfast " + Version)
		},
	}.build()
}

// verbOf returns noun and verb of a command.
func verbOf(cmd *cobra.Command) string { return strings.TrimPrefix(cmd.CommandPath(), "holdfast ") }

// vaultPath returns the path or URI of the vault that was asked for, or "".
func (a *app) vaultPath() string {
	if a.vaultDir != "" {
		return a.vaultDir
	}
	return a.env.Getenv("HOLDFAST_VAULT")
}

// connections returns the hosts that were asked for.
func (a *app) connections() []string {
	if len(a.connect) > 0 {
		return a.connect
	}
	if uris := strings.Fields(a.env.Getenv("HOLDFAST_CONNECT")); len(uris) > 0 {
		return uris
	}
	return []string{"qemu:///system"}
}

// remark tells people something on standard error.
func (a *app) remark(format string, args ...any) {
	if !a.quiet && !a.json {
		fmt.Fprintln(a.env.Stderr, visible(fmt.Sprintf(format, args...)))
	}
}

func (a *app) warn(warnings []string) {
	for _, w := range warnings {
		a.remark("warning: %s", oneLine(w))
	}
}
