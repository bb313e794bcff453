package main

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const goldenLog = "../../../internal/vault/log/testdata/golden"

// The golden log reads as it must, entry by entry, and every checkpoint in it holds what the
// entries up to it fold to by the text.
func TestGoldenLog(t *testing.T) {
	dataKey, vaultID := make([]byte, 32), make([]byte, 16)
	dataKey[0], vaultID[0] = 1, 2
	l, err := openLog(filepath.Join(goldenLog, "log"), dataKey, vaultID)
	if err != nil {
		t.Fatal(err)
	}
	all, err := l.entries()
	if err != nil {
		t.Fatal(err)
	}
	var want struct {
		Entries  int
		Head     string
		Counters struct{ Points, Packs, Bytes, Condemned uint64 }
		Points   []string
	}
	raw, err := os.ReadFile(filepath.Join(goldenLog, "expected.json"))
	if err == nil {
		err = json.Unmarshal(raw, &want)
	}
	if err != nil {
		t.Fatal(err)
	}
	last := all[len(all)-1]
	if len(all) != want.Entries || hex.EncodeToString(last.hash[:]) != want.Head {
		t.Errorf("%d entries up to %x, want %d up to %s", len(all), last.hash, want.Entries, want.Head)
	}
	s, err := foldLog(all)
	if err != nil {
		t.Fatal(err)
	}
	if w := want.Counters; s.sums != [4]uint64{w.Points, w.Packs, w.Bytes, w.Condemned} {
		t.Errorf("sums %v, want %+v", s.sums, w)
	}
	var points []string
	living := s.living()
	for k := range living {
		if _, purged := living["G"+k[1:]]; k[0] == 'P' && !purged {
			points = append(points, hex.EncodeToString([]byte(k[1:])))
		}
	}
	slices.Sort(points)
	if !slices.Equal(points, want.Points) {
		t.Errorf("%d points, want %d", len(points), len(want.Points))
	}
	requireCheckpoints(t, l, all)
	var out bytes.Buffer
	if err := listLog(&out, l.dir, hex.EncodeToString(dataKey), hex.EncodeToString(vaultID)); err != nil ||
		strings.Count(out.String(), "\n") != want.Entries {
		t.Errorf("the list has %d lines: %v", strings.Count(out.String(), "\n"), err)
	}
}

func requireCheckpoints(t *testing.T, l *logDir, all []*logEntry) {
	t.Helper()
	files, err := os.ReadDir(filepath.Join(l.dir, "checkpoint"))
	if err != nil || len(files) < 2 {
		t.Fatalf("%d checkpoints: %v", len(files), err)
	}
	for _, f := range files {
		got, err := l.checkpoint("checkpoint/"+f.Name(), nil)
		if err != nil {
			t.Errorf("checkpoint %s: %v", f.Name(), err)
			continue
		}
		want, err := foldLog(all[:got.count])
		if err != nil {
			t.Fatal(err)
		}
		if !maps.EqualFunc(got.living(), want.living(), bytes.Equal) || got.sums != want.sums ||
			!bytes.Equal(got.forget, want.forget) {
			t.Errorf("the checkpoint of %d entries has %d rows, sums %v; the entries fold to %d, %v", got.count,
				len(got.living()),
				got.sums, len(want.living()), want.sums)
		}
	}
	for _, e := range all {
		if e.checkpointName == "" {
			continue
		}
		if _, err := l.checkpoint(e.checkpointName, e.checkpointHash); err != nil {
			t.Errorf("the checkpoint that volume %d begins with: %v", e.at.volume, err)
		}
	}
}
