package inside_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-vm/holdfast/internal/drill/inside"
	"github.com/holdfast-vm/holdfast/internal/guest"
)

// fakeAgent answers with what is given by command; the last answer of several stays.
type fakeAgent map[string][]string

func (f fakeAgent) Close() error { return nil }

func (f fakeAgent) Command(ctx context.Context, name string, _ any) ([]byte, error) {
	list := f[name]
	if len(list) == 0 {
		return nil, &guest.Error{Class: "CommandNotFound", Desc: "The command " + name + " has been disabled"}
	}
	if len(list) > 1 {
		f[name] = list[1:]
	}
	return []byte(list[0]), ctx.Err()
}

func ended(status string, out string) string {
	text, _ := json.Marshal([]byte(out))
	return fmt.Sprintf(`{"exited":true,%s,"out-data":%s}`, status, text)
}

func TestRun(t *testing.T) {
	for _, tt := range []struct {
		name, started, status string
		want                  inside.Outcome
		err                   error
	}{
		{"passes", `{"pid":7}`, ended(`"exitcode":0`, "fine\n"), inside.Outcome{Output: "fine"}, nil},
		{"fails", `{"pid":7}`, ended(`"exitcode":4`, "a\r\nb\x1b[31m\xff"), inside.Outcome{Status: 4, Output: "a\nb[31m"}, nil},
		{"killed", `{"pid":7}`, ended(`"signal":9`, ""), inside.Outcome{Status: -1}, nil},
		{"long", `{"pid":7}`, ended(`"exitcode":0`, strings.Repeat("line\n", 1000)+"end"), inside.Outcome{Output: strings.Repeat("line\n", 399) + "end"}, nil},
		{"forbidden", "", "", inside.Outcome{}, inside.ErrNoExec},
		{"nonsense", `[]`, "", inside.Outcome{}, guest.ErrProtocol},
		{"nonsense later", `{"pid":7}`, `{"exited":"x"}`, inside.Outcome{}, guest.ErrProtocol},
		{"hangs", `{"pid":7}`, `{"exited":false}`, inside.Outcome{}, context.DeadlineExceeded},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
				defer cancel()
				a := fakeAgent{"guest-get-osinfo": {`{"id":"debian","pretty-name":"Debian 12"}`}}
				if tt.started != "" {
					a["guest-exec"] = []string{tt.started}
					a["guest-exec-status"] = []string{`{"exited":false}`, tt.status}
				}
				g, err := inside.Open(ctx, a)
				if err != nil || g.Windows() || g.System() != "Debian 12" {
					t.Fatalf("%+v, %v", g, err)
				}
				got, err := g.Run(ctx, inside.Command{Path: "/bin/true"})
				if !errors.Is(err, tt.err) || tt.err == nil && err != nil {
					t.Fatalf("error %v, want %v", err, tt.err)
				}
				if err == nil && got != tt.want {
					t.Errorf("%+v, want %+v", got, tt.want)
				}
			})
		})
	}
}

// A guest that does not say what it is, is taken for a Unix; a Windows says so.
func TestOpen(t *testing.T) {
	if g, err := inside.Open(t.Context(), fakeAgent{}); err != nil || g.Windows() || g.System() != "" {
		t.Errorf("%+v, %v", g, err)
	}
	if g, err := inside.Open(t.Context(), fakeAgent{"guest-get-osinfo": {`{"id":"mswindows","name":"Microsoft Windows"}`}}); err != nil || !g.Windows() {
		t.Errorf("%+v, %v", g, err)
	}
	if _, err := inside.Open(t.Context(), fakeAgent{"guest-get-osinfo": {`7`}}); err == nil {
		t.Error("an answer that is none is taken")
	}
}
