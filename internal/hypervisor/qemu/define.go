package qemu

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/holdfast-vm/holdfast/internal/child"
	"github.com/holdfast-vm/holdfast/internal/hypervisor"
	"github.com/holdfast-vm/holdfast/internal/point"
	"github.com/holdfast-vm/holdfast/internal/qmp"
)

const (
	startTime  = 60 * time.Second      // within which a started QEMU answers
	startPause = 20 * time.Millisecond // between two tries to reach it
	logTail    = 600                   // bytes of QEMU's own words in an error
)

// Define writes a start script StorageDir/NAME.sh for a machine whose monitor will be the socket of
// the host's URI, and runs it if asked, detached, with its output in StorageDir/NAME.log. It
// returns [hypervisor.ErrExists] if a machine answers at the socket, or the script exists, before
// it changes anything. A machine that does not start leaves only its log.
func (h *Host) Define(ctx context.Context, r hypervisor.Rebuild) (hypervisor.Rebuilt, error) {
	out, err := h.define(ctx, r)
	if err != nil {
		return hypervisor.Rebuilt{}, fmt.Errorf("build machine %s: %w", r.Name, err)
	}
	return out, nil
}

func (h *Host) define(ctx context.Context, r hypervisor.Rebuild) (hypervisor.Rebuilt, error) {
	if err := checkRebuild(r); err != nil {
		return hypervisor.Rebuilt{}, err
	}
	dir, err := filepath.Abs(r.StorageDir)
	if err != nil {
		return hypervisor.Rebuilt{}, err
	}
	r.StorageDir = dir
	if conn, err := net.Dial("unix", h.socket); err == nil || errors.Is(err, syscall.EAGAIN) {
		if err == nil {
			conn.Close()
		}
		return hypervisor.Rebuilt{}, fmt.Errorf("a machine answers at %s: %w", h.socket, hypervisor.ErrExists)
	}
	script := scriptPath(dir, r.Name)
	if _, err := os.Lstat(script); err == nil {
		return hypervisor.Rebuilt{}, fmt.Errorf("start script %s: %w", script, hypervisor.ErrExists)
	}
	w := newRewriter(r, h.socket, h.agent)
	w.rewrite()
	if w.refused != nil {
		return hypervisor.Rebuilt{}, w.refused
	}
	if err := w.makeCopies(); err != nil {
		return hypervisor.Rebuilt{}, err
	}
	if err := writeScript(script, w); err != nil {
		return hypervisor.Rebuilt{}, errors.Join(err, w.dropCopies())
	}
	out := hypervisor.Rebuilt{Name: r.Name, UUID: w.uuid, State: hypervisor.Off, Start: quote(script),
		Warnings: w.warnings}
	if !r.Start {
		return out, nil
	}
	log := filepath.Join(dir, r.Name+".log")
	_, missing := os.Lstat(log)
	if err := h.start(ctx, script, log); err != nil {
		err = errors.Join(err, os.Remove(script), w.dropCopies())
		if errors.Is(missing, os.ErrNotExist) { // what it says is in the error
			err = errors.Join(err, os.RemoveAll(log))
		}
		return hypervisor.Rebuilt{}, err
	}
	out.State = hypervisor.Running
	return out, nil
}

func checkRebuild(r hypervisor.Rebuild) error {
	switch def := r.Point.Definition; {
	case def.Kind != point.ForQEMU || len(def.Args) == 0:
		return fmt.Errorf("the point is of kind %q and has no QEMU command line", def.Kind)
	case r.Name == "" || strings.ContainsAny(r.Name, "/\x00\n") || strings.HasPrefix(r.Name, "."):
		return fmt.Errorf("%q is no name for a machine: it becomes a file's name", r.Name)
	case r.StorageDir == "":
		return errors.New("no storage directory is given")
	}
	return nil
}

// writeScript refuses to replace a file.
func writeScript(path string, w *rewriter) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("make storage directory: %w", err)
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o755)
	if errors.Is(err, os.ErrExist) {
		return fmt.Errorf("start script %s: %w", path, hypervisor.ErrExists)
	}
	if err != nil {
		return fmt.Errorf("write start script: %w", err)
	}
	_, err = f.WriteString(w.script())
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return errors.Join(fmt.Errorf("write start script: %w", err), os.Remove(path))
	}
	return syncDir(filepath.Dir(path))
}

