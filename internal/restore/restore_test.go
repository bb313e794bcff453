package restore_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/blob/mem"
	"github.com/holdfast-vm/holdfast/internal/diskimage"
	"github.com/holdfast-vm/holdfast/internal/extent"
	"github.com/holdfast-vm/holdfast/internal/hypervisor"
	"github.com/holdfast-vm/holdfast/internal/point"
	"github.com/holdfast-vm/holdfast/internal/restore"
	"github.com/holdfast-vm/holdfast/internal/vault"
)

const granule = 16 << 10

var (
	errMade = errors.New("made to fail")
	testKey = vault.Key{Identity: "AGE-SECRET-KEY-1GFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPQ4EGAEX"}
)

// lab is a vault with one point of a machine.
type lab struct {
	store *mem.Store
	v     *vault.Vault
	p     *point.RecoveryPoint
	disks map[string][]byte
	files map[string][]byte // by role/name
}

func newLab(t *testing.T, rng *rand.Rand) *lab {
	t.Helper()
	ctx := context.Background()
	l := &lab{store: mem.New(), disks: map[string][]byte{}, files: map[string][]byte{}}
	if _, err := vault.Init(ctx, l.store,
		vault.InitOptions{ChunkSize: granule, Keys: []vault.NamedKey{{Name: "k", Key: testKey}}}); err != nil {
		t.Fatal(err)
	}
	var err error
	if l.v, err = vault.Open(ctx, l.store, testKey, vault.Options{Workers: 2}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.v.Close() })
	s, err := l.v.Begin(ctx, "")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Abort()
	put := func(data []byte) string {
		out, err := s.PutDisk(ctx, vault.DiskInput{Size: int64(len(data)),
			Data: extent.Of(extent.Extent{Len: int64(len(data))}), Source: bytes.NewReader(data)})
		if err != nil {
			t.Fatal(err)
		}
		return out.Root
	}
	l.p = &point.RecoveryPoint{ID: point.NewID(), VM: "web", MachineUUID: "11111111-2222-3333-4444-555555555555",
		Definition: point.Definition{Kind: point.ForLibvirt}, ConsistencyReason: "test"}
	for _, d := range []struct{ name, format string }{{"vda", "qcow2"}, {"vdb", "raw"}, {"vdc", "vmdk"}} {
		data := make([]byte, (1+rng.IntN(30))*granule+rng.IntN(3)*512)
		for range 3 {
			fill(rng, data)
		}
		l.disks[d.name] = data
		l.p.Disks = append(l.p.Disks, point.Disk{Name: d.name, Size: int64(len(data)), Root: put(data),
			Source: point.Source{Format: d.format}})
	}
	for _, f := range []point.File{{Role: "nvram", Name: "web_VARS.fd", Mode: 0o640},
		{Role: "tpm", Name: "tpm2/state", Mode: 0o600}} {
		data := make([]byte, 100_000)
		fill(rng, data)
		l.files[f.Role+"/"+f.Name] = data
		f.Size, f.Root = int64(len(data)), put(data)
		l.p.Files = append(l.p.Files, f)
	}
	if err := s.Commit(ctx, l.p); err != nil {
		t.Fatal(err)
	}
	return l
}

// fill writes random bytes into a random part of data.
func fill(rng *rand.Rand, data []byte) {
	from := rng.IntN(len(data))
	part := data[from : from+rng.IntN(len(data)-from)]
	var seed [32]byte
	binary.LittleEndian.PutUint64(seed[:], rng.Uint64())
	rand.NewChaCha8(seed).Read(part)
}

// requireImage fails unless the image at path is the disk.
func requireImage(t *testing.T, path, format string, want []byte) {
	t.Helper()
	img, err := diskimage.Open(context.Background(), path, diskimage.Options{Format: format})
	if err != nil {
		t.Fatal(err)
	}
	defer img.Close()
	got, err := io.ReadAll(io.NewSectionReader(img, 0, img.Size()))
	if err != nil || !bytes.Equal(got, want) {
		t.Fatalf("%s holds %d bytes that are not the disk's %d (%v)", path, len(got), len(want), err)
	}
}

