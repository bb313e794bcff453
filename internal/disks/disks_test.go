package disks

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/diskimage"
	"github.com/holdfast-vm/holdfast/internal/extent"
	"github.com/holdfast-vm/holdfast/internal/hypervisor"
)

const mib = 1 << 20

// model is a host with one machine that takes any disk.
type model struct {
	gone    bool              // there is no such machine any more
	held    bool              // the guest does not let disks go
	fail    error             // of the next change, which is then not made
	has     map[string]string // file → name
	resized map[string]int64
}

func newModel() *model { return &model{has: map[string]string{}, resized: map[string]int64{}} }

func (m *model) URI() string { return "fake:" }

func (m *model) Machines(context.Context) ([]hypervisor.Machine, error) {
	if m.gone {
		return nil, nil
	}
	return []hypervisor.Machine{m.machine()}, nil
}

func (m *model) machine() hypervisor.Machine {
	return hypervisor.Machine{Name: "web", UUID: "u", State: hypervisor.Running, Host: "fake:"}
}

func (m *model) failed() error {
	err := m.fail
	m.fail = nil
	return err
}

func (m *model) Attach(_ context.Context, _ hypervisor.Machine, a hypervisor.Attachment) (string, error) {
	if err := m.failed(); err != nil {
		return "", err
	}
	if a.Name == "" {
		a.Name = "vdb"
	}
	m.has[a.File] = a.Name
	return a.Name, nil
}

func (m *model) Detach(_ context.Context, _ hypervisor.Machine, file string) error {
	if err := m.failed(); err != nil {
		return err
	}
	if m.held {
		return hypervisor.ErrNotReleased
	}
	delete(m.has, file)
	return nil
}

func (m *model) Attached(_ context.Context, _ hypervisor.Machine, file string) (string, bool, error) {
	return m.has[file], m.has[file] != "", nil
}

func (m *model) Resize(ctx context.Context, _ hypervisor.Machine, file string, size int64) error {
	if err := m.failed(); err != nil {
		return err
	}
	m.resized[file] = size
	if strings.HasSuffix(file, ".raw") {
		return growRaw(file, size)
	}
	return runTool(ctx, "qemu-img", "resize", "-q", "-f", "qcow2", file, fmt.Sprint(size))
}