// makeCopies makes the copies of the original's files, durably, and refuses to replace a file.
func (w *rewriter) makeCopies() error {
	for i, c := range w.copies {
		if err := copyFile(c); err != nil {
			w.copies = w.copies[:i]
			return errors.Join(fmt.Errorf("copy %s for the machine: %w", c.from, err), w.dropCopies())
		}
	}
	return nil
}

func copyFile(c fileCopy) error {
	in, err := os.Open(c.from)
	if err != nil {
		return err
	}
	defer in.Close()
	if err := os.MkdirAll(filepath.Dir(c.to), 0o755); err != nil {
		return err
	}
	out, err := os.OpenFile(c.to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	if err = errors.Join(err, out.Sync(), out.Close()); err != nil {
		return errors.Join(err, os.Remove(c.to))
	}
	return nil
}

func (w *rewriter) dropCopies() (err error) {
	for _, c := range w.copies {
		err = errors.Join(err, os.Remove(c.to))
	}
	return err
}

// script returns the start script. Options stand one to a line.
func (w *rewriter) script() string {
	var b strings.Builder
	b.WriteString("#!/bin/sh\n")
	fmt.Fprintf(&b, "# Starts the machine %s, rebuilt by Holdfast from recovery point %s.\nset -e\n", oneLine(w.r.Name),
		oneLine(string(w.r.Point.ID)))
	if dir := w.def.Dir; dir != "" && exists(dir) {
		fmt.Fprintf(&b, "cd %s\n", quote(dir))
	}
	if w.tpm != nil {
		fmt.Fprintf(&b, "mkdir -p %s\n", quote(w.tpm.dir))
		version := ""
		if w.tpm.version2 {
			version = " --tpm2"
		}
		fmt.Fprintf(&b, "swtpm socket%s --daemon --terminate --tpmstate %s --ctrl %s\n", version,
			quote("dir="+w.tpm.dir), quote("type=unixio,path="+w.tpm.socket))
	}
	return b.String() + execLines(w.cl)
}

// execLines is the command of a start script.
func execLines(cl commandLine) string {
	var b strings.Builder
	b.WriteString("exec " + quote(cl.program))
	for _, o := range cl.options {
		b.WriteString(" \\\n ")
		if o.name != "" {
			b.WriteString(" -" + quote(o.name))
		}
		if o.hasValue {
			b.WriteString(" " + quote(o.value))
		}
	}
	b.WriteString("\n")
	return b.String()
}

func oneLine(s string) string { return strings.NewReplacer("\n", " ", "\r", " ").Replace(s) }

// quote writes s as one word of a shell.
func quote(s string) string {
	plain := s != ""
	for _, r := range s {
		plain = plain && (r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' ||
			strings.ContainsRune("-_./=:,+@%", r))
	}
	if plain {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// start runs the script in a session of its own and waits until QEMU answers.
func (h *Host) start(ctx context.Context, script, logFile string) error {
	h.Close() // a connection to what ran before, which may not have ended yet, says nothing of what runs now
	log, err := os.OpenFile(logFile, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return fmt.Errorf("open log: %w", err)
	}
	defer log.Close()
	cmd := child.Command(script)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start machine: %w", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	if err := h.awaitQEMU(ctx, ended); err != nil {
		return fmt.Errorf("start machine: %w%s", err, tail(logFile))
	}
	return nil
}

func (h *Host) awaitQEMU(ctx context.Context, ended <-chan error) error {
	for {
		_, err := h.Client(ctx)
		if err == nil || errors.Is(err, qmp.ErrInUse) {
			return nil
		}
		select {
		case exit := <-ended:
			return fmt.Errorf("QEMU ended at once (%v)", exit)
		case <-ctx.Done():
			return fmt.Errorf("QEMU does not answer: %w", err)
		case <-time.After(startPause):
		}
	}
}

// tail returns the last words of a log, to be added to an error.
func tail(path string) string {
	text, err := os.ReadFile(path)
	text = bytes.TrimSpace(text)
	if err != nil || len(text) == 0 {
		return ""
	}
	return ": " + string(text[max(0, len(text)-logTail):])
}
