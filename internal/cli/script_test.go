package cli_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/holdfast-vm/holdfast/internal/cli"
	"github.com/holdfast-vm/holdfast/test/vm/libvirtd"
)

// TestMain makes this test binary the holdfast that scripts run, with the very main of the real
// one.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"holdfast": func() { os.Exit(cli.Main()) }})
}

func TestScripts(t *testing.T) {
	testscript.Run(t, params(testscript.Params{Dir: "testdata"}, nil))
}

// The same with machines of a real libvirtd, whose URI is in $LIBVIRT.
// Each script has a libvirtd of its own.
func TestLibvirt(t *testing.T) {
	scripts, err := filepath.Glob("testdata/libvirt/*.txtar")
	if err != nil || len(scripts) == 0 {
		t.Fatalf("scripts %q: %v", scripts, err)
	}
	for _, script := range scripts {
		t.Run(filepath.Base(script), func(t *testing.T) {
			daemon := libvirtd.New(t)
			testscript.Run(t, params(testscript.Params{Files: []string{script}},
				map[string]string{"LIBVIRT": daemon.URI}))
		})
	}
}

func params(p testscript.Params, vars map[string]string) testscript.Params {
	p.RequireExplicitExec, p.RequireUniqueNames = true, true
	p.Setup = func(env *testscript.Env) error {
		env.Setenv("HOME", env.WorkDir)
		env.Setenv("XDG_CONFIG_HOME", filepath.Join(env.WorkDir, "config"))
		env.Setenv("HOLDFAST_STATE", filepath.Join(env.WorkDir, "state"))
		env.Setenv("HOLDFAST_MEMORY", filepath.Join(env.WorkDir, "memory"))
		env.Setenv("HOLDFAST_SCRATCH", filepath.Join(env.WorkDir, "scratch"))
		for k, v := range vars {
			env.Setenv(k, v)
		}
		return nil
	}
	p.Cmds = map[string]func(ts *testscript.TestScript, neg bool, args []string){
		"status": statusCmd,
		"field":  fieldCmd,
		"fill":   fillCmd,
		"flip":   flipCmd,
		"qemu":   qemuCmd,
		"hmp":    hmpCmd,
		"agent":  agentCmd,
		"newvm":  newVMCmd,
		"note":   noteCmd,
		"killed": killCmd,
	}
	return p
}

// statusCmd runs "status N PROGRAM ARGS...": the program must end with exit status N.
func statusCmd(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: status N program args...")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec(args[1], args[2:]...)
	got := 0
	if err != nil {
		var exit interface{ ExitCode() int }
		if !asExit(err, &exit) {
			ts.Fatalf("%v: %v", args[1:], err)
		}
		got = exit.ExitCode()
	}
	if got != want {
		ts.Fatalf("%v: exit status %d, want %d", args[1:], got, want)
	}
}

func asExit(err error, exit *interface{ ExitCode() int }) bool {
	e, ok := err.(interface{ ExitCode() int })
	if ok {
		*exit = e
	}
	return ok
}

// fieldCmd runs "field FILE PATH [VALUE]": the JSON in FILE (stdout, stderr) has VALUE at PATH,
// such as disks.0.name. With "field FILE PATH > VAR" the value is put into a variable. "count" at
// the end of PATH is the length of a list.
func fieldCmd(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 3 {
		ts.Fatalf("usage: field file path value, or field file path > variable")
	}
	var doc any
	dec := json.NewDecoder(strings.NewReader(ts.ReadFile(args[0])))
	dec.UseNumber()
	ts.Check(dec.Decode(&doc))
	if dec.More() {
		ts.Fatalf("%s holds more than one JSON document", args[0])
	}
	got, err := lookup(doc, args[1])
	ts.Check(err)
	if args[2] == ">" {
		ts.Setenv(args[3], got)
		return
	}
	if (got == args[2]) == neg {
		ts.Fatalf("%s is %q, want %q (not: %v)", args[1], got, args[2], neg)
	}
}

func lookup(doc any, path string) (string, error) {
	for _, part := range strings.Split(path, ".") {
		switch v := doc.(type) {
		case map[string]any:
			next, ok := v[part]
			if !ok {
				return "", fmt.Errorf("no %q on the way of %s", part, path)
			}
			doc = next
		case []any:
			if part == "count" {
				return strconv.Itoa(len(v)), nil
			}
			i, err := strconv.Atoi(part)
			if err != nil || i >= len(v) {
				return "", fmt.Errorf("no element %q on the way of %s", part, path)
			}
			doc = v[i]
		default:
			return "", fmt.Errorf("nothing below %v for %q of %s", doc, part, path)
		}
	}
	return fmt.Sprint(doc), nil
}

// fillCmd runs "fill FILE OFFSET LENGTH SEED": it writes bytes that are the same for the same seed,
// making the file if needed.
func fillCmd(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 4 {
		ts.Fatalf("usage: fill file offset length seed")
	}
	var n [3]int64
	for i, s := range args[1:] {
		v, err := strconv.ParseInt(s, 10, 64)
		ts.Check(err)
		n[i] = v
	}
	data := make([]byte, n[1])
	x := uint64(n[2])*2654435761 + 88172645463325252
	for i := range data {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		data[i] = byte(x)
	}
	f, err := os.OpenFile(ts.MkAbs(args[0]), os.O_RDWR|os.O_CREATE, 0o600)
	ts.Check(err)
	_, err = f.WriteAt(data, n[0])
	ts.Check(err)
	ts.Check(f.Close())
}

// flipCmd runs "flip DIR": it flips a bit in the middle of the largest file below DIR.
func flipCmd(ts *testscript.TestScript, _ bool, args []string) {
	var path string
	var size int64
	ts.Check(filepath.Walk(ts.MkAbs(args[0]), func(p string, info os.FileInfo, err error) error {
		if err == nil && info.Mode().IsRegular() && info.Size() > size {
			path, size = p, info.Size()
		}
		return err
	}))
	ts.Check(os.Chmod(path, 0o600))
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	ts.Check(err)
	b := make([]byte, 1)
	_, err = f.ReadAt(b, size/2)
	ts.Check(err)
	b[0] ^= 0x10
	_, err = f.WriteAt(b, size/2)
	ts.Check(err)
	ts.Check(f.Close())
}