func newPool(t *testing.T, dir string, m *model) *Pool {
	t.Helper()
	p, err := OpenPool(dir, Options{Open: func(string) (Host, error) { return m, nil }})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// memory is a content.
type memory struct {
	*bytes.Reader
	data extent.Set
}

func content(text string) memory {
	return memory{bytes.NewReader([]byte(text)), extent.Of(extent.Extent{Len: int64(len(text))})}
}

func (m memory) Extents(context.Context) (extent.Set, error) { return m.data, nil }

func (m memory) Restore(_ context.Context, w io.WriterAt, progress func(int64)) error {
	data, err := io.ReadAll(io.NewSectionReader(m, 0, m.Size()))
	if err == nil {
		_, err = w.WriteAt(data, 0)
	}
	progress(int64(len(data)))
	return err
}

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func create(t *testing.T, p *Pool, name, format string) *Disk {
	t.Helper()
	d, err := p.Create(context.Background(), CreateRequest{Name: name, Format: format, Size: mib})
	ok(t, err)
	return d
}

// requireWhole fails unless every disk of the pool is in order and nothing else lies there.
func requireWhole(t *testing.T, p *Pool) {
	t.Helper()
	all, err := p.Disks()
	ok(t, err)
	want := []string{recordDir}
	for _, d := range all {
		want = append(want, d.File)
		if s := p.Inspect(context.Background(), d); s.Problem != "" {
			t.Errorf("disk %s: %s (%s)", d.Name, s.Problem, s.Fix)
		}
	}
	entries, err := os.ReadDir(p.dir)
	ok(t, err)
	for _, e := range entries {
		if !slices.Contains(want, e.Name()) {
			t.Errorf("%s was left in the pool", e.Name())
		}
	}
}

func TestLife(t *testing.T) {
	ctx := context.Background()
	for _, format := range []string{"raw", "qcow2"} {
		t.Run(format, func(t *testing.T) {
			m := newModel()
			p := newPool(t, t.TempDir(), m)
			text := strings.Repeat("content ", 1000)
			_, err := p.Create(ctx, CreateRequest{Name: "data", Format: format, Content: content(text),
				Source: Source{Kind: "file", File: "/x"}, Tags: map[string]string{"a": "b"}})
			ok(t, err)
			if _, err := p.Create(ctx, CreateRequest{Name: "data", Size: mib}); !errors.Is(err, ErrExists) {
				t.Errorf("created again: %v", err)
			}
			d, err := p.Attach(ctx, "data", AttachRequest{Host: m, Machine: m.machine(), As: "vdc"})
			ok(t, err)
			if d.Attached.As != "vdc" || m.has[p.Path(d)] != "vdc" {
				t.Errorf("attached: %+v, %v", d.Attached, m.has)
			}
			for what, err := range map[string]error{
				"attach": second(p.Attach(ctx, "data", AttachRequest{Host: m, Machine: m.machine()})),
				"delete": p.Delete(ctx, "data"),
			} {
				if !errors.Is(err, ErrAttached) {
					t.Errorf("%s of an attached disk: %v", what, err)
				}
			}
			if _, err := p.Resize(ctx, "data", 512); !errors.Is(err, ErrShrink) {
				t.Errorf("shrunk: %v", err)
			}
			_, err = p.Resize(ctx, "data", 2*mib)
			ok(t, err)
			if m.resized[p.Path(d)] != 2*mib {
				t.Error("the machine was not told")
			}
			requireWhole(t, p)
			d, err = p.Detach(ctx, "data")
			ok(t, err)
			if _, err := p.Detach(ctx, "data"); !errors.Is(err, ErrNotAttached) {
				t.Errorf("detached again: %v", err)
			}
			_, err = p.Resize(ctx, "data", 3*mib)
			ok(t, err)
			requireContent(t, p.Path(d), format, text, 3*mib)
			requireWhole(t, p)
			old := d.ID
			ok(t, p.Delete(ctx, "data"))
			if again := create(t, p, "data", format); again.ID == old {
				t.Error("another disk of that name has the same ID")
			}
			ok(t, p.Delete(ctx, "data"))
			if left, _ := os.ReadDir(filepath.Join(p.dir, recordDir)); len(left) > 0 {
				t.Errorf("left: %v", left)
			}
		})
	}
}

func second(_ *Disk, err error) error { return err }

func requireContent(t *testing.T, path, format, text string, size int64) {
	t.Helper()
	img, err := diskimage.Open(context.Background(), path, diskimage.Options{Format: format})
	ok(t, err)
	defer img.Close()
	got := make([]byte, len(text))
	if _, err := img.ReadAt(got, 0); err != nil || string(got) != text || img.Size() != size {
		t.Errorf("%s has %d bytes and begins with %.20q, %v", path, img.Size(), got, err)
	}
}

// Wherever a command is killed, list says so, reconcile leaves the disk as it was or as it was to
// be, and nothing else lies in the pool.
func TestKilledAnywhere(t *testing.T) {
	ctx := context.Background()
	attach := func(p *Pool, m *model) error {
		return second(p.Attach(ctx, "data", AttachRequest{Host: m, Machine: m.machine()}))
	}
	for _, tt := range []struct {
		name    string
		prepare func(t *testing.T, p *Pool, m *model)
		do      func(p *Pool, m *model) error
	}{
		{"create", nil, func(p *Pool, _ *model) error {
			return second(p.Create(ctx, CreateRequest{Name: "data", Content: content("text")}))
		}},
		{"overlay", nil, func(p *Pool, _ *model) error {
			return second(p.CreateOverlay(ctx, CreateRequest{Name: "data", Content: content("text")}))
		}},
		{"attach", func(t *testing.T, p *Pool, _ *model) { create(t, p, "data", "qcow2") }, attach},
		{"detach", func(t *testing.T, p *Pool, m *model) { create(t, p, "data", "qcow2"); ok(t, attach(p, m)) },
			func(p *Pool, _ *model) error { return second(p.Detach(ctx, "data")) }},
		{"resize", func(t *testing.T, p *Pool, _ *model) { create(t, p, "data", "raw") },
			func(p *Pool, _ *model) error { return second(p.Resize(ctx, "data", 2*mib)) }},
		{"resize attached", func(t *testing.T, p *Pool, m *model) { create(t, p, "data", "raw"); ok(t, attach(p, m)) },
			func(p *Pool, _ *model) error { return second(p.Resize(ctx, "data", 2*mib)) }},
		{"delete", func(t *testing.T, p *Pool, _ *model) { create(t, p, "data", "raw") },
			func(p *Pool, _ *model) error { return p.Delete(ctx, "data") }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for at := 0; ; at++ {
				m, dir := newModel(), t.TempDir()
				if tt.prepare != nil {
					tt.prepare(t, newPool(t, dir, m), m)
				}
				killed, steps := newPool(t, dir, m), 0
				killed.step = func(string) error {
					if steps++; steps > at {
						return errCrash
					}
					return nil
				}
				err := tt.do(killed, m)
				if err == nil {
					if at == 0 {
						t.Error("it has no step at which it could be killed")
					}
					return
				}
				if !errors.Is(err, errCrash) {
					t.Fatalf("killed at step %d: %v", at, err)
				}
				requireReconciled(t, newPool(t, dir, m), at)
			}
		})
	}
}

