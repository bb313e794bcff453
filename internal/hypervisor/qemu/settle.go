package qemu

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/holdfast-vm/holdfast/internal/hypervisor"
	"github.com/holdfast-vm/holdfast/internal/qmp"
)

// moveTime bounds how long a machine stands still for its move: guests wait half a minute and more
// for a disk.
const moveTime = 40 * time.Second

// FinishHydration implements [hypervisor.Hydrator].
func (h *Host) FinishHydration(ctx context.Context, m hypervisor.Machine, s hypervisor.Settlement) error {
	if err := h.finishHydration(ctx, m, s); err != nil {
		return fmt.Errorf("move %s to its local disks: %w", m.Name, err)
	}
	return nil
}

func (h *Host) finishHydration(ctx context.Context, m hypervisor.Machine, s hypervisor.Settlement) error {
	c, err := h.reachSoon(ctx, m)
	switch off := errors.Is(err, hypervisor.ErrNoMachine); {
	case off && s.Off:
		return settleDefinition(m, s, s.Targets)
	case off:
		return fmt.Errorf("%w: %w", hypervisor.ErrOff, err)
	case err != nil:
		return err
	case s.Off:
		return errors.New("the machine runs")
	}
	ours, local, failed := h.completeStill(ctx, c, m, s)
	if err := settleDefinition(m, s, local); err != nil {
		failed = errors.Join(failed, standsStill(err))
	}
	// whatever has taken too long, it is to go on
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), commandTime)
	defer cancel()
	if ours && !s.StayPaused && !errors.Is(failed, hypervisor.ErrStandsStill) {
		failed = errors.Join(failed, standsStill(c.Execute(ctx, "cont", nil, nil)))
	}
	for _, t := range local {
		failed = errors.Join(failed, closeOverlay(ctx, c, t))
	}
	return failed
}

// reachSoon is reach within the time of a command.
func (h *Host) reachSoon(ctx context.Context, m hypervisor.Machine) (*qmp.Client, error) {
	ctx, cancel := context.WithTimeout(ctx, commandTime)
	defer cancel()
	return h.reach(ctx, m)
}

func standsStill(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%w: %w", hypervisor.ErrStandsStill, err)
}

// completeStill stops the machine and has its copies, once nothing is left to copy, take the place
// of the overlays. It returns whether the machine stands still because of us, and the disks that
// are on their targets then.
func (h *Host) completeStill(ctx context.Context, c *qmp.Client, m hypervisor.Machine,
	s hypervisor.Settlement) (ours bool, local []hypervisor.HydrationTarget, err error) {
	ctx, cancel := context.WithTimeout(ctx, moveTime)
	defer cancel()
	if ours, err = hold(ctx, c, s); err != nil {
		return ours, nil, err
	}
	if err := hypervisor.Drain(ctx, h, m, s.Targets); err != nil {
		local, _ := completeAll(ctx, c, s.Targets, false) // what an earlier call has come to
		return ours, local, err
	}
	local, err = completeAll(ctx, c, s.Targets, true)
	return ours, local, err
}

// settleDefinition changes the machine's start script. A machine without one, whose disk was
// plugged in while it ran, has nothing to change.
func settleDefinition(m hypervisor.Machine, s hypervisor.Settlement, targets []hypervisor.HydrationTarget) error {
	if s.StorageDir == "" {
		return nil
	}
	return settleScript(scriptPath(s.StorageDir, m.Name), targets)
}

// completeAll has the copies of a machine that stands still take the place of its overlays and
// returns the disks that are on their targets, also if they were before. New copies are told to
// complete only if tell is set.
func completeAll(ctx context.Context, c *qmp.Client, targets []hypervisor.HydrationTarget,
	tell bool) (local []hypervisor.HydrationTarget, failed error) {
	for _, t := range targets {
		job, err := findJob(ctx, c, t.Disk)
		if err == nil && job != nil && (job.Status == "ready" || job.still() && job.Ready) && tell {
			err = c.Execute(ctx, "job-complete", map[string]any{"id": job.ID}, nil)
		}
		failed = errors.Join(failed, about(t, err))
	}
	for _, t := range targets {
		done, err := completed(ctx, c, t, tell)
		failed = errors.Join(failed, about(t, err))
		if done {
			local = append(local, t)
		}
	}
	return local, failed
}

func about(t hypervisor.HydrationTarget, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("disk %s: %w", t.Disk, err)
}

