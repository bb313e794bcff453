package durable_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"syscall"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/durable"
)

// must stops the test at an error.
func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// write creates a file without making anything durable, and returns it.
func write(t *testing.T, fsys durable.FS, name string, data []byte) durable.File {
	t.Helper()
	f, err := fsys.Create(name)
	must(t, err)
	_, err = f.Write(data)
	must(t, err)
	return f
}

func read(t *testing.T, fsys durable.FS, name string) string {
	t.Helper()
	data, err := durable.ReadFile(fsys, name)
	if errors.Is(err, fs.ErrNotExist) {
		return "absent"
	}
	must(t, err)
	return string(data)
}

// outcomes returns how often each state was seen in many crashes of what do leaves behind.
func outcomes(t *testing.T, do func(*durable.Crashable), look func(durable.FS) string) map[string]int {
	t.Helper()
	fsys := durable.NewCrashable(durable.Never)
	do(fsys)
	seen := map[string]int{}
	for seed := range uint64(300) {
		seen[look(fsys.AfterCrash(rand.New(rand.NewPCG(seed, 1))))]++
	}
	return seen
}

// What may be found after a crash: all of the states named, and no other.
func TestAfterCrash(t *testing.T) {
	synced := func(c *durable.Crashable, name, data string) {
		f := write(t, c, name, []byte(data))
		must(t, f.Sync())
		must(t, f.Close())
	}
	for _, tt := range []struct {
		name string
		do   func(*durable.Crashable)
		want []string // contents of /a and /b
	}{
		{"file and name synced", func(c *durable.Crashable) {
			synced(c, "/a", "1")
			must(t, c.SyncDir("/"))
		}, []string{"1 absent"}},
		{"name not synced", func(c *durable.Crashable) {
			synced(c, "/a", "1")
		}, []string{"1 absent", "absent absent"}},
		{"bytes not synced", func(c *durable.Crashable) {
			write(t, c, "/a", []byte("1"))
			must(t, c.SyncDir("/"))
		}, []string{"1 absent", " absent", "\x00 absent"}},
		{"removal not synced", func(c *durable.Crashable) {
			synced(c, "/a", "1")
			must(t, c.SyncDir("/"))
			must(t, c.Remove("/a"))
		}, []string{"1 absent", "absent absent"}},
		{"link not synced", func(c *durable.Crashable) {
			synced(c, "/a", "1")
			must(t, c.SyncDir("/"))
			must(t, c.Link("/a", "/b"))
		}, []string{"1 absent", "1 1"}},
		{"rename not synced", func(c *durable.Crashable) {
			synced(c, "/a", "1")
			must(t, c.SyncDir("/"))
			must(t, c.RenameNew("/a", "/b"))
		}, []string{"1 absent", "1 1", "absent 1"}},
		{"replacement not synced", func(c *durable.Crashable) {
			synced(c, "/a", "1")
			synced(c, "/b", "2")
			must(t, c.SyncDir("/"))
			must(t, c.Replace("/a", "/b"))
		}, []string{"1 2", "1 1", "absent 1"}},
		{"folder not synced", func(c *durable.Crashable) {
			must(t, c.Mkdir("/d"))
			synced(c, "/d/x", "1")
			must(t, c.SyncDir("/d"))
			must(t, c.Link("/d/x", "/a"))
			must(t, c.SyncDir("/"))
		}, []string{"1 absent"}},
		{"old folder of a rename synced", func(c *durable.Crashable) {
			must(t, c.Mkdir("/d"))
			must(t, c.SyncDir("/"))
			synced(c, "/d/x", "1")
			must(t, c.SyncDir("/d"))
			must(t, c.RenameNew("/d/x", "/a"))
			must(t, c.SyncDir("/d"))
		}, []string{"1 absent"}},
		{"made again", func(c *durable.Crashable) {
			synced(c, "/a", "1")
			must(t, c.SyncDir("/"))
			must(t, c.Remove("/a"))
			synced(c, "/a", "2")
		}, []string{"1 absent", "absent absent", "2 absent"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			seen := outcomes(t, tt.do, func(fsys durable.FS) string {
				return read(t, fsys, "/a") + " " + read(t, fsys, "/b")
			})
			for _, want := range tt.want {
				if seen[want] == 0 {
					t.Errorf("%q was never found", want)
				}
				delete(seen, want)
			}
			if len(seen) > 0 {
				t.Errorf("found %v, want only %q", seen, tt.want)
			}
		})
	}
}

