package ext4

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/holdfast-vm/holdfast/internal/filesystem"
)

// madeVariants are kinds of file systems that mke2fs fills itself, without a mount and without
// root; among them are some that this machine's kernel may not mount.
var madeVariants = [][]string{
	{"-t", "ext4"},
	{"-t", "ext4", "-b", "1024", "-O", "inline_data,ea_inode"},
	{"-t", "ext4", "-b", "65536", "-O", "^has_journal"},
	{"-t", "ext4", "-O", "casefold,encrypt,verity,project,quota,orphan_file,metadata_csum_seed,mmp,large_dir," +
		"stable_inodes"},
	{"-t", "ext4", "-O", "bigalloc,fast_commit", "-C", "32768"},
	{"-t", "ext4", "-O", "^metadata_csum,uninit_bg,^64bit,meta_bg,^resize_inode", "-b", "2048"},
	{"-t", "ext4", "-O", "^extents,^64bit", "-b", "1024"},
	{"-t", "ext3", "-I", "128"},
	{"-t", "ext2", "-b", "1024"},
}

// What mke2fs copied into a new file system is what our reader finds there.
func TestMadeCorpus(t *testing.T) {
	source := sourceTree(t)
	want := plainView(t, source)
	for _, options := range madeVariants {
		t.Run(strings.Join(options, " "), func(t *testing.T) {
			t.Parallel()
			f := opened(t, makeImage(t, 64<<20, append(options, "-d", source)...))
			got := viewOf(t, f)
			delete(got, "/lost+found")
			for path, s := range got {
				got[path] = plain(s)
			}
			sameViews(t, got, want, false)
			checkLookups(t, f, f.Root())
		})
	}
}

// sourceTree returns a directory of files that anyone may make.
func sourceTree(t testing.TB) string {
	dir := t.TempDir()
	f := &filler{t: t, dir: dir, rng: rand.New(rand.NewPCG(5, 5))}
	f.sizes()
	for _, name := range []string{"grown", "grown-later"} { // which mke2fs cuts off where it puts data into inodes
		f.must(os.Remove(f.path(name)))
	}
	f.writeAt("sparse", 0, 100000, 3<<20, 20<<20)
	f.writeAt("hole-first", 1<<20)
	f.must(os.Mkdir(f.path("links"), 0o755))
	for _, n := range []int{1, 58, 59, 60, 61, 156, 500, 1000} {
		f.must(os.Symlink(strings.Repeat("y/", n)[:n], f.path(fmt.Sprintf("links/%d", n))))
	}
	f.must(os.Link(f.path("size-4097"), f.path("hard")))
	f.names(400)
	f.may(unix.Setxattr(f.path("size-100"), "user.short", []byte("v"), 0))
	f.may(unix.Setxattr(f.path("size-100"), "user.longer", f.bytes(300), 0))
	f.must(unix.Mkfifo(f.path("fifo"), 0o600))
	return dir
}

// plainView is a view of a directory with what a copy keeps.
func plainView(t testing.TB, dir string) view {
	v := mountView(t, dir)
	for path, s := range v {
		v[path] = plain(s)
	}
	return v
}

func plain(s *seen) *seen {
	out := &seen{data: s.data, attr: filesystem.Attr{Mode: s.attr.Mode, UID: s.attr.UID, GID: s.attr.GID},
		xattrs: map[string][]byte{}}
	if s.attr.Mode.IsRegular() {
		out.attr.Size, out.attr.Links = s.attr.Size, s.attr.Links
	}
	for name, value := range s.xattrs {
		if strings.HasPrefix(name, "user.") {
			out.xattrs[name] = value
		}
	}
	return out
}

// checkLookups looks up every name in a tree, and some that are not there.
func checkLookups(t *testing.T, f *FS, dir filesystem.ID) {
	t.Helper()
	looked := 0
	for e, err := range f.ReadDir(dir) {
		if err != nil {
			t.Fatal(err)
		}
		if looked++; looked > 20 {
			break
		}
		if id, err := f.Lookup(dir, e.Name); err != nil || id != e.ID {
			t.Errorf("Lookup(%q) = %d, %v, want %d", e.Name, id, err, e.ID)
		}
		if _, err := f.Lookup(dir, e.Name+"?"); !errors.Is(err, filesystem.ErrNotExist) {
			t.Errorf("Lookup(%q) is %v", e.Name+"?", err)
		}
		if e.Type == fs.ModeDir {
			if id, err := f.Lookup(e.ID, ".."); err != nil || id != dir {
				t.Errorf("Lookup(..) in %q = %d, %v, want %d", e.Name, id, err, dir)
			}
			checkLookups(t, f, e.ID)
		}
	}
}

