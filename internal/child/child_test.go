package child_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/holdfast-vm/holdfast/internal/child"
)

// roleEnv makes this test's binary play a child. It is a name that children do not get by
// themselves.
const roleEnv = "CHILD_TEST_ROLE"

func TestMain(m *testing.M) {
	switch os.Getenv(roleEnv) {
	case "receive":
		fd, _ := strconv.Atoi(os.Args[1])
		secret, err := child.Receive(fd)
		_, again := child.Receive(fd)
		fmt.Printf("%s %v %v\n", secret, err, again != nil)
		out, err := child.Command("ls", "-l", "/proc/self/fd").CombinedOutput()
		fmt.Printf("%s %v\n", out, err)
		os.Exit(0)
	case "":
		os.Exit(m.Run())
	}
}

func TestEnvironmentHoldsWhatProgramsNeed(t *testing.T) {
	t.Setenv("HOLDFAST_PASSPHRASE", "wide open sesame")
	t.Setenv("SOME_TOKEN", "wide open sesame")
	t.Setenv("HOLDFAST_STATE", "/run/elsewhere")
	t.Setenv("LC_COLLATE", "C")
	for _, tt := range []struct {
		name          string
		env           []string
		wanted, never []string
	}{
		{"program", child.Command("true").Env, []string{"PATH=" + os.Getenv("PATH"), "LC_COLLATE=C"},
			[]string{"HOLDFAST_STATE=/run/elsewhere"}},
		{"self", child.Self("version").Env,
			[]string{"PATH=" + os.Getenv("PATH"), "LC_COLLATE=C", "HOLDFAST_STATE=/run/elsewhere"}, nil},
	} {
		for _, entry := range tt.env {
			if strings.Contains(entry, "sesame") || slices.Contains(tt.never, entry) {
				t.Errorf("%s: a child gets %s", tt.name, entry)
			}
		}
		for _, entry := range tt.wanted {
			if !slices.Contains(tt.env, entry) {
				t.Errorf("%s: a child lacks %s", tt.name, entry)
			}
		}
	}
}

// A descriptor that this process was started with, such as that of a key file, does not reach a
// child.
func TestInheritedDescriptorsStayHere(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Open(path, unix.O_RDONLY, 0) // without O_CLOEXEC, as a shell opens one
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	out, err := child.Command("ls", "-l", "/proc/self/fd").CombinedOutput()
	if err != nil || strings.Contains(string(out), path) {
		t.Errorf("a child has open:\n%s%v", out, err)
	}
}

// A secret reaches the process that it is for, once, and none that this one starts.
func TestSecretIsHandedOver(t *testing.T) {
	secret := strings.Repeat("sesame", 30_000) // more than a pipe holds
	cmd := child.Self()
	fd, sent, err := child.Hand(cmd, []byte(secret))
	if err != nil {
		t.Fatal(err)
	}
	cmd.Args = append(cmd.Args, strconv.Itoa(fd))
	cmd.Env = append(cmd.Env, roleEnv+"=receive")
	out, err := cmd.CombinedOutput()
	sent()
	words := strings.Fields(string(out))
	if err != nil || len(words) < 3 || words[0] != secret || words[1] != "<nil>" || words[2] != "true" {
		t.Fatalf("the child says %.200q, %v", out, err)
	}
	if strings.Contains(string(out), "pipe:") && strings.Count(string(out), "pipe:") > 2 { // its output and error
		t.Errorf("a child of the child has open:\n%s", out[len(secret):])
	}
	for _, fd := range []int{-1, 0, 2, 999} {
		if _, err := child.Receive(fd); err == nil {
			t.Errorf("took a secret from descriptor %d", fd)
		}
	}
}

func TestMemoryIsKept(t *testing.T) {
	t.Cleanup(func() { unix.Prctl(unix.PR_SET_DUMPABLE, 1, 0, 0, 0) })
	if err := child.KeepSecrets(); err != nil {
		t.Fatal(err)
	}
	if on, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0); err != nil || on != 0 {
		t.Errorf("memory can be dumped: %d, %v", on, err)
	}
	if out, err := child.Command("true").CombinedOutput(); err != nil { // it can still start programs
		t.Errorf("%s %v", out, err)
	}
	if out, err := child.Self("-test.list", "Memory").CombinedOutput(); err != nil {
		t.Errorf("%s %v", out, err)
	}
}
