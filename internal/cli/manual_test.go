package cli

import (
	"bufio"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/holdfast-vm/holdfast/internal/drill/role"
)

const manual = "../../docs/manual/"

// manualPages are the documents that show commands.
func manualPages(t *testing.T) []string {
	t.Helper()
	pages, err := filepath.Glob(manual + "*.md")
	if err != nil || len(pages) == 0 {
		t.Fatalf("no manual: %v", err)
	}
	return append(pages, "../../README.md")
}

// tableUnder returns the cells of the first table after a line of a page, without its head.
func tableUnder(t *testing.T, page, heading string) (rows [][]string) {
	t.Helper()
	f, err := os.Open(manual + page)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	found, head := false, 2
	for s := bufio.NewScanner(f); s.Scan(); {
		switch {
		case s.Text() == heading:
			found = true
		case !found:
		case !strings.HasPrefix(s.Text(), "|"):
			if head == 0 {
				return rows
			}
		case head > 0:
			head--
		default:
			var cells []string
			for _, cell := range strings.Split(strings.Trim(s.Text(), "|"), " |") {
				cells = append(cells, strings.TrimSpace(cell))
			}
			rows = append(rows, cells)
		}
	}
	if !found {
		t.Fatalf("%s has no line %q", page, heading)
	}
	return rows
}

func tree() *cobra.Command {
	a := &app{env: Env{Stdin: strings.NewReader(""), Stdout: io.Discard, Stderr: io.Discard,
		Getenv: func(string) string { return "" }}}
	root := a.root()
	root.InitDefaultHelpFlag()
	return root
}

// leaves calls visit with every command that people type.
func leaves(c *cobra.Command, visit func(*cobra.Command)) {
	for _, sub := range c.Commands() {
		switch {
		case sub.Hidden || sub.Name() == "help" || sub.Name() == "completion":
		case sub.HasSubCommands():
			leaves(sub, visit)
		default:
			visit(sub)
		}
	}
}

// The manual has every command, says of each what its help says, and has no other.
func TestManualHasEveryCommand(t *testing.T) {
	documented := map[string]string{}
	for _, row := range tableUnder(t, "cli.md", "## Commands") {
		documented[strings.Trim(row[0], "`")] = row[1]
	}
	leaves(tree(), func(c *cobra.Command) {
		name := verbOf(c)
		switch text, ok := documented[name]; {
		case !ok:
			t.Errorf("cli.md lacks this row of its table of commands: | `%s` | %s |", name, c.Short)
		case text != c.Short:
			t.Errorf("cli.md says of `%s` %q, its help says %q", name, text, c.Short)
		}
		delete(documented, name)
	})
	for name := range documented {
		t.Errorf("cli.md has a command `%s`, which does not exist", name)
	}
}

// The manual, the help and the program know the same exit statuses.
func TestManualHasEveryStatus(t *testing.T) {
	known := map[string]string{}
	for _, s := range statuses {
		known[strconv.Itoa(s.status)] = s.meaning
		if !strings.Contains(exitStatusHelp(), s.meaning) {
			t.Errorf("help lacks status %d", s.status)
		}
	}
	documented := map[string]string{}
	for _, row := range tableUnder(t, "cli.md", "## Exit status") {
		documented[row[0]] = strings.ReplaceAll(row[1], "`", "")
	}
	compare(t, "cli.md: exit status", documented, known)
	for _, c := range causes {
		if known[strconv.Itoa(c.status)] == "" {
			t.Errorf("the cause %q ends with status %d, which is in no table", c.kind, c.status)
		}
	}
	for name, value := range statusConstants(t) {
		if known[value] == "" {
			t.Errorf("%s (%s) is in no table", name, value)
		}
	}
	number := regexp.MustCompile(`(?:^|, )(\d+) `)
	leaves(tree(), func(c *cobra.Command) {
		_, text, found := strings.Cut(c.Long, "Exit status: ")
		if !found {
			return
		}
		for _, m := range number.FindAllStringSubmatch(text, -1) {
			if known[m[1]] == "" {
				t.Errorf("the help of %s names status %s, which is in no table", verbOf(c), m[1])
			}
		}
	})
}

