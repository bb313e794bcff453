package holdfast_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// reasonMakers are the functions whose first argument becomes the reason of a consistency.
var reasonMakers = []string{"crash", "finish", "settle", "noHooks"}

// reasons returns the reasons why a point is as consistent as it is, by name: the constants
// reason… of the packages that say so. It fails where a reason is not one of them.
func reasons(t *testing.T) map[string]string {
	t.Helper()
	out := map[string]string{}
	for _, dir := range []string{"internal/guest", "internal/protect"} {
		files, err := filepath.Glob(dir + "/*.go")
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range files {
			if strings.HasSuffix(name, "_test.go") {
				continue
			}
			set := token.NewFileSet()
			file, err := parser.ParseFile(set, name, nil, parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			ast.Inspect(file, func(n ast.Node) bool {
				switch n := n.(type) {
				case *ast.ValueSpec:
					if strings.HasPrefix(n.Names[0].Name, "reason") && len(n.Values) == 1 {
						out[n.Names[0].Name] = constant(t, n.Values[0])
					}
				case *ast.CallExpr:
					f, _ := n.Fun.(*ast.SelectorExpr)
					id, _ := n.Fun.(*ast.Ident)
					if f != nil && slices.Contains(reasonMakers, f.Sel.Name) ||
						id != nil && slices.Contains(reasonMakers, id.Name) {
						refuseLiteral(t, set, n.Args)
					}
				}
				return true
			})
		}
	}
	return out
}

func refuseLiteral(t *testing.T, set *token.FileSet, args []ast.Expr) {
	t.Helper()
	if len(args) == 0 {
		return
	}
	if _, literal := args[0].(*ast.BasicLit); literal {
		t.Errorf("%s: a reason that is no constant reason…, so that the manual does not explain it",
			set.Position(args[0].Pos()))
	}
}

// constant returns the value of a constant text.
func constant(t *testing.T, e ast.Expr) string {
	t.Helper()
	switch e := e.(type) {
	case *ast.BasicLit:
		s, err := strconv.Unquote(e.Value)
		if err != nil {
			t.Fatal(err)
		}
		return s
	case *ast.BinaryExpr:
		return constant(t, e.X) + constant(t, e.Y)
	}
	t.Fatalf("a reason that is no text: %T", e)
	return ""
}

var verb = regexp.MustCompile(`%[a-z]`)

// wholes returns the reasons why a disk was read whole, by name: the constants Whole… of package
// capture. It fails where a package that says so makes up another one.
func wholes(t *testing.T) map[string]string {
	t.Helper()
	out := map[string]string{}
	set := token.NewFileSet()
	for _, dir := range []string{"internal/capture", "internal/capture/qemu", "internal/capture/libvirt",
		"internal/protect"} {
		files, err := filepath.Glob(dir + "/*.go")
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range files {
			if strings.HasSuffix(name, "_test.go") {
				continue
			}
			file, err := parser.ParseFile(set, name, nil, parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			ast.Inspect(file, func(n ast.Node) bool { return findWholes(t, set, n, out) })
		}
	}
	return out
}

// wholeMakers are the functions that return, or are told, why a disk is read whole.
var wholeMakers = []string{"whole", "wholeDisks", "doubt", "whyWhole"}

func findWholes(t *testing.T, set *token.FileSet, n ast.Node, out map[string]string) bool {
	t.Helper()
	switch n := n.(type) {
	case *ast.ValueSpec:
		if strings.HasPrefix(n.Names[0].Name, "Whole") && len(n.Values) == 1 {
			out[n.Names[0].Name] = constant(t, n.Values[0])
		}
	case *ast.CallExpr:
		if f, _ := n.Fun.(*ast.SelectorExpr); f != nil && slices.Contains(wholeMakers, f.Sel.Name) {
			refuseTexts(t, set, n.Args[0])
		}
	case *ast.FuncDecl:
		if slices.Contains(wholeMakers, n.Name.Name) {
			refuseTexts(t, set, n.Body)
		}
	}
	return true
}

// refuseTexts fails for texts of any length: a reason is made of constants alone.
func refuseTexts(t *testing.T, set *token.FileSet, n ast.Node) {
	t.Helper()
	ast.Inspect(n, func(n ast.Node) bool {
		if l, ok := n.(*ast.BasicLit); ok && l.Kind == token.STRING && l.Value != `""` {
			t.Errorf("%s: a reason %s that is no constant Whole…, so that the manual does not explain it",
				set.Position(l.Pos()), l.Value)
		}
		return true
	})
}

// docs/manual/quiesce.md explains every reason, and no other.
func TestManualExplainsEveryReason(t *testing.T) {
	compareReasons(t, reasons(t), 30, "docs/manual/quiesce.md", "## Reasons", "\x00")
}

// docs/manual/cli.md explains every reason why a disk was read whole, and no other.
func TestManualExplainsWholeReads(t *testing.T) {
	compareReasons(t, wholes(t), 10, "docs/manual/cli.md", "### Why a disk was read whole", "### ")
}

// compareReasons compares the first cells of the tables below a heading with what is known; end
// begins the heading at which the tables end.
func compareReasons(t *testing.T, reasons map[string]string, fewest int, page, heading, end string) {
	t.Helper()
	documented := map[string]int{}
	inside := false
	for _, l := range linesOf(t, page) {
		inside = (inside && !strings.HasPrefix(l.text, end)) || l.text == heading
		if m := firstCell.FindStringSubmatch(l.text); inside && m != nil {
			documented[m[1]] = l.number
		}
	}
	known := map[string]bool{}
	for name, text := range reasons {
		text = verb.ReplaceAllString(text, "…")
		known[text] = true
		if documented[text] == 0 {
			t.Errorf("%s does not explain %s: `%s`", page, name, text)
		}
	}
	if len(known) < fewest {
		t.Errorf("only %d reasons were found", len(known))
	}
	for text, number := range documented {
		if !known[text] {
			t.Errorf("%s:%d explains a reason that nothing gives: `%s`", page, number, text)
		}
	}
}
