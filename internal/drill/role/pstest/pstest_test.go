package pstest_test

import (
	"fmt"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/drill/role/pstest"
)

func TestRead(t *testing.T) {
	for script, want := range map[string]string{
		"$a = 'it''s' # note's\n& $a":   "[{variable a} {sign =} {string it's} {sign &} {variable a}]",
		`Write-Output "$x and $($y.z)"`: `[{word Write-Output} {template "$x and $($y.z)"} {variable x} {bracket (} {variable y} {word .z} {bracket )}]`,
		"$env:Path; @(1)[0]": "[{variable env:Path} {sign ;} {sign @} {bracket (} {word 1} {bracket )} " +
			"{bracket [} {word 0} {bracket ]}]",
		"‘a’’b’":              "[{string a’b}]",
		`"a""b` + "`" + `"c"`: `[{template "a""b` + "`" + `"c"}]`,
	} {
		got, err := pstest.Read(script)
		if err != nil || fmt.Sprint(got) != want {
			t.Errorf("%s\n got %v, %v\nwant %v", script, got, err, want)
		}
	}
	for _, script := range []string{"'", `"`, "(", ")", "(]", "{ ( }", `"$(x"`, `"$(")"`, "$", "a `", "'it's'", "'a''"} {
		if got, err := pstest.Read(script); err == nil {
			t.Errorf("%q is read as %v", script, got)
		}
	}
	tokens, err := pstest.Read("$a = 'x'; $b = $a; Get-Item $b")
	if err != nil {
		t.Fatal(err)
	}
	if text, found := pstest.Assigned(tokens, "a"); !found || text != "x" {
		t.Errorf("%q, %v", text, found)
	}
	if _, found := pstest.Assigned(tokens, "b"); found || !pstest.Has(tokens, "get-item") || pstest.Has(tokens, "x") {
		t.Error("words and strings are taken for each other")
	}
}