// statusConstants returns the constants Status… of this package.
func statusConstants(t *testing.T) map[string]string {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), "failure.go", nil, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, d := range file.Decls {
		g, ok := d.(*ast.GenDecl)
		if !ok || g.Tok != token.CONST {
			continue
		}
		for _, s := range g.Specs {
			v := s.(*ast.ValueSpec)
			if strings.HasPrefix(v.Names[0].Name, "Status") {
				out[v.Names[0].Name] = v.Values[0].(*ast.BasicLit).Value
			}
		}
	}
	if len(out) == 0 {
		t.Fatal("no constant Status… was found")
	}
	return out
}

func compare(t *testing.T, what string, documented, known map[string]string) {
	t.Helper()
	for key, want := range known {
		if got, ok := documented[key]; !ok {
			t.Errorf("%s: %s is missing: %s", what, key, want)
		} else if got != want {
			t.Errorf("%s: %s means %q, the manual says %q", what, key, want, got)
		}
	}
	for key := range documented {
		if _, ok := known[key]; !ok {
			t.Errorf("%s: there is no %s", what, key)
		}
	}
}

// The manual has every kind of error that --json prints, and no other.
func TestManualHasEveryKind(t *testing.T) {
	text, err := os.ReadFile(manual + "cli.md")
	if err != nil {
		t.Fatal(err)
	}
	_, list, found := strings.Cut(string(text), "`kind` is for programs and does not change: ")
	if !found {
		t.Fatal("cli.md has no list of kinds")
	}
	list, _, _ = strings.Cut(list, ", and `error` for all else")
	documented, known := map[string]string{}, map[string]string{}
	for _, kind := range strings.Split(list, ",") {
		documented[strings.Trim(strings.TrimSpace(kind), "`")] = ""
	}
	for _, c := range causes {
		known[c.kind] = ""
	}
	compare(t, "cli.md: kinds of errors", documented, known)
}

var (
	variableName = regexp.MustCompile(`HOLDFAST_[A-Z_]+`)
	variableRead = regexp.MustCompile(`(?:Getenv\(|Env\s+= )"(HOLDFAST_[A-Z_]+)"`)
)

// variablesRead returns the variables of the environment that product code reads.
func variablesRead(t *testing.T) map[string]string {
	t.Helper()
	read := map[string]string{}
	err := filepath.WalkDir("..", func(name string, d fs.DirEntry, err error) error {
		if err != nil || filepath.Ext(name) != ".go" || strings.HasSuffix(name, "_test.go") ||
			strings.HasSuffix(filepath.Dir(name), "test") {
			return err
		}
		text, err := os.ReadFile(name)
		for _, m := range variableRead.FindAllStringSubmatch(string(text), -1) {
			read[m[1]] = ""
		}
		return err
	})
	if err != nil || len(read) == 0 {
		t.Fatalf("no variable was found: %v", err)
	}
	return read
}

// The help and the manual have every variable of the environment that the program reads.
func TestManualHasEveryVariable(t *testing.T) {
	read := variablesRead(t)
	documented := func(text string) map[string]string {
		out := map[string]string{}
		for _, v := range variableName.FindAllString(text, -1) {
			out[v] = ""
		}
		return out
	}
	compare(t, "holdfast help environment", documented(environmentHelp), read)
	var all strings.Builder
	for _, page := range manualPages(t) {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		all.Write(text)
	}
	compare(t, "the manual's variables", documented(all.String()), read)
}

// foreign are flags of other programs that the manual names.
var foreign = []string{"--fsfreeze-hook", "--block-rpcs"}

var flagName = regexp.MustCompile(`(?:^|[\s(\[/|` + "`" + `])(--[a-z][a-z-]*)`)