// listed returns all names below dir.
func listed(t *testing.T, dir string) []string {
	t.Helper()
	var names []string
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err == nil && path != dir {
			names = append(names, strings.TrimPrefix(path, dir+"/"))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

func TestDisksAreExact(t *testing.T) {
	for seed := range uint64(10) {
		l := newLab(t, rand.New(rand.NewPCG(seed, 2)))
		dir := t.TempDir()
		for _, tt := range []struct{ disk, file, asked, format string }{
			{"vda", "a.qcow2", "", "qcow2"}, {"vda", "a.img", "", "raw"}, {"vdb", "b", "qcow2", "qcow2"},
			{"vdc", "c.qcow2", "raw", "raw"},
		} {
			path := filepath.Join(dir, tt.file)
			done, err := restore.Disk(context.Background(), l.v,
				restore.DiskRequest{Point: l.p, Disk: tt.disk, To: path, Format: tt.asked})
			if err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
			if done.Format != tt.format {
				t.Errorf("%s was written as %s, want %s", tt.file, done.Format, tt.format)
			}
			requireImage(t, path, tt.format, l.disks[tt.disk])
			if tt.format == "qcow2" {
				if out, err := exec.Command("qemu-img", "check", path).CombinedOutput(); err != nil {
					t.Errorf("qemu-img check: %v: %s", err, out)
				}
			}
		}
	}
}

// What cannot be restored leaves no trace, and what was there stays.
func TestDiskRefusals(t *testing.T) {
	l := newLab(t, rand.New(rand.NewPCG(1, 2)))
	dir := t.TempDir()
	there := filepath.Join(dir, "there")
	if err := os.WriteFile(there, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, disk, to string
		want           error
	}{
		{"no such disk", "vdz", "new", point.ErrNoDisk},
		{"which disk", "", "new", point.ErrNoDisk},
		{"target exists", "vda", "there", diskimage.ErrExists},
		{"no such directory", "vda", "no/new", fs.ErrNotExist},
	} {
		_, err := restore.Disk(context.Background(), l.v,
			restore.DiskRequest{Point: l.p, Disk: tt.disk, To: filepath.Join(dir, tt.to)})
		if !errors.Is(err, tt.want) {
			t.Errorf("%s: %v, want %v", tt.name, err, tt.want)
		}
	}
	if _, err := restore.Disk(context.Background(), l.v,
		restore.DiskRequest{Point: l.p, Disk: "vda", To: filepath.Join(dir, "x"), Format: "vmdk"}); err == nil {
		t.Error("a vmdk was written")
	}
	if got, err := os.ReadFile(there); err != nil || string(got) != "precious" {
		t.Errorf("the target that was there holds %q (%v)", got, err)
	}
	if names := listed(t, dir); len(names) != 1 {
		t.Errorf("left behind: %v", names)
	}
	done, err := restore.Disk(context.Background(), l.v,
		restore.DiskRequest{Point: l.p, Disk: "vda", To: there, Force: true})
	if err != nil {
		t.Fatal(err)
	}
	requireImage(t, there, done.Format, l.disks["vda"])
}

// A damaged vault is never restored from in silence.
func TestDamageIsNotRestored(t *testing.T) {
	l := newLab(t, rand.New(rand.NewPCG(3, 2)))
	for info, err := range l.store.List(context.Background(), "pack/", "") {
		if err != nil {
			t.Fatal(err)
		}
		if err := l.store.Corrupt(info.Name, func(p []byte) []byte { p[len(p)/2] ^= 4; return p }); err != nil {
			t.Fatal(err)
		}
	}
	dir := t.TempDir()
	failed := 0
	for disk := range l.disks {
		path := filepath.Join(dir, disk)
		_, err := restore.Disk(context.Background(), l.v, restore.DiskRequest{Point: l.p, Disk: disk, To: path})
		if err == nil {
			requireImage(t, path, "raw", l.disks[disk])
			os.Remove(path)
			continue
		}
		failed++
		if !errors.Is(err, vault.ErrCorrupt) {
			t.Errorf("%s: %v, want ErrCorrupt", disk, err)
		}
	}
	if names := listed(t, dir); failed == 0 || len(names) != 0 {
		t.Errorf("%d disks failed, left behind: %v", failed, names)
	}
}

// host is a hypervisor that defines nothing, but looks at what it is given.
type host struct {
	machines []hypervisor.Machine
	err      error // of Machines
	fail     error // of Define
	got      hypervisor.Rebuild
	prospect hypervisor.Prospect
	cannot   error // of Prospect
}

func (h *host) URI() string { return "qemu:///system" }

func (h *host) Machines(context.Context) ([]hypervisor.Machine, error) { return h.machines, h.err }

func (h *host) Prospect(_ context.Context, r hypervisor.Rebuild) (hypervisor.Prospect, error) {
	h.got = r
	return h.prospect, h.cannot
}

func (h *host) Define(_ context.Context, r hypervisor.Rebuild) (hypervisor.Rebuilt, error) {
	h.got = r
	return hypervisor.Rebuilt{Name: r.Name}, h.fail
}

func TestMachine(t *testing.T) {
	l := newLab(t, rand.New(rand.NewPCG(4, 2)))
	dir := filepath.Join(t.TempDir(), "new", "place")
	h := &host{}
	done, err := restore.Machine(context.Background(), l.v, h,
		restore.MachineRequest{Point: l.p, Name: "my web", Storage: dir,
			Networks: map[string]string{"a": "b"}, Start: true})
	if err != nil {
		t.Fatal(err)
	}
	if h.got.Name != "my web" || h.got.SameIdentity || !h.got.Start || h.got.Networks["a"] != "b" ||
		h.got.StorageDir != dir || done.SameIdentity {
		t.Errorf("the host was given %+v", h.got)
	}
	for name, want := range map[string]string{"vda": "qcow2", "vdb": "raw", "vdc": "qcow2"} {
		if h.got.Formats[name] != want || filepath.Base(h.got.Disks[name]) != "my web-"+name+"."+want {
			t.Errorf("disk %s is %s, %s", name, h.got.Disks[name], h.got.Formats[name])
		}
		requireImage(t, h.got.Disks[name], want, l.disks[name])
	}
	for key, want := range l.files {
		got, err := os.ReadFile(h.got.Files[key])
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("file %s is %s with %d bytes (%v)", key, h.got.Files[key], len(got), err)
		}
	}
	if info, err := os.Stat(h.got.Files["nvram/web_VARS.fd"]); err != nil || info.Mode().Perm() != 0o640 {
		t.Errorf("nvram: %v (%v), want mode 0640", info.Mode(), err)
	}
}

// A machine that could not be made leaves no file and no directory of its own; what was in the
// directory stays.
func TestMachineFailures(t *testing.T) {
	l := newLab(t, rand.New(rand.NewPCG(5, 2)))
	web := hypervisor.Machine{Name: "web"}
	for _, tt := range []struct {
		name string
		host host
		req  restore.MachineRequest
		want error
	}{
		{"host refuses", host{fail: errMade}, restore.MachineRequest{Name: "web"}, errMade},
		{"name is taken", host{machines: []hypervisor.Machine{web}}, restore.MachineRequest{Name: "web"},
			hypervisor.ErrExists},
		{"host does not answer", host{err: errMade}, restore.MachineRequest{Name: "web"}, errMade},
		{"a file is there", host{}, restore.MachineRequest{Name: "there"}, diskimage.ErrExists},
		{"identity is taken", host{machines: []hypervisor.Machine{{Name: "x", UUID: l.p.MachineUUID}}},
			restore.MachineRequest{Name: "web", InPlace: true}, hypervisor.ErrExists},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, "there-vdc.qcow2"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
			for _, storage := range []string{dir, filepath.Join(dir, "sub", "dir")} {
				if tt.name == "a file is there" && storage != dir {
					continue
				}
				tt.req.Point, tt.req.Storage = l.p, storage
				_, err := restore.Machine(context.Background(), l.v, &tt.host, tt.req)
				if !errors.Is(err, tt.want) {
					t.Errorf("%v, want %v", err, tt.want)
				}
			}
			if names := listed(t, dir); len(names) != 1 {
				t.Errorf("left behind: %v", names)
			}
		})
	}
	image := *l.p
	image.Definition = point.Definition{Kind: point.OnlyDisks}
	_, err := restore.Machine(context.Background(), l.v, &host{},
		restore.MachineRequest{Point: &image, Name: "x", Storage: t.TempDir()})
	if !errors.Is(err, hypervisor.ErrNoDefinition) {
		t.Errorf("a point of images: %v, want ErrNoDefinition", err)
	}
	plain := *l.p
	plain.Definition = point.Definition{Kind: point.ForQEMU}
	_, err = restore.Machine(context.Background(), l.v, &host{},
		restore.MachineRequest{Point: &plain, Name: "x", Storage: t.TempDir()})
	if !errors.Is(err, hypervisor.ErrOtherKind) {
		t.Errorf("a plain QEMU's point on libvirt: %v, want ErrOtherKind", err)
	}
}

