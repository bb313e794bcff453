package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"unicode/utf8"
)

func main() {
	if len(os.Args) == 5 && os.Args[1] == "log" {
		if err := listLog(os.Stdout, os.Args[2], os.Args[3], os.Args[4]); err != nil {
			fmt.Fprintln(os.Stderr, "reader:", err)
			os.Exit(1)
		}
		return
	}
	if len(os.Args) != 3 && len(os.Args) != 5 {
		fmt.Fprintln(os.Stderr, "usage: reader VAULTDIR KEYFILE [POINT DISK > out]\n       reader log DIR DATAKEY "+
			"VAULTID")
		os.Exit(1)
	}
	if err := run(os.Args[1], os.Args[2], os.Args[3:]); err != nil {
		fmt.Fprintln(os.Stderr, "reader:", err)
		os.Exit(1)
	}
}

// run lists the points of a vault, or copies one disk of one.
func run(dir, keyFile string, what []string) error {
	key, err := os.ReadFile(keyFile)
	if err != nil {
		return err
	}
	v, err := open(dir, key)
	if err != nil {
		return err
	}
	out := bufio.NewWriterSize(os.Stdout, 1<<20)
	if err := v.write(out, what); err != nil {
		return err
	}
	return out.Flush()
}

func (v *vaultDir) write(out io.Writer, what []string) error {
	if len(what) == 0 {
		return v.listPoints(out)
	}
	p, err := v.point(what[0])
	if err != nil {
		return err
	}
	if what[1] == "notes" {
		return v.listNotes(out, p)
	}
	return v.copyDisk(out, p, what[1])
}

// listPoints writes a line for each point.
func (v *vaultDir) listPoints(w io.Writer) error {
	for _, id := range v.pointIDs() {
		p, err := v.point(id)
		if err != nil {
			return err
		}
		fmt.Fprintf(w, "%s %s %s", p.ID, p.Time, p.VM)
		if v.has("D", id) {
			fmt.Fprint(w, " deleted")
		}
		if v.has("H", id) {
			fmt.Fprint(w, " held")
		}
		fmt.Fprintln(w)
	}
	return nil
}

// listNotes writes a line for each note of a point, and after it the body if that is text.
func (v *vaultDir) listNotes(w io.Writer, p *manifest) error {
	notes, err := v.notes(p.ID)
	if err != nil {
		return err
	}
	for _, n := range notes {
		fmt.Fprintf(w, "%s %s %s %d bytes\n", n.ID, n.Time.Format("2006-01-02 15:04:05"), n.Kind, len(n.Body))
		if utf8.Valid(n.Body) {
			fmt.Fprintf(w, "%s\n", n.Body)
		}
	}
	return nil
}
