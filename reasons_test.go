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

// docs/manual/quiesce.md explains every reason, and no other.
func TestManualExplainsEveryReason(t *testing.T) {
	documented := map[string]int{}
	inside := false
	for _, l := range linesOf(t, "docs/manual/quiesce.md") {
		inside = inside || l.text == "## Reasons"
		if m := firstCell.FindStringSubmatch(l.text); inside && m != nil {
			documented[m[1]] = l.number
		}
	}
	known := map[string]bool{}
	for name, text := range reasons(t) {
		text = verb.ReplaceAllString(text, "…")
		known[text] = true
		if documented[text] == 0 {
			t.Errorf("docs/manual/quiesce.md does not explain %s: `%s`", name, text)
		}
	}
	if len(known) < 30 {
		t.Errorf("only %d reasons were found", len(known))
	}
	for text, number := range documented {
		if !known[text] {
			t.Errorf("docs/manual/quiesce.md:%d explains a reason that nothing gives: `%s`", number, text)
		}
	}
}