// The manual names every flag of every command, and none that does not exist.
func TestManualHasEveryFlag(t *testing.T) {
	known, documented := map[string][]string{}, map[string]string{}
	root := tree()
	note := func(c *cobra.Command, f *pflag.Flag) {
		if !f.Hidden && f.Name != "help" {
			known["--"+f.Name] = append(known["--"+f.Name], verbOf(c))
		}
	}
	root.PersistentFlags().VisitAll(func(f *pflag.Flag) { note(root, f) })
	leaves(root, func(c *cobra.Command) {
		c.Flags().VisitAll(func(f *pflag.Flag) { note(c, f) })
		c.InheritedFlags().VisitAll(func(f *pflag.Flag) { note(c.Parent(), f) })
	})
	for _, page := range manualPages(t) {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range flagName.FindAllStringSubmatch(string(text), -1) {
			if !slices.Contains(foreign, m[1]) && m[1] != "--help" {
				documented[m[1]] = filepath.Base(page)
			}
		}
	}
	for name, of := range known {
		if documented[name] == "" {
			t.Errorf("the manual does not name %s of %s", name, strings.Join(of, ", "))
		}
	}
	for name, page := range documented {
		if known[name] == nil {
			t.Errorf("%s names %s, which no command has", page, name)
		}
	}
}

// The commands that the manual and the help show can be typed.
func TestExamplesCanBeTyped(t *testing.T) {
	count := 0
	try := func(where, line string) {
		if line = strings.TrimPrefix(line, "$ "); !strings.HasPrefix(line, "holdfast ") ||
			strings.ContainsAny(line, "[|…") || strings.Contains(line, "...") {
			return // another program, or a synopsis
		}
		count++
		if err := parseLine(line); err != nil {
			t.Errorf("%s: %q: %v", where, line, err)
		}
	}
	for _, page := range manualPages(t) {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		fenced := false
		for line := range strings.Lines(string(text)) {
			if strings.HasPrefix(strings.TrimSpace(line), "```") {
				fenced = !fenced
			} else if fenced {
				try(filepath.Base(page), strings.TrimSpace(line))
			}
		}
	}
	leaves(tree(), func(c *cobra.Command) {
		for line := range strings.Lines(c.Example) {
			try("help of "+verbOf(c), strings.TrimSpace(line))
		}
	})
	if count < 100 {
		t.Errorf("only %d examples were found", count)
	}
}

var word = regexp.MustCompile(`(?:[^\s'"]|'[^']*'|"[^"]*")+`)

// parseLine returns what is wrong with a command line.
func parseLine(line string) error {
	var args []string
	for _, w := range word.FindAllString(line, -1)[1:] {
		if w == "&" || w == "&&" || strings.HasPrefix(w, "#") || strings.HasPrefix(w, ">") {
			break
		}
		args = append(args, strings.NewReplacer("'", "", `"`, "").Replace(w))
	}
	root := tree()
	c, rest, err := root.Find(args)
	if err != nil {
		return err
	}
	if c.HasSubCommands() {
		return usagef("%s is not a command by itself", verbOf(c))
	}
	if err := c.ParseFlags(rest); err != nil {
		return err
	}
	return c.Args(c, c.Flags().Args())
}

// The help of point drill has every role, and no other.
func TestHelpHasEveryRole(t *testing.T) {
	c, _, err := tree().Find([]string{"point", "drill"})
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(c.Long, "--role knows what to look at:\n\n")
	table, _, _ = strings.Cut(table, "\n\n")
	documented, known := map[string]string{}, map[string]string{}
	for _, m := range regexp.MustCompile(`(?m)(?:^  |  +)([a-z]+)(?:=[A-Z]+)?  `).FindAllStringSubmatch(table+"  ", -1) {
		documented[m[1]] = ""
	}
	for _, name := range role.Names() {
		known[name] = ""
	}
	compare(t, "the help of point drill: roles", documented, known)
}
