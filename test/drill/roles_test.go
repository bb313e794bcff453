package drill

import (
	"context"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/drill/inside"
	"github.com/holdfast-vm/holdfast/internal/drill/role"
	"github.com/holdfast-vm/holdfast/internal/guest"
	"github.com/holdfast-vm/holdfast/test/vm"
	"github.com/holdfast-vm/holdfast/test/vm/program"
)

// services is a guest whose process 1 is systemd, reached through its agent as a drill reaches it.
type services struct {
	t     *testing.T
	guest *inside.Guest
}

func startServices(t *testing.T) *services {
	t.Helper()
	dir := t.TempDir()
	disk := filepath.Join(dir, "vda.qcow2")
	if out, err := exec.Command("qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", vm.LabServices(t),
		disk).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	v := vm.StartQEMU(t, vm.Options{Name: "services", Dir: dir, System: vm.Disk{Path: disk}, Init: "/sbin/init",
		Memory: 512, DataSize: 1 << 20, Work: "none"})
	agent, err := guest.DialUnix(t.Context(), v.QGAPath)
	if err != nil {
		t.Fatal(err)
	}
	s := &services{t: t}
	program.Until(t, "the agent answers", func() bool {
		s.guest, err = inside.Open(t.Context(), agent)
		return err == nil
	})
	return s
}

func (s *services) run(c inside.Command) inside.Outcome {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), program.Patience)
	defer cancel()
	out, err := s.guest.Run(ctx, c)
	if err != nil {
		s.t.Fatalf("%s: %v", c.Shown, err)
	}
	return out
}

func (s *services) ask(name string) inside.Outcome {
	s.t.Helper()
	c, err := role.Parse(name)
	if err != nil {
		s.t.Fatal(err)
	}
	return s.run(c.Unix)
}

func (s *services) must(command string) {
	s.t.Helper()
	if out := s.run(role.Given(command).Unix); out.Status != 0 {
		s.t.Fatalf("%s: %+v", command, out)
	}
}

// yes fails the test unless a role says yes, no unless it says no, with these words.
func (s *services) yes(name string) {
	s.t.Helper()
	if out := s.ask(name); out.Status != 0 {
		s.t.Errorf("%s: %+v", name, out)
	}
}

func (s *services) no(name, words string) {
	s.t.Helper()
	if out := s.ask(name); out.Status == 0 || !strings.Contains(out.Output, words) {
		s.t.Errorf("%s: %+v, want a no with %q", name, out, words)
	}
}

// Roles say of a real system what it is: yes while its services serve, and no when one is off, has
// failed, or serves what is not whole.
func TestRolesInAGuest(t *testing.T) {
	s := startServices(t)
	program.Until(t, "systemd has started everything", func() bool { return s.ask("systemd").Status == 0 })
	for _, name := range []string{"service", "systemd=postgresql@15-main.service", "service=web", "postgresql",
		"postgresql=5432", "tcp=80", "tcp=5432", "http=http://localhost/", "file=/srv/www/index.html"} {
		s.yes(name)
	}
	if out := s.run(role.FileSystems().Unix); out.Status != 0 {
		t.Errorf("file systems: %+v", out)
	}
	s.no("systemd=broken", "inactive")
	s.no("postgresql=5433", "no response")
	s.no("http=http://localhost/none", "status 8")
	s.no("http=http://localhost:81/", "status 4")
	s.no("tcp=81", "nothing listens on TCP port 81")

	s.must("systemctl start broken; systemctl stop web; test $(systemctl is-failed broken) = failed")
	s.no("systemd", "broken.service")
	s.no("systemd=broken", "failed")
	s.no("service=web", "inactive")
	s.no("http=http://localhost/", "status 4")

	s.must("systemctl stop postgresql@15-main")
	s.no("postgresql", "no response")
	// A server that takes connections, and has lost the list of its databases.
	s.must("cp /dev/null /var/lib/postgresql/15/main/global/1262; systemctl start postgresql@15-main")
	program.Until(t, "the server takes connections", func() bool {
		return s.run(role.Given("pg_isready -q").Unix).Status == 0
	})
	s.no("postgresql", "")
}