// debug lets debugfs change an image.
func debug(t testing.TB, image string, commands ...string) {
	t.Helper()
	script := filepath.Join(t.TempDir(), "script")
	if err := os.WriteFile(script, []byte(strings.Join(commands, "\n")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	command(t, "debugfs", "-w", "-f", script, image)
}

// blocksOfFile returns the blocks on disk of a file in the top directory.
func blocksOfFile(t testing.TB, f *FS, name string) (list []uint64) {
	t.Helper()
	id, err := f.Lookup(f.Root(), name)
	if err != nil {
		t.Fatal(err)
	}
	in, err := f.inode(uint64(id))
	if err != nil {
		t.Fatal(err)
	}
	m := &blockMap{fs: f, in: in}
	for r, err := range m.runs(f.blocksOf(in.size)) {
		if err != nil {
			t.Fatal(err)
		}
		for i := range r.count {
			list = append(list, r.phys+i)
		}
	}
	return list
}

func contentOf(t testing.TB, f *FS, name string) []byte {
	t.Helper()
	id, err := f.Lookup(f.Root(), name)
	if err != nil {
		t.Fatal(err)
	}
	file, err := f.Open(id)
	if err != nil {
		t.Fatal(err)
	}
	data, err := io.ReadAll(io.NewSectionReader(file, 0, file.Size()))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// Journals that debugfs wrote, with what kernels wrote in other times, are replayed as e2fsprogs
// replays them.
func TestMadeJournals(t *testing.T) {
	t.Parallel()
	for seed, kind := range []string{"", "-c -v 2", "-c -v 3", "-c -v 1"} {
		for _, features := range []string{"64bit", "^64bit"} {
			t.Run(kind+" "+features, func(t *testing.T) {
				t.Parallel()
				rng := rand.New(rand.NewPCG(uint64(seed), 9))
				dir := t.TempDir()
				f := &filler{t: t, dir: dir, rng: rng}
				f.file("file", 60<<10)
				image := makeImage(t, 16<<20, "-t", "ext4", "-b", "1024", "-J", "size=1", "-O", features, "-d", dir)
				before := contentOf(t, opened(t, image), "file")
				debug(t, image, transactions(t, f, blocksOfFile(t, opened(t, image), "file"), kind)...)

				reader := opened(t, image)
				got := contentOf(t, reader, "file")
				debug(t, image, "journal_run")
				want := contentOf(t, opened(t, image), "file")
				if !bytes.Equal(got, want) {
					t.Error("the file differs from what e2fsprogs replays")
				}
				if bytes.Equal(got, before) || !noted(reader, "the journal was replayed") {
					t.Errorf("nothing was replayed: %v", reader.Info().Notes)
				}
			})
		}
	}
}

// transactions returns commands that write and revoke blocks in a journal, and do not commit the
// last transaction.
func transactions(t *testing.T, f *filler, blocks []uint64, kind string) []string {
	t.Helper()
	list := []string{strings.TrimSpace("journal_open " + kind)}
	for i := range 12 {
		var some []string
		for _, at := range f.rng.Perm(len(blocks))[:1+f.rng.IntN(20)] {
			some = append(some, fmt.Sprint(blocks[at]))
		}
		slices.Sort(some)
		data := f.bytes(1024 * len(some))
		copy(data, journalMagicBytes)
		source := filepath.Join(f.t.TempDir(), "data")
		f.must(os.WriteFile(source, data, 0o600))
		write := fmt.Sprintf("journal_write -b %s %s", strings.Join(some, ","), source)
		if i == 11 {
			write += " -c"
		}
		list = append(list, write)
		if i%4 == 2 {
			list = append(list, "journal_write -r "+some[0])
		}
	}
	return append(list, "journal_close")
}

// Names are compared without regard to case where a directory says so, and only there.
func TestCasefold(t *testing.T) {
	dir := t.TempDir()
	f := &filler{t: t, dir: dir, rng: rand.New(rand.NewPCG(1, 1))}
	for _, sub := range []string{"folded", "plain"} {
		f.must(os.Mkdir(f.path(sub), 0o755))
		f.file(sub+"/Straße", 1)
		f.file(sub+"/café", 1)
		f.file(sub+"/ΣΊΣΥΦΟΣ", 1)
	}
	image := makeImage(t, 8<<20, "-t", "ext4", "-O", "casefold", "-E", "encoding=utf8", "-d", dir)
	debug(t, image, "set_inode_field /folded flags 0x40080000")
	reader := opened(t, image)
	for _, tt := range []struct{ dir, name, want string }{
		{"folded", "STRASSE", "Straße"}, {"folded", "straße", "Straße"}, {"folded", "CAFE\u0301", "café"},
		{"folded", "σίσυφος", "ΣΊΣΥΦΟΣ"},
		{"folded", "c\u00ADafé", "café"}, {"folded", "cafe", ""}, {"plain", "STRASSE", ""},
		{"plain", "Straße", "Straße"},
	} {
		sub, err := reader.Lookup(reader.Root(), tt.dir)
		if err != nil {
			t.Fatal(err)
		}
		id, err := reader.Lookup(sub, tt.name)
		if tt.want == "" {
			if !errors.Is(err, filesystem.ErrNotExist) {
				t.Errorf("Lookup(%q) in %s is %d, %v", tt.name, tt.dir, id, err)
			}
			continue
		}
		want, wantErr := reader.Lookup(sub, tt.want)
		if err != nil || wantErr != nil || id != want {
			t.Errorf("Lookup(%q) in %s is %d, %v, want %d, %v", tt.name, tt.dir, id, err, want, wantErr)
		}
	}
}

// What cannot be read says so, and says what it is.
func TestUnsupported(t *testing.T) {
	dir := t.TempDir()
	f := &filler{t: t, dir: dir, rng: rand.New(rand.NewPCG(1, 1))}
	f.file("secret", 5000)
	f.must(os.Mkdir(f.path("secrets"), 0o755))
	image := makeImage(t, 8<<20, "-t", "ext4", "-O", "encrypt", "-d", dir)
	debug(t, image, "set_inode_field /secret flags 0x80800", "set_inode_field /secrets flags 0x80800")
	reader := opened(t, image)
	id, err := reader.Lookup(reader.Root(), "secret")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := reader.Open(id); !errors.Is(err, filesystem.ErrUnsupported) ||
		!strings.Contains(err.Error(), "encrypted") {
		t.Errorf("an encrypted file opens with %v", err)
	}
	id, err = reader.Lookup(reader.Root(), "secrets")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := reader.Lookup(id, "x"); !errors.Is(err, filesystem.ErrUnsupported) {
		t.Errorf("an encrypted directory is looked into with %v", err)
	}
	for _, tt := range []struct{ change, want string }{
		{"set_super_value feature_incompat 0x1002c2", "FEATURE_I0x100000"},
		{"set_super_value feature_incompat 0x1242", "dirdata"},
		{"set_super_value feature_incompat 0x8", "journal_dev"},
	} {
		changed := makeImage(t, 8<<20, "-t", "ext4", "-O", "^metadata_csum")
		debug(t, changed, tt.change)
		if err := openError(t, changed); !errors.Is(err, filesystem.ErrUnsupported) ||
			!strings.Contains(err.Error(), tt.want) {
			t.Errorf("after %s Open returns %v", tt.change, err)
		}
	}
}

// An external journal does not matter after a clean unmount, and is missing after a crash.
func TestExternalJournal(t *testing.T) {
	image := makeImage(t, 8<<20, "-t", "ext4", "-O", "^has_journal,^metadata_csum")
	debug(t, image, "set_super_value feature_compat 0x3c", "set_super_value journal_dev 0x810")
	opened(t, image)
	debug(t, image, "set_super_value feature_incompat 0x2c6")
	if err := openError(t, image); !errors.Is(err, filesystem.ErrUnsupported) ||
		!strings.Contains(err.Error(), "another device") {
		t.Errorf("Open returns %v", err)
	}
}

func openError(t testing.TB, image string) error {
	t.Helper()
	data, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	_, err = Open(bytes.NewReader(data), int64(len(data)))
	return err
}

// One FS serves many at a time.
func TestConcurrentReaders(t *testing.T) {
	f := opened(t, makeImage(t, 64<<20, "-t", "ext4", "-d", sourceTree(t)))
	want := viewOf(t, f)
	f.disk.setOverlay(nil)
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			got := view{}
			if err := walk(f, "/", f.Root(), got); err != nil {
				t.Error(err)
			}
			sameViews(t, got, want, true)
		})
	}
	all.Wait()
}
