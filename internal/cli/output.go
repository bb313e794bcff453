package cli

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"strconv"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
	"github.com/klauspost/compress/zstd"
)

func (a *app) printJSON(v any) error {
	enc := json.NewEncoder(a.env.Stdout)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// printJSONList prints list as printJSON would. There may be thousands of points with a definition
// each: what is to be printed is kept compressed until it is known that there is no error.
func printJSONList[T any](a *app, list iter.Seq2[T, error]) error {
	var kept, one bytes.Buffer
	out, err := zstd.NewWriter(&kept, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1),
		zstd.WithWindowSize(1<<20))
	if err != nil {
		return err
	}
	enc := json.NewEncoder(&one)
	enc.SetIndent("  ", "  ")
	enc.SetEscapeHTML(false)
	before, after := "[\n  ", "[]\n"
	for v, err := range list {
		if err != nil {
			return err
		}
		one.Reset()
		one.WriteString(before)
		if err := enc.Encode(v); err != nil {
			return err
		}
		if _, err := out.Write(bytes.TrimSuffix(one.Bytes(), []byte("\n"))); err != nil {
			return err
		}
		before, after = ",\n  ", "\n]\n"
	}
	if _, err := io.WriteString(out, after); err != nil {
		return err
	}
	if err := out.Close(); err != nil {
		return err
	}
	in, err := zstd.NewReader(&kept, zstd.WithDecoderConcurrency(1))
	if err != nil {
		return err
	}
	defer in.Close()
	_, err = io.Copy(a.env.Stdout, in)
	return err
}

func (a *app) println(line string) error {
	_, err := fmt.Fprintln(a.env.Stdout, line)
	return err
}

// column is a heading; right-aligned where it begins with ">".
func (a *app) printTable(columns []string, rows [][]string) error {
	t := table.NewWriter()
	t.SetStyle(plainTable())
	var header table.Row
	var config []table.ColumnConfig
	for i, c := range columns {
		align := text.AlignLeft
		if strings.HasPrefix(c, ">") {
			align = text.AlignRight
		}
		header = append(header, strings.TrimPrefix(c, ">"))
		config = append(config, table.ColumnConfig{Number: i + 1, Align: align, AlignHeader: align})
	}
	t.AppendHeader(header)
	t.SetColumnConfigs(config)
	for _, r := range rows {
		var row table.Row
		for _, cell := range r {
			row = append(row, cell)
		}
		t.AppendRow(row)
	}
	return a.printTrimmed(t.Render())
}

// printFields prints what is known of one thing, a line for each field that is not empty.
func (a *app) printFields(fields ...[2]string) error {
	width := 0
	for _, f := range fields {
		width = max(width, len(f[0]))
	}
	var b strings.Builder
	for _, f := range fields {
		if f[1] != "" {
			fmt.Fprintf(&b, "%-*s  %s\n", width, f[0], f[1])
		}
	}
	return a.printTrimmed(b.String())
}

func (a *app) printTrimmed(s string) error {
	out := bufio.NewWriter(a.env.Stdout)
	for line := range strings.Lines(strings.TrimRight(s, "\n")) {
		if _, err := fmt.Fprintln(out, strings.TrimRight(line, " \n")); err != nil {
			return err
		}
	}
	return out.Flush()
}

func plainTable() table.Style {
	s := table.StyleDefault
	s.Box = table.BoxStyle{PaddingRight: "  "}
	s.Options = table.OptionsNoBordersAndSeparators
	s.Format.Header = text.FormatUpper
	return s
}

// humanSize returns bytes for people, such as 1.5 GiB.
func humanSize(n int64) string {
	if n < 1024 && n > -1024 {
		return strconv.FormatInt(n, 10) + " B"
	}
	v := float64(n)
	units := []string{"KiB", "MiB", "GiB", "TiB", "PiB"}
	for i, u := range units {
		v /= 1024
		if (v < 1023.95 && v > -1023.95) || i == len(units)-1 {
			return strconv.FormatFloat(v, 'f', 1, 64) + " " + u
		}
	}
	return ""
}

// parseSize reads a size such as 1GiB, 512M or 4096 in bytes. K, M, G, T and P are powers of 1024,
// with or without iB.
func parseSize(s string) (int64, error) {
	number := strings.TrimRight(s, "BbiKkMmGgTtPp")
	unit := strings.ToLower(strings.TrimPrefix(s, number))
	factors := map[string]float64{"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40, "p": 1 << 50}
	factor, ok := factors[strings.TrimSuffix(strings.TrimSuffix(unit, "ib"), "b")]
	v, err := strconv.ParseFloat(strings.TrimSpace(number), 64)
	if err != nil || !ok || unit == "ib" || !(v >= 0 && v*factor < 1<<62) {
		return 0, fmt.Errorf("%q is not a size such as 512MiB or 1GiB", s)
	}
	return int64(v * factor), nil
}

// humanAge returns how long ago t was, in the largest unit that says enough.
func humanAge(now, t time.Time) string {
	d := now.Sub(t)
	switch {
	case d < 0:
		return "in the future"
	case d < 2*time.Minute:
		return fmt.Sprintf("%d s", int(d.Seconds()))
	case d < 2*time.Hour:
		return fmt.Sprintf("%d min", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h", int(d.Hours()))
	}
	return fmt.Sprintf("%d d", int(d.Hours()/24))
}

func humanTime(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05") }

// counted returns "1 disk", "3 disks", "2 directories".
func counted[N ~int | ~int64](n N, one string) string {
	stem, isY := strings.CutSuffix(one, "y")
	switch {
	case n == 1:
		return "1 " + one
	case isY:
		return fmt.Sprintf("%d %sies", n, stem)
	}
	return fmt.Sprintf("%d %ss", n, one)
}
