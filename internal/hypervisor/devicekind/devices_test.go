package devicekind

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the table of the manual anew")

func names(t *testing.T, file string) []string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", file))
	if err != nil {
		t.Fatal(err)
	}
	return strings.Fields(string(text))
}

// Everything that QEMU 7.2 and 10.0, and libvirt 9.0 and 11.3, say that they know is in the table.
func TestTableKnowsAllKinds(t *testing.T) {
	for _, tt := range []struct {
		files string
		find  func(string) Row
	}{
		{"qemu-*-devices.txt", Device}, {"qemu-*-objects.txt", Object}, {"qemu-*-options.txt", Option},
		{"libvirt-*-elements.txt", func(name string) Row {
			tag, sub, _ := strings.Cut(name, "/")
			return Element(tag, sub)
		}},
	} {
		files, err := filepath.Glob(filepath.Join("testdata", tt.files))
		if err != nil || len(files) != 2 {
			t.Fatalf("%s: %q, %v", tt.files, files, err)
		}
		for _, file := range files {
			for _, name := range names(t, filepath.Base(file)) {
				if tt.find(name).Kind == Unknown.Kind {
					t.Errorf("%s: %s is in no row", file, name)
				}
			}
		}
	}
}

// What the QEMU of this host offers is in the table, too: a newer one shows what is missing.
func TestTableKnowsThisHost(t *testing.T) {
	for what, find := range map[string]func(string) Row{"-device": Device, "-object": Object} {
		out, err := exec.Command("qemu-system-x86_64", what, "help").Output()
		if err != nil {
			t.Fatal(err)
		}
		found := 0
		for _, m := range regexp.MustCompile(`(?m)^(?:name "|  )([A-Za-z0-9_.-]+)`).FindAllStringSubmatch(string(out), -1) {
			if found++; !strings.HasSuffix(m[1], "-cpu") && find(m[1]).Kind == Unknown.Kind {
				t.Errorf("%s %s is in no row", what, m[1])
			}
		}
		if found < 20 {
			t.Errorf("%s help names only %d kinds", what, found)
		}
	}
}

// Each name is written out in one row at most, and of patterns one is the longest.
func TestRowsDoNotOverlap(t *testing.T) {
	for _, of := range []func(Row) string{
		func(r Row) string { return r.Devices }, func(r Row) string { return r.Objects },
		func(r Row) string { return r.Options }, func(r Row) string { return r.Libvirt },
	} {
		seen := map[string]string{}
		for _, r := range Table {
			for name := range strings.FieldsSeq(of(r)) {
				if other := seen[name]; other != "" {
					t.Errorf("%s stands in %s and in %s", name, other, r.Kind)
				}
				seen[name] = r.Kind
			}
		}
		for _, name := range slices.Concat(names(t, "qemu-10.0-devices.txt"), names(t, "qemu-10.0-objects.txt")) {
			kinds := map[int]string{} // by the length of the pattern
			for _, r := range Table {
				for pattern := range strings.FieldsSeq(of(r)) {
					if ok, _ := filepath.Match(pattern, name); !ok {
						continue
					}
					if other := kinds[len(pattern)]; other != "" && other != r.Kind {
						t.Errorf("%s is as much %s as %s", name, other, r.Kind)
					}
					kinds[len(pattern)] = r.Kind
				}
			}
		}
	}
}

// What is not known is not held, and says so.
func TestUnknown(t *testing.T) {
	for _, r := range []Row{Device("quantum-disk-pci"), Object("memory-backend-qubit"), Option("qubits"),
		Element("qubit", ""),
		Element("memory", "qubit"), Element("disk", "qubit"), Element("hostdev", "qubit")} {
		if o := r.Omit("q0", "/dev/q"); r.Fate != LeftOut || o.Kind != "unknown" || o.Why != "not known: not held" {
			t.Errorf("%+v says %+v", r, o)
		}
	}
}

const manual = "../../../docs/manual/devices.md"

// The table of the manual is this one.
func TestManual(t *testing.T) {
	var b strings.Builder
	b.WriteString("| kind | what | in QEMU | in libvirt | in a point | why | in a restore and a drill " +
		"|\n|---|---|---|---|---|---|---|\n")
	for _, r := range append(slices.Clone(Table), Unknown) {
		b.WriteString(manualRow(r))
	}
	text, err := os.ReadFile(manual)
	if err != nil {
		t.Fatal(err)
	}
	const begin, end = "<!-- table -->\n", "<!-- end of table -->\n"
	before, rest, ok := strings.Cut(string(text), begin)
	have, after, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("%s has no %q … %q", manual, begin, end)
	}
	if have == b.String() {
		return
	}
	if !*update {
		t.Fatalf("%s has another table; `go test ./internal/hypervisor/devicekind -update` writes\n%s", manual,
			b.String())
	}
	if err := os.WriteFile(manual, []byte(before+begin+b.String()+end+after), 0o644); err != nil {
		t.Fatal(err)
	}
}

func manualRow(r Row) string {
	var qemu []string
	for _, d := range strings.Fields(r.Devices) {
		qemu = append(qemu, "`"+d+"`")
	}
	for _, o := range strings.Fields(r.Objects) {
		qemu = append(qemu, "`"+o+"`")
	}
	if r.Kind != "setting" { // too many, and all alike
		for _, o := range strings.Fields(r.Options) {
			qemu = append(qemu, "`-"+o+"`")
		}
	}
	var libvirt []string
	for _, e := range strings.Fields(r.Libvirt) {
		libvirt = append(libvirt, "`"+e+"`")
	}
	return fmt.Sprintf("| `%s` | %s | %s | %s | **%s** | %s | %s |\n", r.Kind, r.What, strings.Join(qemu, " "),
		strings.Join(libvirt, " "),
		r.Fate, r.Why, r.Restore)
}
