package holdfast_test

import (
	"bufio"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

const architecture = "docs/architecture.md"

// sections are the headings of the tables of packages in docs/architecture.md, and the layers that
// each covers. The last one covers what is in no layer.
var sections = []struct {
	heading string
	layers  []int
}{
	{"Faces", []int{0, 1}}, {"Workflows", []int{2}}, {"Serving", []int{3}}, {"Mechanisms", []int{4}},
	{"Protocols and storage", []int{5}}, {"Ground", []int{6}}, {"Beside the product", []int{-1}},
}

// line is a line of a document.
type line struct {
	file   string
	number int
	text   string
	fenced bool // inside a block of code
}

// documents returns all lines of all documents of the repository.
func documents(t *testing.T) []line {
	t.Helper()
	var all []line
	err := filepath.WalkDir(".", func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (strings.HasPrefix(d.Name(), ".") && name != "." || d.Name() == "testdata"):
			return fs.SkipDir
		case path.Ext(name) == ".md":
			all = append(all, linesOf(t, name)...)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func linesOf(t *testing.T, name string) (lines []line) {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fenced := false
	s := bufio.NewScanner(f)
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		fence := strings.HasPrefix(strings.TrimSpace(s.Text()), "```")
		lines = append(lines, line{file: name, number: len(lines) + 1, text: s.Text(), fenced: fenced || fence})
		if fence {
			fenced = !fenced
		}
	}
	if err := s.Err(); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return lines
}

var firstCell = regexp.MustCompile("^\\| `([^`]+)` \\|")

// documentedPackages returns the packages of the tables of docs/architecture.md, each with the
// heading it stands under.
func documentedPackages(t *testing.T) map[string]string {
	t.Helper()
	out := map[string]string{}
	heading, inside := "", false
	for _, l := range linesOf(t, architecture) {
		if strings.HasPrefix(l.text, "## ") {
			inside = l.text == "## The packages"
		}
		if h, ok := strings.CutPrefix(l.text, "### "); ok {
			heading, _, _ = strings.Cut(h, ":")
		}
		if m := firstCell.FindStringSubmatch(l.text); inside && m != nil {
			if out[m[1]] != "" {
				t.Errorf("%s:%d: %s stands there twice", l.file, l.number, m[1])
			}
			out[m[1]] = heading
		}
	}
	return out
}

// The tables of packages in docs/architecture.md have every package, in its layer, and no other.
func TestArchitectureHasEveryPackage(t *testing.T) {
	documented := documentedPackages(t)
	for _, p := range packages(t) {
		pkg, below := strings.CutPrefix(p.ImportPath, module)
		if !below {
			continue // the root has no code
		}
		heading := documented[pkg]
		delete(documented, pkg)
		_, layer := unit(pkg)
		i := slices.IndexFunc(sections, func(s struct {
			heading string
			layers  []int
		}) bool {
			return slices.Contains(s.layers, layer)
		})
		switch want := sections[i].heading; {
		case heading == "":
			t.Errorf("%s lacks package %s: give it a row under %q that says what it does", architecture, pkg, want)
		case heading != want:
			t.Errorf("%s has package %s under %q, its layer is %q", architecture, pkg, heading, want)
		}
	}
	for pkg := range documented {
		t.Errorf("%s has package %s, which does not exist", architecture, pkg)
	}
}

// declared holds the names that packages of the product declare.
type declared struct {
	in       map[string]map[string]bool // by the last element of the package's path: Name, Type.Name
	anywhere map[string]bool            // single names
}

func declarations(t *testing.T) declared {
	t.Helper()
	d := declared{map[string]map[string]bool{}, map[string]bool{}}
	for _, p := range packages(t) {
		name := path.Base(p.ImportPath)
		if d.in[name] == nil {
			d.in[name] = map[string]bool{}
		}
		for _, f := range p.GoFiles {
			file, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, f), nil, parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			for _, decl := range file.Decls {
				d.add(name, decl)
			}
		}
	}
	return d
}

func (d declared) add(pkg string, decl ast.Decl) {
	note := func(of string, names ...*ast.Ident) {
		for _, n := range names {
			d.anywhere[n.Name] = true
			if of != "" {
				d.in[pkg][of+"."+n.Name] = true
			} else {
				d.in[pkg][n.Name] = true
			}
		}
	}
	if f, ok := decl.(*ast.FuncDecl); ok {
		of := ""
		if f.Recv != nil {
			of = receiver(f.Recv.List[0].Type)
		}
		note(of, f.Name)
		return
	}
	for _, spec := range decl.(*ast.GenDecl).Specs {
		switch s := spec.(type) {
		case *ast.ValueSpec:
			note("", s.Names...)
		case *ast.TypeSpec:
			note("", s.Name)
			var fields *ast.FieldList
			switch u := s.Type.(type) {
			case *ast.StructType:
				fields = u.Fields
			case *ast.InterfaceType:
				fields = u.Methods
			default:
				continue
			}
			for _, f := range fields.List {
				note(s.Name.Name, f.Names...)
			}
		}
	}
}

func receiver(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.StarExpr:
		return receiver(e.X)
	case *ast.IndexExpr:
		return receiver(e.X)
	case *ast.Ident:
		return e.Name
	}
	return ""
}

