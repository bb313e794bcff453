package hostcheck

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// versions are written as the manual has them.
func (s span) String() string {
	switch {
	case s == span{}:
		return "all"
	case s.from == version{}:
		return "before " + short(s.before)
	case s.before == version{}:
		return "from " + short(s.from)
	}
	return short(s.from) + " to before " + short(s.before)
}

func short(v version) string { return strings.TrimSuffix(v.String(), ".0") }

func (t trap) row() string {
	var in []string
	for _, s := range t.in {
		in = append(in, s.String())
	}
	ours := t.ours
	if t.advice != "" {
		ours = strings.TrimPrefix(ours+"; "+t.advice, "; ")
	}
	return fmt.Sprintf("| %s | %s, %s | %s | %s |", t.id, t.of, strings.Join(in, ", "), t.what, ours)
}

// The manual has a section for every check and a row for every trap, word for word, and no others.
func TestManual(t *testing.T) {
	text, err := os.ReadFile("../../" + manual)
	if err != nil {
		t.Fatal(err)
	}
	rest := string(text)
	for _, name := range Names() {
		_, after, found := strings.Cut(rest, "\n### "+name+"\n")
		if !found {
			t.Errorf("%s has no section %s, or not in the order of the checks", manual, name)
			continue
		}
		rest = after
	}
	_, section, _ := strings.Cut(string(text), "\n### traps\n")
	section, _, _ = strings.Cut(section, "\n### ")
	rows := map[string]bool{}
	for line := range strings.Lines(section) {
		if line = strings.TrimSpace(line); strings.HasPrefix(line, "| ") && !strings.HasPrefix(line, "| trap ") {
			rows[line] = true
		}
	}
	for _, trap := range traps {
		if row := trap.row(); !rows[row] {
			t.Errorf("%s lacks the row\n%s", manual, row)
		} else {
			delete(rows, row)
		}
		if (trap.ours != "") != (trap.verdict == Avoided) {
			t.Errorf("%s is %s, and what keeps us out of it is %q", trap.id, trap.verdict, trap.ours)
		}
	}
	for row := range rows {
		t.Errorf("%s has a row that belongs to no trap: %s", manual, row)
	}
}