func TestFolderNotSyncedTakesItsFilesWithIt(t *testing.T) {
	seen := outcomes(t, func(c *durable.Crashable) {
		must(t, c.Mkdir("/d"))
		f := write(t, c, "/d/x", []byte("1"))
		must(t, f.Sync())
		must(t, c.SyncDir("/d"))
	}, func(fsys durable.FS) string { return read(t, fsys, "/d/x") })
	if seen["1"] == 0 || seen["absent"] == 0 || len(seen) != 2 {
		t.Errorf("found %v", seen)
	}
}

// What was synced stays; of the rest blocks are whole, in part, or zero, and each happens.
func TestUnsyncedBlocks(t *testing.T) {
	const block = 4096
	data := bytes.Repeat([]byte{'x'}, 5*block+100)
	kinds := outcomes(t, func(c *durable.Crashable) {
		f := write(t, c, "/a", data[:block/2])
		must(t, f.Sync())
		must(t, c.SyncDir("/"))
		_, err := f.Write(data[block/2:])
		must(t, err)
	}, func(fsys durable.FS) string {
		got := read(t, fsys, "/a")
		if len(got) < block/2 || len(got) > len(data) {
			t.Fatalf("size %d", len(got))
		}
		if got[:block/2] != string(data[:block/2]) {
			t.Fatal("synced bytes differ")
		}
		kind := fmt.Sprintf("all=%v", len(got) == len(data))
		if len(got) < 2*block {
			return kind + " short"
		}
		switch bytes.Count([]byte(got[block:2*block]), []byte{'x'}) {
		case block:
			return kind + " whole"
		case 0:
			return kind + " zero"
		default:
			return kind + " torn"
		}
	})
	for _, want := range []string{"all=true whole", "all=true zero", "all=true torn", "all=false whole",
		"all=false zero", "all=false torn"} {
		if kinds[want] == 0 {
			t.Errorf("never found %q in %v", want, kinds)
		}
	}
}

func TestPowerFailsOnceAndForAll(t *testing.T) {
	c := durable.NewCrashable(1)
	f, err := c.Create("/a")
	must(t, err)
	if _, err := f.Write([]byte("x")); !errors.Is(err, durable.ErrPowerLost) {
		t.Errorf("write: %v", err)
	}
	_, openErr := c.Open("/a")
	_, statErr := c.Stat("/a")
	_, listErr := c.ReadDir("/")
	for _, err := range []error{f.Sync(), f.Close(), c.SyncDir("/"), c.Mkdir("/d"), openErr, statErr, listErr} {
		if !errors.Is(err, durable.ErrPowerLost) {
			t.Errorf("later call: %v", err)
		}
	}
	if c.Calls() != 2 {
		t.Errorf("%d calls, want 2: those after the failure do not count", c.Calls())
	}
	after := c.AfterCrash(rand.New(rand.NewPCG(1, 1)))
	must(t, after.Mkdir("/works"))
}

func TestAfterCrashIsReproducible(t *testing.T) {
	c := durable.NewCrashable(durable.Never)
	for i := range 20 {
		must(t, c.Mkdir(fmt.Sprintf("/d%d", i)))
		write(t, c, fmt.Sprintf("/d%d/f", i), bytes.Repeat([]byte{'x'}, 10_000))
	}
	describe := func() (s string) {
		after := c.AfterCrash(rand.New(rand.NewPCG(2, 2)))
		for i := range 20 {
			s += read(t, after, fmt.Sprintf("/d%d/f", i)) + "|"
		}
		return s
	}
	if first, second := describe(), describe(); first != second {
		t.Error("the same crash twice differs")
	}
}

func TestFullDisk(t *testing.T) {
	c := durable.NewCrashable(durable.Never)
	c.SetSpace(10)
	f := write(t, c, "/a", []byte("12345678"))
	if n, err := f.Write([]byte("9abc")); n != 2 || !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("write of 4 bytes where 2 fit: %d, %v", n, err)
	}
	must(t, f.Close())
	must(t, c.Link("/a", "/b"))
	must(t, c.Remove("/a"))
	if _, err := write(t, c, "/c", nil).Write([]byte("x")); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("write while the file has another name: %v", err)
	}
	must(t, c.Remove("/b"))
	write(t, c, "/d", []byte("123456789a"))
}

func TestFailAt(t *testing.T) {
	c := durable.NewCrashable(durable.Never)
	c.FailAt(1, syscall.EIO)
	must(t, c.Mkdir("/a"))
	if err := c.Mkdir("/b"); !errors.Is(err, syscall.EIO) {
		t.Errorf("mkdir: %v", err)
	}
	must(t, c.Mkdir("/b"))
}