// completed waits for the end of a copy that was told to complete, if it was, finalizes it, and
// reports whether the machine is on its target.
func completed(ctx context.Context, c *qmp.Client, t hypervisor.HydrationTarget, told bool) (bool, error) {
	job, failed := awaitEnd(ctx, c, t.Disk, told)
	if failed == nil && job != nil && job.ended() {
		job, failed = finalize(ctx, c, job, t.Disk)
	}
	d, err := findBacked(ctx, c, t)
	switch {
	case err != nil:
		return false, errors.Join(failed, err)
	case d.local && job != nil && job.Status == "concluded":
		return true, c.Execute(ctx, "job-dismiss", map[string]any{"id": job.ID}, nil)
	case d.local:
		return true, nil
	case failed != nil:
		return false, failed
	case job != nil && job.err() != nil:
		return false, job.err()
	default:
		return false, errors.New("its copy is not ready")
	}
}

// awaitEnd returns the copy of a disk when it has nothing left to do but what finalize does, or has
// ended; nil if there is none. One that was not told to complete, or stopped on an error, is
// returned as it is: told to complete it will come to its end once it goes on, and wait there.
func awaitEnd(ctx context.Context, c *qmp.Client, disk string, told bool) (*blockJob, error) {
	for {
		job, err := findJob(ctx, c, disk)
		if err != nil || job == nil || job.stopped() ||
			job.Status != "waiting" && !(told && (job.Status == "ready" || job.still())) {
			return job, err
		}
		select {
		case <-ctx.Done():
			return job, fmt.Errorf("its copy does not end: %w", ctx.Err())
		case <-time.After(completePoll):
		}
	}
}

// finalize has a copy take the place of its overlay and returns it concluded.
func finalize(ctx context.Context, c *qmp.Client, job *blockJob, disk string) (*blockJob, error) {
	if err := c.Execute(ctx, "job-finalize", map[string]any{"id": job.ID}, nil); err != nil {
		return job, err
	}
	return awaitJob(ctx, c, disk)
}

// namedNode is an entry of query-named-block-nodes.
type namedNode struct {
	Name    string `json:"node-name"`
	Driver  string `json:"drv"`
	File    string
	Bitmaps []struct {
		Name  string
		Count int64 // bytes
	} `json:"dirty-bitmaps"`
}

func queryNodes(ctx context.Context, c *qmp.Client) ([]namedNode, error) {
	var nodes []namedNode
	err := c.Execute(ctx, "query-named-block-nodes", map[string]any{"flat": true}, &nodes)
	return nodes, err
}

// closeOverlay makes QEMU let go of an overlay that no disk is on any more, and so of the export
// below.
func closeOverlay(ctx context.Context, c *qmp.Client, t hypervisor.HydrationTarget) error {
	for {
		nodes, err := queryNodes(ctx, c)
		if err != nil {
			return about(t, err)
		}
		left, closed := 0, false
		for _, n := range nodes {
			if nodeFile(n.File) != t.Overlay() {
				continue
			}
			left++
			err := c.Execute(ctx, "blockdev-del", map[string]any{"node-name": n.Name}, nil)
			if err != nil && !qmp.Refused(err) { // what another one stands on is refused until that is gone
				return about(t, err)
			}
			closed = closed || err == nil
		}
		if left == 0 {
			return nil
		}
		if !closed {
			return about(t, fmt.Errorf("QEMU holds on to %s", t.Overlay()))
		}
	}
}

// Settled implements [hypervisor.Hydrator].
func (h *Host) Settled(_ context.Context, m hypervisor.Machine, s hypervisor.Settlement) (map[string]bool, error) {
	sc, err := readScript(scriptPath(s.StorageDir, m.Name))
	if err != nil {
		return nil, fmt.Errorf("look at the definition of %s: %w", m.Name, err)
	}
	out := map[string]bool{}
	for _, t := range s.Targets {
		out[t.Disk] = !sc.cl.names(t.Overlay()) && sc.cl.names(t.File)
	}
	return out, nil
}

// Start implements [hypervisor.Hydrator].
func (h *Host) Start(ctx context.Context, m hypervisor.Machine, storageDir string) error {
	dir, err := filepath.Abs(storageDir)
	if err == nil {
		err = h.start(ctx, scriptPath(dir, m.Name), filepath.Join(dir, m.Name+".log"))
	}
	if err != nil {
		return fmt.Errorf("%s: %w", m.Name, err)
	}
	return nil
}

func scriptPath(dir, name string) string { return filepath.Join(dir, name+".sh") }

// script is a start script as Define writes it, perhaps edited since.
type script struct {
	head string // up to the command
	cl   commandLine
}

const execWord = "\nexec "

func readScript(path string) (script, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return script{}, err
	}
	sc, err := parseScript(string(text))
	if err != nil {
		return sc, fmt.Errorf("start script %s: %w", path, err)
	}
	return sc, nil
}

func parseScript(text string) (script, error) {
	i := strings.LastIndex(text, execWord)
	if i < 0 {
		return script{}, errors.New("no line of it begins with exec")
	}
	words, err := splitWords(text[i+len(execWord):])
	if err != nil {
		return script{}, err
	}
	return script{head: text[:i+1], cl: parseCommandLine(words)}, nil
}