// Names in a point cannot lead out of the directory.
func TestFilesStayInside(t *testing.T) {
	l := newLab(t, rand.New(rand.NewPCG(6, 2)))
	for _, f := range []point.File{{Role: "nvram", Name: "../x"}, {Role: "tpm", Name: "/etc/x"},
		{Role: "../tpm", Name: "x"}, {Role: "tpm", Name: "a/../../x"}} {
		p := *l.p
		f.Root, f.Size = l.p.Files[0].Root, l.p.Files[0].Size
		p.Files = []point.File{f}
		dir := t.TempDir()
		_, err := restore.Machine(context.Background(), l.v, &host{},
			restore.MachineRequest{Point: &p, Name: "web", Storage: filepath.Join(dir, "s")})
		if err == nil {
			t.Errorf("%s/%s was written", f.Role, f.Name)
		}
		if names := listed(t, dir); len(names) != 0 {
			t.Errorf("%s/%s left %v", f.Role, f.Name, names)
		}
	}
}

func TestIdentity(t *testing.T) {
	l := newLab(t, rand.New(rand.NewPCG(7, 2)))
	taken := []hypervisor.Machine{{Name: "other", UUID: strings.ToUpper(l.p.MachineUUID)}}
	for _, tt := range []struct {
		name     string
		as       string
		machines []hypervisor.Machine
		inPlace  bool
		same     bool
	}{
		{"the lost one", "web", nil, false, true},
		{"another name", "web2", nil, false, false},
		{"another name, in place", "web2", nil, true, true},
		{"its identity is taken", "web", taken, false, false},
	} {
		h := &host{machines: tt.machines}
		done, err := restore.Machine(context.Background(), l.v, h,
			restore.MachineRequest{Point: l.p, Name: tt.as, Storage: t.TempDir(), InPlace: tt.inPlace})
		if err != nil {
			t.Fatalf("%s: %v", tt.name, err)
		}
		if done.SameIdentity != tt.same || h.got.SameIdentity != tt.same || done.Identity == "" {
			t.Errorf("%s: same identity %v (%s), want %v", tt.name, done.SameIdentity, done.Identity, tt.same)
		}
	}
}
