package guest

import (
	"os"
	"strings"
	"testing"
)

func TestCommandLineOfAgent(t *testing.T) {
	for _, tt := range []struct{ args, hook, config string }{
		{"qemu-ga", "", defaultConfig},
		{"qemu-ga -F", defaultHook, defaultConfig},
		{"qemu-ga -F/opt/hook", "/opt/hook", defaultConfig},
		{"qemu-ga -F /opt/hook", defaultHook, defaultConfig}, // an optional value is attached
		{"qemu-ga --fsfreeze-hook", defaultHook, defaultConfig},
		{"qemu-ga --fsfreeze-hook=/opt/hook", "/opt/hook", defaultConfig},
		{"qemu-ga --fsfreeze", defaultHook, defaultConfig},
		{"qemu-ga -m virtio-serial -p /dev/virtio-ports/org.qemu.guest_agent.0 -t /run -d -F/etc/hook -l /run/qga.log",
			"/etc/hook", defaultConfig},
		{"qemu-ga -dvF/etc/hook", "/etc/hook", defaultConfig},
		{"qemu-ga -p -F", "", defaultConfig}, // the value of -p
		{"qemu-ga -t/run/F", "", defaultConfig},
		{"qemu-ga -c /etc/qga.conf", "", "/etc/qga.conf"},
		{"qemu-ga -c/etc/qga.conf", "", "/etc/qga.conf"},
		{"qemu-ga --config=/etc/qga.conf", "", "/etc/qga.conf"},
		{"qemu-ga --config /etc/qga.conf", "", "/etc/qga.conf"},
		{"qemu-ga -- -F", "", defaultConfig},
		{"qemu-ga --logfile=/F --verbose", "", defaultConfig},
		{"", "", defaultConfig},
	} {
		if hook, config := parseCommandLine(strings.Fields(tt.args)); hook != tt.hook || config != tt.config {
			t.Errorf("%q: hook %q, config %q; want %q, %q", tt.args, hook, config, tt.hook, tt.config)
		}
	}
}

func TestConfigOfAgent(t *testing.T) {
	for text, want := range map[string]string{
		"[general]\nfsfreeze-hook=/a\n":                      "/a",
		"# x\n[general]\n daemon=true\nfsfreeze-hook = /a b": "/a b",
		"[other]\nfsfreeze-hook=/a\n":                        "",
		"[general]\n#fsfreeze-hook=/a\n":                     "",
		"":                                                   "",
	} {
		if got := parseConfig(text); got != want {
			t.Errorf("parseConfig(%q) = %q, want %q", text, got, want)
		}
	}
}

func TestIgnoresFailures(t *testing.T) {
	for script, want := range map[string]bool{
		stockHook:                       true,
		ourHook:                         false,
		"":                              true,
		"#!/bin/sh\n# only a comment\n": true,
		"#!/bin/sh\nset -e\ncheckpoint\nexit 0\n":          false,
		"#!/bin/sh\ncheckpoint || exit 1\nexit 0\n":        false,
		"#!/bin/sh\ncheckpoint\nstatus=$?\nexit $status\n": false,
		"#!/bin/sh\n[ -d x ] || exit 0\nrun\nexit 0\n":     true,
		"\x7fELF\x02": false,
	} {
		if got := ignoresFailures(script); got != want {
			t.Errorf("ignoresFailures(%q) = %v, want %v", script, got, want)
		}
	}
}

// The dispatcher that we ship is one whose hooks count, if it has any.
func TestOurDispatcherCounts(t *testing.T) {
	script, err := os.ReadFile("../../packaging/guest/fsfreeze-hook")
	if err != nil {
		t.Fatal(err)
	}
	text := string(script)
	if ignoresFailures(text) || !strings.Contains(text, hookDir) || !strings.Contains(text, hookDirEnv) {
		t.Error("the shipped dispatcher is not recognised as one that stops the quiesce when a hook fails")
	}
}

func FuzzEvidence(f *testing.F) {
	f.Add(cmdline, "[general]\nfsfreeze-hook=/a\n")
	f.Add("qemu-ga\x00-c\x00", stockHook)
	f.Add("qemu-ga\x00-\x00--\x00-F", ourHook)
	f.Fuzz(func(t *testing.T, args, text string) {
		hook, config := parseCommandLine(strings.Split(args, "\x00"))
		if strings.Contains(hook+config, "\x00") {
			t.Errorf("hook %q, config %q", hook, config)
		}
		if hook := parseConfig(text); strings.Contains(hook, "\n") {
			t.Errorf("hook %q", hook)
		}
		ignoresFailures(text)
		variable(args, hookDirEnv)
	})
}