// splitWords splits one shell command of plain and quoted words. What a shell would expand or what
// follows the command is an error.
func splitWords(text string) ([]string, error) {
	var words []string
	var word strings.Builder
	inWord := false
	end := func() {
		if inWord {
			words = append(words, word.String())
		}
		word.Reset()
		inWord = false
	}
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case c == '\\' && i+1 < len(text):
			i++
			if text[i] != '\n' {
				word.WriteByte(text[i])
				inWord = true
			}
		case c == '\'':
			n := strings.IndexByte(text[i+1:], '\'')
			if n < 0 {
				return nil, errors.New("a quotation does not end")
			}
			word.WriteString(text[i+1 : i+1+n])
			inWord = true
			i += n + 1
		case c == ' ' || c == '\t':
			end()
		case c == '\n':
			if strings.TrimSpace(text[i:]) != "" {
				return nil, errors.New("something follows its command")
			}
			end()
			return words, nil
		case strings.IndexByte("$`\"\\;&|<>()*?[]#~!{}", c) >= 0:
			return nil, fmt.Errorf("its command has %q outside of quotes", c)
		default:
			word.WriteByte(c)
			inWord = true
		}
	}
	end()
	return words, nil
}

// names reports whether an option has an image as its file.
func (cl *commandLine) names(path string) bool {
	found := false
	cl.edit("drive blockdev", func(_ *option, p *props) {
		for _, key := range p.keys() {
			if (key == "file" || key == "filename" || strings.HasSuffix(key, ".filename")) && p.get(key) == path {
				found = true
			}
		}
	})
	return found
}

// settle puts a target in the place of its overlay.
func (cl *commandLine) settle(t hypervisor.HydrationTarget) {
	w := &rewriter{cl: *cl}
	below := "" // node of the overlay's file, where it is an option of its own
	for i := range w.cl.options {
		o := &w.cl.options[i]
		if o.name != "drive" && o.name != "blockdev" {
			continue
		}
		p := parseProps(o.value, impliedKey[o.name])
		switch prefix, found := prefixOf(p, t.Overlay()); {
		case !found:
		case o.name == "drive":
			p.set("file", t.File)
			p.set("format", t.Format)
			o.value = p.String()
		case prefix == "":
			p.set("filename", t.File)
			o.value, below = p.String(), p.get("node-name")
		default:
			w.replaceFormat(i, p, strings.TrimSuffix(prefix, "file."), t.File, t.Format)
		}
	}
	for i := range w.cl.options {
		p := parseProps(w.cl.options[i].value, "driver")
		if w.cl.options[i].name != "blockdev" || below == "" {
			continue
		}
		for _, prefix := range []string{"", "file.", "file.file."} {
			if p.get(prefix+"file") == below && !filterDrivers[p.get(prefix+"driver")] {
				w.replaceFormat(i, p, prefix, t.File, t.Format)
				break
			}
		}
	}
	*cl = w.cl
}

// prefixOf returns where among properties a file is named: what stands before "filename".
func prefixOf(p *props, path string) (prefix string, found bool) {
	for _, key := range p.keys() {
		if p.get(key) != path {
			continue
		}
		if key == "file" {
			return "", true
		}
		if prefix, ok := strings.CutSuffix(key, "filename"); ok {
			return prefix, true
		}
	}
	return "", false
}

// settleScript puts targets in the place of their overlays in a start script, durably. With the
// last overlay the options that stop the machine on errors go. A script that is as it should be
// stays untouched.
func settleScript(path string, targets []hypervisor.HydrationTarget) error {
	sc, err := readScript(path)
	if err != nil {
		return err
	}
	before := strings.Join(sc.cl.args(), "\n")
	for _, t := range targets {
		sc.cl.settle(t)
		if sc.cl.names(t.Overlay()) || !sc.cl.names(t.File) {
			return fmt.Errorf("start script %s does not start from %s any more: it was edited", path, t.Overlay())
		}
	}
	if !sc.cl.hasOverlays() {
		sc.cl.dropStops()
	}
	if strings.Join(sc.cl.args(), "\n") == before {
		return nil
	}
	return replaceScript(path, sc.head+execLines(sc.cl))
}

// replaceScript replaces a start script in one instant; the new one survives power loss.
func replaceScript(path, text string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	temp := path + ".new"
	if err := os.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	err = writeSynced(temp, text, info.Mode().Perm())
	if err == nil {
		err = os.Rename(temp, path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("replace start script: %w", err), ignoreMissing(os.Remove(temp)))
	}
	return syncDir(filepath.Dir(path))
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// writeSynced writes a new file and makes its bytes durable.
func writeSynced(path, text string, mode fs.FileMode) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