func requireReconciled(t *testing.T, p *Pool, at int) {
	t.Helper()
	ctx := context.Background()
	before, err := p.Disks()
	ok(t, err)
	for _, d := range before {
		if s := p.Inspect(ctx, d); s.Problem == "" {
			t.Errorf("killed at step %d: the list says %+v", at, s)
		}
		_, err := p.Attach(ctx, d.Name, AttachRequest{Host: newModel(), Machine: hypervisor.Machine{Name: "other"}})
		if !errors.Is(err, ErrUnfinished) {
			t.Errorf("killed at step %d: attached all the same: %v", at, err)
		}
		did, err := p.Reconcile(ctx, d.Name)
		if err != nil || len(did) != 1 {
			t.Fatalf("killed at step %d: reconcile did %q, %v", at, did, err)
		}
	}
	after, err := p.Disks()
	ok(t, err)
	for _, d := range after {
		if d.Doing != nil {
			t.Errorf("killed at step %d: %s is still being done", at, d.Doing.What)
		}
		if d.Hydration != nil {
			ok(t, p.Delete(ctx, d.Name))
		}
	}
	requireWhole(t, p)
}

// What fails leaves the disk as it was.
func TestRefusedByTheHost(t *testing.T) {
	ctx := context.Background()
	m := newModel()
	p := newPool(t, t.TempDir(), m)
	create(t, p, "data", "raw")
	req := AttachRequest{Host: m, Machine: m.machine()}
	m.fail = hypervisor.ErrNoSlot
	if _, err := p.Attach(ctx, "data", req); !errors.Is(err, hypervisor.ErrNoSlot) {
		t.Errorf("no slot: %v", err)
	}
	requireWhole(t, p)
	_, err := p.Attach(ctx, "data", req)
	ok(t, err)
	m.fail = errors.New("refused")
	if _, err := p.Resize(ctx, "data", 2*mib); err == nil || errors.Is(err, ErrUnfinished) {
		t.Errorf("resize: %v", err)
	}
	requireWhole(t, p)
	m.held = true
	if _, err := p.Detach(ctx, "data"); !errors.Is(err, hypervisor.ErrNotReleased) {
		t.Errorf("detach: %v", err)
	}
	d, err := p.Disk("data")
	ok(t, err)
	if s := p.Inspect(ctx, d); s.State != "detach unfinished" || s.Fix == "" {
		t.Errorf("not released: %+v", s)
	}
	m.held = false
	_, err = p.Reconcile(ctx, "data")
	ok(t, err)
	requireWhole(t, p)
}

// The record follows what is: machines that are gone or lost the disk, images that were changed by
// others.
func TestBelieve(t *testing.T) {
	ctx := context.Background()
	m := newModel()
	p := newPool(t, t.TempDir(), m)
	d := create(t, p, "data", "raw")
	for name, change := range map[string]func(){
		"machine gone": func() { m.gone = true },
		"disk taken":   func() { clear(m.has) },
		"disk renamed": func() { m.has[p.Path(d)] = "vdz" },
		"image grown":  func() { ok(t, os.Truncate(p.Path(d), 4*mib)) },
	} {
		*m = *newModel()
		_, err := p.Attach(ctx, "data", AttachRequest{Host: m, Machine: m.machine()})
		ok(t, err)
		change()
		now, err := p.Disk("data")
		ok(t, err)
		if s := p.Inspect(ctx, now); s.Problem == "" || !strings.Contains(s.Fix, "reconcile") {
			t.Errorf("%s: %+v", name, s)
		}
		did, err := p.Reconcile(ctx, "data")
		if err != nil || len(did) != 1 {
			t.Errorf("%s: reconcile did %q, %v", name, did, err)
		}
		requireWhole(t, p)
		if now, err = p.Disk("data"); err == nil && now.Attached != nil {
			_, err = p.Detach(ctx, "data")
		}
		ok(t, err)
	}
	ok(t, os.Remove(p.Path(d)))
	now, err := p.Disk("data")
	ok(t, err)
	if s := p.Inspect(ctx, now); !strings.Contains(s.Problem, "missing") {
		t.Errorf("image missing: %+v", s)
	}
	ok(t, p.Delete(ctx, "data"))
}

