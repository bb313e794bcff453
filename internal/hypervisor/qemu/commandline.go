package qemu

import "strings"

// option is one option of QEMU's command line. An image without an option has the name "".
type option struct {
	name     string // without dashes
	value    string
	hasValue bool
}

// commandLine is QEMU's command line, option by option.
type commandLine struct {
	program string
	options []option
}

// flags are the options that take no value.
var flags = wordSet(`S s daemonize nographic nodefaults no-user-config nodefconfig no-reboot no-shutdown enable-kvm no-acpi no-hpet
	no-fd-bootchk snapshot full-screen alt-grab ctrl-grab no-frame portrait old-param version h help usb win2k-hack rtc-td-hack
	mem-prealloc singlestep only-migratable preconfig no-quit semihosting enable-fips curses sdl show-cursor enable-sync-profile
	async-teardown xen-attach xen-domid-restrict no-kvm enable-hax no-tdf no-kvm-irqchip no-kvm-pit`)

func wordSet(words string) map[string]bool {
	set := make(map[string]bool)
	for _, w := range strings.Fields(words) {
		set[w] = true
	}
	return set
}

// parseCommandLine splits args, the program's name first. It accepts anything: an option at the end
// that lacks its value has none.
func parseCommandLine(args []string) commandLine {
	var cl commandLine
	if len(args) == 0 {
		return cl
	}
	cl.program = args[0]
	for i := 1; i < len(args); i++ {
		a := args[i]
		name := strings.TrimPrefix(strings.TrimPrefix(a, "-"), "-")
		if name == a || name == "" || strings.HasPrefix(name, "-") {
			cl.options = append(cl.options, option{value: a, hasValue: true})
			continue
		}
		o := option{name: name}
		if !flags[o.name] && i+1 < len(args) {
			i++
			o.value, o.hasValue = args[i], true
		}
		cl.options = append(cl.options, o)
	}
	return cl
}

// args is the reverse of parseCommandLine.
func (cl *commandLine) args() []string {
	out := []string{cl.program}
	for _, o := range cl.options {
		if o.name != "" {
			out = append(out, "-"+o.name)
		}
		if o.hasValue {
			out = append(out, o.value)
		}
	}
	return out
}

// values returns the values of all options of a name.
func (cl *commandLine) values(name string) []string {
	var out []string
	for _, o := range cl.options {
		if o.name == name && o.hasValue {
			out = append(out, o.value)
		}
	}
	return out
}

// first returns the value of the first option of a name, "" if there is none.
func (cl *commandLine) first(name string) string {
	if v := cl.values(name); len(v) > 0 {
		return v[0]
	}
	return ""
}

func (cl *commandLine) has(name string) bool {
	for _, o := range cl.options {
		if o.name == name {
			return true
		}
	}
	return false
}

// set replaces the value of the first option of a name, or adds the option.
func (cl *commandLine) set(name, value string) {
	for i := range cl.options {
		if cl.options[i].name == name {
			cl.options[i].value, cl.options[i].hasValue = value, true
			return
		}
	}
	cl.options = append(cl.options, option{name: name, value: value, hasValue: true})
}

// drop removes the options that match.
func (cl *commandLine) drop(match func(o option) bool) {
	kept := cl.options[:0]
	for _, o := range cl.options {
		if !match(o) {
			kept = append(kept, o)
		}
	}
	cl.options = kept
}

// edit hands the properties of every option that has one of names to change and stores what that
// left.
func (cl *commandLine) edit(names string, change func(o *option, p *props)) {
	wanted := wordSet(names)
	for i := range cl.options {
		o := &cl.options[i]
		if !o.hasValue || !wanted[o.name] {
			continue
		}
		p := parseProps(o.value, impliedKey[o.name])
		change(o, p)
		o.value = p.String()
	}
}

const agentPort = "org.qemu.guest_agent.0"

// agentSocket returns the path of the unix socket behind the guest agent's port, "" if there is
// none.
func (cl *commandLine) agentSocket() string {
	if p := cl.agentChardev(); p != nil && p.get("backend") == "socket" {
		return p.get("path")
	}
	return ""
}

func (cl *commandLine) agentChardev() *props {
	for _, v := range cl.values("device") {
		if p := parseProps(v, "driver"); p.get("name") == agentPort {
			return cl.byID("chardev", p.get("chardev"))
		}
	}
	return nil
}

// byID returns the properties of the option of a name that has the ID, nil if there is none.
func (cl *commandLine) byID(name, id string) *props {
	for _, v := range cl.values(name) {
		if p := parseProps(v, impliedKey[name]); id != "" && p.get("id") == id {
			return p
		}
	}
	return nil
}
