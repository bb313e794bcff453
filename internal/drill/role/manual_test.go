package role_test

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/drill/role"
)

// The manual has every role, and no other.
func TestManualHasEveryRole(t *testing.T) {
	text, err := os.ReadFile("../../../docs/manual/drill.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, found := strings.Cut(string(text), "| role | asks |\n|---|---|\n")
	if !found {
		t.Fatal("drill.md has no table of roles")
	}
	table, _, _ = strings.Cut(table, "\n\n")
	var documented []string
	for row := range strings.Lines(table) {
		cell, _, _ := strings.Cut(strings.TrimPrefix(row, "|"), "|")
		for _, m := range regexp.MustCompile("`([a-z]+)(?:=[A-Z]+)?`").FindAllStringSubmatch(cell, -1) {
			documented = append(documented, m[1])
			if !slices.Contains(role.Names(), m[1]) {
				t.Errorf("drill.md has a role `%s`, which does not exist", m[1])
			}
		}
	}
	for _, name := range role.Names() {
		if !slices.Contains(documented, name) {
			t.Errorf("drill.md lacks the role `%s`: say what it asks", name)
		}
	}
}
