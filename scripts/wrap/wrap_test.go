package main

import (
	"strings"
	"testing"
)

// Each part of a line is in its place afterwards, and nothing else is touched.
func TestWrap(t *testing.T) {
	long := strings.Repeat("word ", 22)
	for _, tt := range []struct{ name, src, want string }{
		{"narrow", "package a\n\n// Short.\nvar x = 1\n", "package a\n\n// Short.\nvar x = 1\n"},
		{"comment", "package a\n\n// " + long + "end\n// more.\nvar x = 1\n",
			"package a\n\n// " + strings.Repeat("word ", 18) + "word\n// word word word end more.\nvar x = 1\n"},
		{"list", "package a\n\n//   - " + long + "end\n//   - two\nvar x = 1\n",
			"package a\n\n//   - " + strings.Repeat("word ", 17) + "word\n//     word word word word end\n" +
				"//   - two\nvar x = 1\n"},
		{"quoted code", "package a\n\n// Thus:\n//\n//\t" + long + "end\nvar x = 1\n",
			"package a\n\n// Thus:\n//\n//\t" + long + "end\nvar x = 1\n"},
		{"behind code", "package a\n\nvar x = 1 // " + long + "end\n",
			"package a\n\n// " + strings.Repeat("word ", 18) + "word\n// word word word end\nvar x = 1\n"},
		{"call", "package a\n\nvar x = call(" + strings.Repeat("argument, ", 11) + "last(1, 2, 3, 4, 5))\n",
			"package a\n\nvar x = call(" + strings.Repeat("argument, ", 9) +
				"argument,\n\targument, last(1, 2, 3, 4, 5))\n"},
		{"string", "package a\n\nvar x = \"" + long + "end\"\n",
			"package a\n\nvar x = \"" + strings.Repeat("word ", 21) + "\" +\n\t\"word end\"\n"},
		{"data", "package a\n\nvar x = `" + long + long + "`\n", "package a\n\nvar x = `" + long + long + "`\n"},
		{"condition", "package a\n\nfunc f() {\n\tif " + strings.Repeat("one && two || ", 8) + "three {\n\t}\n}\n",
			"package a\n\nfunc f() {\n\tif " + strings.Repeat("one && two || ", 7) +
				"one && two ||\n\t\tthree {\n\t}\n}\n"},
		{"block", "package a\n\nfunc f() { call(" + strings.Repeat("argument, ", 10) + "last) }\n",
			"package a\n\nfunc f() {\n\tcall(" + strings.Repeat("argument, ", 10) + "last)\n}\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := wrap([]byte(tt.src))
			if err != nil {
				t.Fatal(err)
			}
			if string(got) != tt.want {
				t.Errorf("wrap:\n%s\nwant:\n%s", got, tt.want)
			}
			if again, err := wrap(got); err != nil || string(again) != string(got) {
				t.Errorf("wrapped once more: %v\n%s", err, again)
			}
			if tt.name == "quoted code" {
				return
			}
			if wide, err := tooWide(got); err != nil || len(wide) > 0 {
				t.Errorf("still too wide: %v, %v", wide, err)
			}
		})
	}
}

func TestTooWide(t *testing.T) {
	src := "package a\n\n// " + strings.Repeat("a ", 50) + "\nvar x = \"" + strings.Repeat("b", 120) + "\"\n"
	got, err := tooWide([]byte(src))
	if err != nil || len(got) != 2 || got[0].number != 3 || got[0].limit != 100 || got[1].number != 4 ||
		got[1].width != 130 {
		t.Errorf("tooWide = %+v, %v", got, err)
	}
}
