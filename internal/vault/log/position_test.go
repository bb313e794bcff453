package log_test

import (
	"testing"

	"github.com/holdfast-vm/holdfast/internal/vault/log"
)

// What String writes ParsePosition reads, and what it reads String writes again.
func FuzzParsePosition(f *testing.F) {
	for _, s := range []string{"0.0", "3.17", "00000001-0002/5.6", "00000000-0000/1.2", "1", "1.", ".1", "-1.2", "+1.2",
		"1.2.3", "4294967296.0", "0.4294967295", "x-y/1.2", "00000001-0002", "01.2"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p, ok := log.ParsePosition(s)
		if !ok {
			return
		}
		if again, ok := log.ParsePosition(p.String()); !ok || again != p {
			t.Errorf("%q is %v, whose text %q is %v, %v", s, p, p.String(), again, ok)
		}
	})
}

func TestParsePosition(t *testing.T) {
	for _, tt := range []struct {
		text string
		want log.Position
		ok   bool
	}{
		{"3.17", log.Position{Volume: log.Volume{Number: 3}, Number: 17}, true},
		{"00000001-0002/5.6", log.Position{Volume: log.Volume{Tenure: log.Tenure{Number: 1, Region: 2}, Number: 5},
			Number: 6},
			true},
		{text: "3"}, {text: "3."}, {text: "-3.1"}, {text: "3.1x"}, {text: "1-2/5.6"}, {text: "5000000000.1"},
		{text: ""},
	} {
		if got, ok := log.ParsePosition(tt.text); got != tt.want || ok != tt.ok {
			t.Errorf("ParsePosition(%q) = %v, %v, want %v, %v", tt.text, got, ok, tt.want, tt.ok)
		}
	}
}
