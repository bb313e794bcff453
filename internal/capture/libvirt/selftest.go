package libvirt

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/holdfast-vm/holdfast/internal/child"
	"github.com/holdfast-vm/holdfast/internal/nbd"
	"github.com/holdfast-vm/holdfast/internal/qmp"
)

// selfTestTimeout bounds the test of a QEMU binary.
const selfTestTimeout = 30 * time.Second

// verdict is what a test of a QEMU binary found, remembered under the binary's hash.
type verdict struct {
	Safe bool   `json:"safe"`
	Why  string `json:"why,omitempty"` // why not
}

// disconnectsSafely returns nil if this QEMU survives that a reader of an export on an iothread
// leaves, in order and not. It is found out once per binary, with a process of its own.
func (c *Capturer) disconnectsSafely(ctx context.Context, emulator string) error {
	hash, err := hashFile(emulator)
	if err != nil {
		return fmt.Errorf("hash QEMU: %w", err)
	}
	path := filepath.Join(c.opts.StateDir, "pull-"+hash[:32]+".json")
	var v verdict
	if text, err := os.ReadFile(path); err != nil || json.Unmarshal(text, &v) != nil {
		ctx, cancel := context.WithTimeout(ctx, selfTestTimeout)
		defer cancel()
		died, err := diesOfDisconnect(ctx, emulator)
		if err != nil {
			return fmt.Errorf("test %s: %w", emulator, err)
		}
		v = verdict{Safe: !died}
		if died {
			v.Why = emulator + " died in a test when a reader of an export on an iothread left"
		}
		text, err := json.Marshal(v)
		if err != nil {
			return err
		}
		if err := os.WriteFile(path, text, 0o600); err != nil {
			return fmt.Errorf("remember the test of %s: %w", emulator, err)
		}
	}
	if !v.Safe {
		return errors.New(v.Why)
	}
	return nil
}

func hashFile(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// diesOfDisconnect starts a QEMU without a guest, exports a null disk on an iothread, and reports
// whether it died when readers left.
func diesOfDisconnect(ctx context.Context, emulator string) (bool, error) {
	dir, err := os.MkdirTemp("", "hf")
	if err != nil {
		return false, err
	}
	defer os.RemoveAll(dir)
	monitor, export := filepath.Join(dir, "qmp"), filepath.Join(dir, "nbd")
	cmd := child.CommandContext(ctx, emulator, "-machine", "none", "-accel", "tcg", "-nodefaults", "-display", "none",
		"-S",
		"-object", "iothread,id=io", "-blockdev", "null-co,node-name=n,size=1048576,read-zeroes=on",
		"-qmp", "unix:"+monitor+",server=on,wait=off")
	if err := cmd.Start(); err != nil {
		return false, err
	}
	exited := make(chan struct{})
	go func() {
		cmd.Wait()
		close(exited)
	}()
	defer func() {
		cmd.Process.Kill()
		<-exited
	}()
	q, err := dialMonitor(ctx, monitor, exited)
	if err != nil {
		return false, err
	}
	defer q.Close()
	for _, step := range []struct {
		name string
		args map[string]any
	}{
		{"nbd-server-start", map[string]any{"addr": map[string]any{"type": "unix",
			"data": map[string]any{"path": export}}}},
		{"block-export-add", map[string]any{"type": "nbd", "id": "x", "node-name": "n", "name": "n", "iothread": "io",
			"fixed-iothread": true}},
	} {
		if err := q.Execute(ctx, step.name, step.args, nil); err != nil {
			return false, err
		}
	}
	for range 3 {
		for _, leave := range []func(context.Context, string) error{leaveInOrder, leaveAbruptly} {
			if err := leave(ctx, export); err != nil {
				return ended(exited, err)
			}
			if err := q.Execute(ctx, "query-block-exports", nil, nil); err != nil {
				return ended(exited, err)
			}
		}
	}
	return false, nil
}

// ended says that QEMU died if it did so about now, else err.
func ended(exited <-chan struct{}, err error) (bool, error) {
	select {
	case <-exited:
		return true, nil
	case <-time.After(2 * time.Second):
		return false, err
	}
}

func dialMonitor(ctx context.Context, path string, exited <-chan struct{}) (*qmp.Client, error) {
	for {
		q, err := qmp.Dial(ctx, path)
		if err == nil {
			return q, nil
		}
		select {
		case <-exited:
			return nil, errors.New("it ended at once")
		case <-ctx.Done():
			return nil, errors.Join(ctx.Err(), err)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func leaveInOrder(ctx context.Context, socket string) error {
	return readOnce(ctx, socket, (*nbd.Client).Close)
}

// leaveAbruptly is a reader that is killed: its socket closes in mid-conversation.
func leaveAbruptly(ctx context.Context, socket string) error {
	server, err := net.Dial("unix", socket)
	if err != nil {
		return err
	}
	defer server.Close()
	between := socket + "-between"
	ln, err := net.Listen("unix", between)
	if err != nil {
		return err
	}
	defer ln.Close()
	go func() {
		reader, err := ln.Accept()
		if err != nil {
			return
		}
		defer reader.Close()
		go io.Copy(server, reader)
		io.Copy(reader, server)
	}()
	return readOnce(ctx, between, func(c *nbd.Client) error {
		server.Close()
		c.Close()
		return nil
	})
}

func readOnce(ctx context.Context, socket string, leave func(*nbd.Client) error) error {
	c, err := nbd.Dial(ctx, nbd.Options{Network: "unix", Address: socket, Export: "n"})
	if err != nil {
		return err
	}
	if err := c.Read(ctx, make([]byte, 4096), 0); err != nil {
		return errors.Join(err, c.Close())
	}
	return leave(c)
}
