package host

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/cli"
	"github.com/holdfast-vm/holdfast/internal/hostcheck"
	"github.com/holdfast-vm/holdfast/test/vm/libvirtd"
	"github.com/holdfast-vm/holdfast/test/vm/program"
)

// verdicts returns what a check found, by check and subject.
func verdicts(t testing.TB, out string) map[string]hostcheck.Finding {
	t.Helper()
	var c cli.HostCheck
	decode(t, out, &c)
	found := map[string]hostcheck.Finding{}
	for _, f := range c.Findings {
		found[strings.TrimSpace(f.Check+" "+f.Subject)] = f
		if f.Found == "" || f.See == "" || (f.Verdict == hostcheck.Fails) && (f.Lost == "" || f.Advice == "") {
			t.Errorf("a finding says too little: %+v", f)
		}
	}
	return found
}

// On a host that has everything, everything works that can be tried here; of what is not there it
// is said what will not work.
func TestHostCheck(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	uri := libvirtd.New(t).URI
	l.point("web", domain("qemu", ""))
	storage := l.dir + "/m"
	program.Start(t, l.env(), "--connect", uri, "point", "restore", "web@latest", "--as", "new", "--storage", storage,
		"--start").Finish(t, 0)
	r := program.Start(t, l.env(), "--connect", uri, "host", "check", "--json")
	r.Wait(t)
	found := verdicts(t, r.Out.String())
	fails := 0
	for name, f := range found {
		if f.Verdict == hostcheck.Fails {
			fails++
			if f.Check != "kvm" && f.Check != "fuse" { // for the machine that the test runs on to decide
				t.Errorf("%s fails: %+v", name, f)
			}
		}
	}
	if status := r.Status(); status != 0 && (status != cli.StatusUnfit || fails == 0) {
		t.Errorf("%d checks fail, and it ends with %d", fails, status)
	}
	for name, want := range map[string]hostcheck.Verdict{"tcg": "works", "qemu": "works", "tools qemu-img": "works",
		"hosts " + uri: "works", "agents " + uri: "limited", "namespaces " + uri: "works", "nbd": "works",
		"traps stream-crash": "avoided", "state " + l.dir + "/state": "works", "isolation": "works"} {
		if got := found[name]; got.Verdict != want {
			t.Errorf("%s: %+v, want %s", name, got, want)
		}
	}
	if f := found["agents "+uri]; !strings.Contains(f.Found, "answer: 0 of 1 running machines; no answer: new") {
		t.Errorf("agents: %+v", f)
	}
	if out, err := exec.Command("virsh", "--connect", uri, "destroy", "new").CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

// What is missing is found, and its check alone decides the status if it alone is asked for.
func TestHostCheckOfAPoorHost(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	full := fmt.Sprintf("mkdir -p %[1]s/scratch; mount -t tmpfs -o size=300k scratch %[1]s/scratch\n", l.dir)
	none := fmt.Sprintf("PATH=%s; export PATH\n", l.dir)
	untried := "kvm unknown: not tried: QEMU is not installed"
	if _, err := os.Stat("/dev/kvm"); err != nil { // there is nothing to try
		untried = "kvm fails: open /dev/kvm: no such file or directory"
	}
	for _, tt := range []struct{ script, check, want string }{
		{l.noDevices(), "kvm", "kvm fails: open /dev/kvm: no such file or directory"},
		{l.noDevices(), "fuse", "fuse fails: open /dev/fuse: no such file or directory"},
		{none, "qemu", "qemu fails: QEMU is not installed"},
		{none, "tools", "tools qemu-nbd fails: not found in PATH"},
		{none, "kvm", untried},
		{full, "scratch", "scratch " + l.dir + "/scratch fails: write "},
		{full, "state", "state " + l.dir + "/state works: "},
		{"", "hosts", "hosts qmp:" + l.dir + "/q fails: "},
	} {
		out, said, status := l.lacking(tt.script, "host", "check", tt.check, "--json")
		lines := ""
		for name, f := range verdicts(t, out) {
			lines += fmt.Sprintf("%s %s: %s\n", name, f.Verdict, f.Found)
		}
		if !strings.Contains(lines, tt.want) {
			t.Errorf("%s: found\n%swant %s", tt.check, lines, tt.want)
		}
		want := 0
		if strings.Contains(tt.want, " fails:") {
			want = cli.StatusUnfit
		}
		if status != want {
			t.Errorf("%s: exit status %d, want %d: %s", tt.check, status, want, said)
		}
	}
}
