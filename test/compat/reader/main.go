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
	if len(os.Args) != 5 {
		fmt.Fprintln(os.Stderr, "usage: reader VAULTDIR KEYFILE POINT DISK > out\n       reader log DIR DATAKEY "+
			"VAULTID")
		os.Exit(1)
	}
	if err := run(os.Args[1], os.Args[2], os.Args[3], os.Args[4]); err != nil {
		fmt.Fprintln(os.Stderr, "reader:", err)
		os.Exit(1)
	}
}

func run(dir, keyFile, ref, disk string) error {
	key, err := os.ReadFile(keyFile)
	if err != nil {
		return err
	}
	v, err := open(dir, key)
	if err != nil {
		return err
	}
	p, err := v.point(ref)
	if err != nil {
		return err
	}
	out := bufio.NewWriterSize(os.Stdout, 1<<20)
	if disk == "notes" {
		if err := v.listNotes(out, p); err != nil {
			return err
		}
		return out.Flush()
	}
	if err := v.copyDisk(out, p, disk); err != nil {
		return err
	}
	return out.Flush()
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