func TestDeleteRefuses(t *testing.T) {
	ctx := context.Background()
	p := newPool(t, t.TempDir(), newModel())
	d := create(t, p, "base", "qcow2")
	overlay := filepath.Join(p.dir, "theirs.qcow2")
	if out, err := exec.Command("qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", "base.qcow2",
		overlay).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := p.Delete(ctx, "base"); !errors.Is(err, ErrBased) {
		t.Errorf("another image stands on it: %v", err)
	}
	ok(t, os.Remove(overlay))
	unlock, err := p.lock("base", workLock)
	ok(t, err)
	if err := p.Delete(ctx, "base"); !errors.Is(err, ErrBusy) {
		t.Errorf("somebody works on it: %v", err)
	}
	if s := p.Inspect(ctx, d); s.State != "ready" {
		t.Errorf("state %q", s.State)
	}
	unlock()
	for _, name := range []string{"", ".x", "a/b", "../x", strings.Repeat("a", 64)} {
		if _, err := p.Create(ctx, CreateRequest{Name: name, Size: mib}); err == nil {
			t.Errorf("a disk named %q was made", name)
		}
	}
	for _, size := range []int64{0, -512, 100} {
		if _, err := p.Create(ctx, CreateRequest{Name: "x", Size: size}); err == nil {
			t.Errorf("a disk of %d bytes was made", size)
		}
	}
	ok(t, p.Delete(ctx, "base"))
}

func FuzzRecord(f *testing.F) {
	f.Add([]byte(`{"version":1,"id":"a","name":"data","file":"data.raw","format":"raw","size":512,"hydration":{"final":"x"}}`))
	f.Add([]byte(`{"version":1,"file":"../../etc/passwd"}`))
	f.Add([]byte(`{"version":1,"id":"a","name":"data","file":"data.raw.overlay","format":"raw","size":512,"hydration":{"final":"data.raw",` +
		`"partial":{"file":".data.raw.ABCDEFGH.hf","unit":1048576,"done":"/w=="}}}`))
	f.Add([]byte(`{"version":1,"id":"a","name":"data","file":"data.raw.overlay","format":"raw","size":512,"hydration":{"final":"data.raw",` +
		`"partial":{"file":".data.raw./../../x.hf","unit":1,"done":"AA=="}}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		d, err := parseRecord(data)
		if err != nil {
			return
		}
		if d.Hydration != nil && d.Hydration.Partial != nil {
			if name := d.Hydration.Partial.File; filepath.Dir(filepath.Join("/pool", name)) != "/pool" {
				t.Fatalf("%q leads out of the pool", name)
			}
			d.Hydration.Partial.missing(extent.Set{{Off: 0, Len: 1 << 40}})
		}
		for _, file := range []string{d.File, filepath.Join("pool", d.File)} {
			if strings.Contains(file, "..") && filepath.Dir(filepath.Join("/pool", d.File)) != "/pool" {
				t.Fatalf("%q leads out of the pool", d.File)
			}
		}
		again, err := encode(d)
		if err == nil {
			_, err = parseRecord(again)
		}
		if err != nil {
			t.Fatalf("%s: %v", again, err)
		}
	})
}

func tool(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v: %s", name, args, err, out)
	}
}

// serveFile serves bytes with qemu-nbd.
func serveFile(t *testing.T, dir string, h *Hydration, data []byte) (func() error, error) {
	file := filepath.Join(t.TempDir(), "base")
	if err := os.WriteFile(file, data, 0o600); err != nil {
		return nil, err
	}
	pid := filepath.Join(t.TempDir(), "pid")
	tool(t, "qemu-nbd", "--fork", "--pid-file", pid, "-r", "-e", "8", "--persistent", "-t", "-f", "raw", "-x", h.Export,
		"-k", h.Socket, file)
	return func() error {
		text, err := os.ReadFile(pid)
		if err == nil {
			err = exec.Command("kill", strings.TrimSpace(string(text))).Run()
		}
		os.Remove(h.Socket)
		return err
	}, nil
}