var (
	codeSpan   = regexp.MustCompile("`([^`]+)`")
	pathName   = regexp.MustCompile(`^(?:internal|test|cmd|docs|bench|packaging|scripts)/[\w./-]+$`)
	qualified  = regexp.MustCompile(`^([a-z]\w*)\.([A-Za-z]\w*(?:\.[A-Za-z]\w*)?)$`)
	identifier = regexp.MustCompile(`^(?:[a-z]+[A-Z]\w*|[A-Z]\w*[a-z]\w*)$`)
)

// What the pages of the architecture name in code letters exists: files, packages, types,
// functions.
func TestArchitectureNamesWhatExists(t *testing.T) {
	known := declarations(t)
	for _, l := range documents(t) {
		if l.file != architecture && !strings.HasPrefix(l.file, "docs/architecture/") || l.fenced {
			continue
		}
		for _, m := range codeSpan.FindAllStringSubmatch(l.text, -1) {
			if missing := known.lacks(m[1]); missing != "" {
				t.Errorf("%s:%d: `%s`: %s", l.file, l.number, m[1], missing)
			}
		}
	}
}

// lacks says what is wrong with a name that a page gives, "" if nothing is.
func (d declared) lacks(name string) string {
	if strings.Contains(name, "NAME") || strings.Contains(name, "NOUN") {
		return "" // a pattern
	}
	if pathName.MatchString(name) {
		if _, err := os.Stat(name); err != nil {
			return "there is no such file or directory"
		}
		return ""
	}
	if m := qualified.FindStringSubmatch(name); m != nil && d.in[m[1]] != nil && !d.in[m[1]][m[2]] {
		return "package " + m[1] + " has no " + m[2]
	}
	if identifier.MatchString(name) && !d.anywhere[name] {
		return "nothing of that name is declared"
	}
	return ""
}

var link = regexp.MustCompile(`\]\(([^)\s]+)\)`)

// Every link from one document to another leads somewhere, to a heading too if it names one.
func TestLinksLead(t *testing.T) {
	all := documents(t)
	anchors := map[string]bool{}
	for _, l := range all {
		if strings.HasPrefix(l.text, "#") && !l.fenced {
			anchors[l.file+"#"+anchor(l.text)] = true
		}
	}
	for _, l := range all {
		if l.fenced {
			continue
		}
		for _, m := range link.FindAllStringSubmatch(l.text, -1) {
			if strings.Contains(m[1], "://") {
				continue
			}
			file, part, _ := strings.Cut(m[1], "#")
			to := l.file
			if file != "" {
				to = path.Join(path.Dir(l.file), file)
			}
			if _, err := os.Stat(to); err != nil {
				t.Errorf("%s:%d: the link to %s leads nowhere", l.file, l.number, m[1])
			} else if part != "" && !anchors[to+"#"+part] {
				t.Errorf("%s:%d: %s has no heading %q", l.file, l.number, to, part)
			}
		}
	}
}

var notInAnchors = regexp.MustCompile(`[^\p{L}\p{N} _-]`)

// anchor returns how a heading is linked to.
func anchor(heading string) string {
	text := strings.ToLower(strings.TrimSpace(strings.TrimLeft(heading, "#")))
	return strings.ReplaceAll(notInAnchors.ReplaceAllString(text, ""), " ", "-")
}

// docs/adr/README.md has every decision.
func TestDecisionsAreListed(t *testing.T) {
	records, err := filepath.Glob("docs/adr/[0-9]*.md")
	if err != nil {
		t.Fatal(err)
	}
	var index strings.Builder
	for _, l := range linesOf(t, "docs/adr/README.md") {
		index.WriteString(l.text + "\n")
	}
	for _, r := range records {
		if !strings.Contains(index.String(), "("+filepath.Base(r)+")") {
			t.Errorf("docs/adr/README.md lacks %s: give it a row that says what it decides", r)
		}
	}
}

// Lines of documents are at most 120 characters wide, except for tables, code and what cannot be
// broken.
func TestDocumentsAreWrapped(t *testing.T) {
	for _, l := range documents(t) {
		text := strings.TrimSpace(l.text)
		if l.fenced || strings.HasPrefix(text, "|") || strings.HasPrefix(text, "#") || !strings.Contains(text, " ") {
			continue
		}
		if n := utf8.RuneCountInString(l.text); n > 120 {
			t.Errorf("%s:%d is %d characters wide, at most 120 are", l.file, l.number, n)
		}
	}
}

// cannot is one word, in documents, messages and comments.
func TestSpelling(t *testing.T) {
	err := filepath.WalkDir(".", func(name string, d fs.DirEntry, err error) error {
		switch ext := path.Ext(name); {
		case err != nil:
			return err
		case d.IsDir() && strings.HasPrefix(d.Name(), ".") && name != ".":
			return fs.SkipDir
		case ext != ".md" && ext != ".go" && ext != ".txtar":
			return nil
		}
		for _, l := range linesOf(t, name) {
			if strings.Contains(strings.ToLower(l.text), "can"+" not") {
				t.Errorf("%s:%d: it is written cannot", l.file, l.number)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
