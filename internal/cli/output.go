package cli

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"math/big"
	"regexp"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

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

// jsonList prints a list element by element, as printJSON would print it as a whole.
type jsonList struct {
	out io.Writer
	n   int // elements
}

func (l *jsonList) add(v any) error {
	var one bytes.Buffer
	one.WriteString("[\n  ")
	if l.n > 0 {
		one.Reset()
		one.WriteString(",\n  ")
	}
	l.n++
	enc := json.NewEncoder(&one)
	enc.SetIndent("  ", "  ")
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return err
	}
	_, err := l.out.Write(bytes.TrimSuffix(one.Bytes(), []byte("\n")))
	return err
}

func (l *jsonList) end() error {
	after := "\n]\n"
	if l.n == 0 {
		after = "[]\n"
	}
	_, err := io.WriteString(l.out, after)
	return err
}

// printJSONList prints list as printJSON would. There may be thousands of points with a definition
// each: what is to be printed is kept compressed until it is known that there is no error.
func printJSONList[T any](a *app, list iter.Seq2[T, error]) error {
	var kept bytes.Buffer
	pack, err := zstd.NewWriter(&kept, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1),
		zstd.WithWindowSize(1<<20))
	if err != nil {
		return err
	}
	out := &jsonList{out: pack}
	for v, err := range list {
		if err != nil {
			return err
		}
		if err := out.add(v); err != nil {
			return err
		}
	}
	if err := errors.Join(out.end(), pack.Close()); err != nil {
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
	_, err := fmt.Fprintln(a.env.Stdout, visible(line))
	return err
}

// printable keeps a name that a guest made up, or anything else that belongs on one line, from
// doing things to a terminal.
func printable(name string) string {
	plain := utf8.ValidString(name)
	for _, r := range name {
		plain = plain && strconv.IsPrint(r)
	}
	if plain {
		return name
	}
	quoted := strconv.Quote(name)
	return quoted[1 : len(quoted)-1]
}

// visible does the same for text of several lines.
func visible(text string) string {
	lines := strings.Split(text, "\n")
	for i, l := range lines {
		fields := strings.Split(l, "\t")
		for k, f := range fields {
			fields[k] = printable(f)
		}
		lines[i] = strings.Join(fields, "\t")
	}
	return strings.Join(lines, "\n")
}

// printTable prints rows under headings. A column is right-aligned where its heading begins with
// ">".
func (a *app) printTable(columns []string, rows [][]string) error {
	return a.newTable(columns...).print(rows)
}

// pagedTable prints a table in parts, none of whose columns are narrower than those before.
type pagedTable struct {
	a       *app
	columns []string
	widths  []int
	begun   bool
}

func (a *app) newTable(columns ...string) *pagedTable {
	return &pagedTable{a: a, columns: columns, widths: make([]int, len(columns))}
}

// print prints the next rows, the first time with the headings.
func (p *pagedTable) print(rows [][]string) error {
	if p.begun && len(rows) == 0 {
		return nil
	}
	t := table.NewWriter()
	t.SetStyle(plainTable())
	var header table.Row
	for _, c := range p.columns {
		header = append(header, strings.TrimPrefix(c, ">"))
	}
	if !p.begun {
		t.AppendHeader(header)
	}
	p.begun = true
	for _, r := range rows {
		var row table.Row
		for i, cell := range r {
			cell = printable(cell)
			row = append(row, cell)
			p.widths[i] = max(p.widths[i], text.StringWidthWithoutEscSequences(cell))
		}
		t.AppendRow(row)
	}
	var config []table.ColumnConfig
	for i, c := range p.columns {
		align := text.AlignLeft
		if strings.HasPrefix(c, ">") {
			align = text.AlignRight
		}
		p.widths[i] = max(p.widths[i], len(strings.TrimPrefix(c, ">")))
		config = append(config, table.ColumnConfig{Number: i + 1, Align: align, AlignHeader: align,
			WidthMin: p.widths[i]})
	}
	t.SetColumnConfigs(config)
	return p.a.printTrimmed(t.Render())
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
			fmt.Fprintf(&b, "%-*s  %s\n", width, f[0], visible(f[1]))
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

var sizeForm = regexp.MustCompile(`^ *([0-9]+\.?[0-9]*|\.[0-9]+) *(?:([kmgtp])(?:i?b)?|b)?$`)

// parseSize reads a size such as 1GiB, 512M or 4096 in bytes. K, M, G, T and P are powers of 1024,
// with or without iB. Parts of a byte are left out.
func parseSize(s string) (int64, error) {
	parts := sizeForm.FindStringSubmatch(strings.ToLower(s))
	if parts == nil {
		return 0, notSize(s)
	}
	number, ok := new(big.Rat).SetString(parts[1])
	if !ok {
		return 0, notSize(s)
	}
	factor := big.NewInt(1)
	factor.Lsh(factor, 10*uint(strings.Index(" kmgtp", parts[2])))
	number.Mul(number, new(big.Rat).SetInt(factor))
	n := new(big.Int).Quo(number.Num(), number.Denom())
	if n.BitLen() > 62 {
		return 0, notSize(s)
	}
	return n.Int64(), nil
}

func notSize(s string) error { return fmt.Errorf("%q is not a size such as 512MiB or 1GiB", s) }

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
