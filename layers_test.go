package holdfast_test

import (
	"encoding/json"
	"errors"
	"go/ast"
	"go/doc"
	"go/parser"
	"go/token"
	"io"
	"os"
	"os/exec"
	"path"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/holdfast-vm/holdfast/"

// layers are ordered from the top: a package imports only from layers below its own, or within its
// own unit.
var layers = [][]string{
	{"cmd/holdfast"},
	{"internal/cli"},
	// workflows do not import each other
	{"internal/hostcheck", "internal/protect", "internal/restore", "internal/drill", "internal/files", "internal/disks",
		"internal/snapshots", "internal/remember"},
	{"internal/export"},
	{"internal/vault", "internal/capture", "internal/guest", "internal/hypervisor", "internal/diskimage"},
	{"internal/qmp", "internal/nbd", "internal/qcow2", "internal/luks", "internal/blob", "internal/durable",
		"internal/filesystem",
		"internal/directio", "internal/child"},
	{"internal/point", "internal/extent"},
}

// sideways are the imports within a layer that are meant, each with its reason.
var sideways = map[string]string{
	"internal/capture -> internal/hypervisor": "a capturer is made for one kind of host",
	"internal/guest -> internal/hypervisor":   "the agent's interface belongs to the host that opens it",
	"internal/hypervisor -> internal/guest": "hosts open agents and speak their errors; package hypervisor itself " +
		"does not import guest",
	"internal/qcow2 -> internal/directio":   "images are filled past the page cache",
	"internal/qcow2 -> internal/luks":       "images can be encrypted",
	"internal/durable -> internal/directio": "and so are long files that are made durable",
	"internal/blob -> internal/durable":     "the directory store stands on the durable file system",
}

// rooms are those of the vault, from the top: one imports only those after it.
var rooms = []string{
	"internal/vault",
	"internal/vault/gc", "internal/vault/sweep", "internal/vault/repair", "internal/vault/session",
	"internal/vault/mark",
	"internal/vault/content", "internal/vault/row", "internal/vault/index",
	"internal/vault/journal", "internal/vault/state", "internal/vault/state/tier",
	"internal/vault/pack", "internal/vault/log",
	"internal/vault/tree", "internal/vault/chunk", "internal/vault/keys",
}

func TestRoomsOfTheVaultImportDownwards(t *testing.T) {
	for _, p := range packages(t) {
		pkg := strings.TrimPrefix(p.ImportPath, module)
		if pkg != rooms[0] && !strings.HasPrefix(pkg, rooms[0]+"/") {
			continue
		}
		from := slices.Index(rooms, pkg)
		if from < 0 {
			t.Errorf("%s has no place among the rooms of the vault: give it one", pkg)
			continue
		}
		for _, imp := range p.Imports {
			dep, ours := strings.CutPrefix(imp, module)
			if to := slices.Index(rooms, dep); ours && strings.HasPrefix(dep, rooms[0]) && to <= from {
				t.Errorf("%s imports %s: rooms import downwards", pkg, dep)
			}
		}
	}
}

// contracts import only the standard library, so that whoever implements them imports nothing else.
var contracts = []string{"internal/blob", "internal/extent", "internal/point"}

type listed struct {
	ImportPath string
	Dir        string
	GoFiles    []string
	Imports    []string
}

func packages(t *testing.T) []listed {
	t.Helper()
	out, err := exec.Command("go", "list", "-json=ImportPath,Dir,GoFiles,Imports", "./...").Output()
	if err != nil {
		t.Fatal(err)
	}
	var all []listed
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p listed
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
}

// unit returns the entry of layers that a package belongs to, and its layer; "" for one that is in
// none.
func unit(pkg string) (string, int) {
	for i, l := range layers {
		for _, u := range l {
			if pkg == u || strings.HasPrefix(pkg, u+"/") {
				return u, i
			}
		}
	}
	return "", -1
}

func TestImportsGoDown(t *testing.T) {
	used := map[string]bool{}
	for _, p := range packages(t) {
		pkg := strings.TrimPrefix(p.ImportPath, module)
		from, at := unit(pkg)
		if from == "" {
			if strings.HasPrefix(pkg, "internal/") || strings.HasPrefix(pkg, "cmd/") {
				t.Errorf("%s is in no layer: give it a place in layers_test.go", pkg)
			}
			continue
		}
		for _, imp := range p.Imports {
			dep, ours := strings.CutPrefix(imp, module)
			if !ours {
				continue
			}
			to, below := unit(dep)
			edge := from + " -> " + to
			switch {
			case to == "":
				t.Errorf("%s imports %s, which no product code may", pkg, dep)
			case to == from || below > at:
			case sideways[edge] != "":
				used[edge] = true
			default:
				t.Errorf("%s imports %s: imports go down (layer %d to %d)", pkg, dep, at, below)
			}
		}
	}
	for edge := range sideways {
		if !used[edge] {
			t.Errorf("nothing imports %s any more: strike it from the list", edge)
		}
	}
}

func TestContractsImportOnlyTheStandardLibrary(t *testing.T) {
	for _, p := range packages(t) {
		pkg := strings.TrimPrefix(p.ImportPath, module)
		for _, c := range contracts {
			if pkg != c {
				continue
			}
			for _, imp := range p.Imports {
				if strings.Contains(strings.Split(imp, "/")[0], ".") {
					t.Errorf("%s imports %s: every implementation would inherit it", pkg, imp)
				}
			}
		}
	}
}

// Every package says in its documentation what it is for, once.
func TestPackagesAreDocumented(t *testing.T) {
	for _, p := range packages(t) {
		documented := 0
		for _, f := range p.GoFiles {
			src, err := os.ReadFile(path.Join(p.Dir, f))
			if err != nil {
				t.Fatal(err)
			}
			file, err := parser.ParseFile(token.NewFileSet(), f, src, parser.PackageClauseOnly|parser.ParseComments)
			if err != nil {
				t.Fatal(err)
			}
			if file.Doc != nil {
				documented++
				if s := new(doc.Package).Synopsis(file.Doc.Text()); len(s) < 20 {
					t.Errorf("%s: its documentation %q says nothing", p.ImportPath, s)
				}
			}
		}
		if len(p.GoFiles) > 0 && documented != 1 {
			t.Errorf("%s has %d package comments, one is wanted", p.ImportPath, documented)
		}
	}
}

// starting are names by which a program is started, or the whole environment of this one is had,
// and that only package child may use: what others start knows everything that this process knows.
var starting = map[string][]string{
	"os":                    {"StartProcess", "Environ"},
	"syscall":               {"Exec", "ForkExec", "StartProcess", "Environ"},
	"golang.org/x/sys/unix": {"Exec", "Environ"},
}

// starters may start programs, each with its reason.
var starters = map[string]string{
	"internal/child":                     "it is the one way to do so",
	"internal/filesystem/filesystemtest": "it is for tests, and starts itself over in another name space of mounts",
}

func TestOnlyChildStartsPrograms(t *testing.T) {
	for _, p := range packages(t) {
		pkg := strings.TrimPrefix(p.ImportPath, module)
		if !strings.HasPrefix(pkg, "internal/") && !strings.HasPrefix(pkg, "cmd/") || starters[pkg] != "" {
			continue
		}
		for _, f := range p.GoFiles {
			for _, use := range usesOf(t, path.Join(p.Dir, f)) {
				t.Errorf("%s/%s uses %s: a program is started by package child, which gives it no secret", pkg, f, use)
			}
		}
	}
}

// usesOf returns what in a file starts programs.
func usesOf(t *testing.T, name string) (uses []string) {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	imported := map[string]string{} // name in the file → path
	for _, spec := range file.Imports {
		importPath := strings.Trim(spec.Path.Value, `"`)
		if importPath == "os/exec" {
			uses = append(uses, importPath)
		}
		as := path.Base(importPath)
		if spec.Name != nil {
			as = spec.Name.Name
		}
		imported[as] = importPath
	}
	ast.Inspect(file, func(n ast.Node) bool {
		sel, ok := n.(*ast.SelectorExpr)
		if !ok {
			return true
		}
		if x, ok := sel.X.(*ast.Ident); ok && slices.Contains(starting[imported[x.Name]], sel.Sel.Name) {
			uses = append(uses, x.Name+"."+sel.Sel.Name)
		}
		return true
	})
	return uses
}

// strangers are the packages of others that start programs by themselves, each with why no secret
// reaches those.
var strangers = map[string]string{
	"github.com/hanwen/go-fuse/v2/fuse": "fusermount3 gets our environment, from which the passphrase is taken first " +
		"of all, " +
		"and the descriptors that child.Seal leaves",
}

func TestNoOtherLibraryStartsPrograms(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", "-json=ImportPath,Imports,Standard", "./cmd/holdfast").Output()
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]bool{}
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p struct {
			listed
			Standard bool
		}
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		if p.Standard || strings.HasPrefix(p.ImportPath, module) || !slices.Contains(p.Imports, "os/exec") {
			continue
		}
		found[p.ImportPath] = true
		if strangers[p.ImportPath] == "" {
			t.Errorf("%s starts programs: see that no secret reaches them, and say why in the list", p.ImportPath)
		}
	}
	for pkg := range strangers {
		if !found[pkg] {
			t.Errorf("%s starts no programs any more: strike it from the list", pkg)
		}
	}
}
