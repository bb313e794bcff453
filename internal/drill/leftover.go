package drill

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-vm/holdfast/internal/durable"
	"github.com/holdfast-vm/holdfast/internal/hypervisor"
	"github.com/holdfast-vm/holdfast/internal/point"
)

const (
	namePrefix = "hf-drill-"
	noteDir    = "drills"
	maxSocket  = 107 // bytes of a socket's path
)

// note is what there is to know of a drill for whoever must remove what it left.
type note struct {
	Name  string    `json:"name"` // of the machine
	UUID  string    `json:"uuid"`
	Host  string    `json:"host"`
	Dir   string    `json:"dir"` // all its files
	Point string    `json:"point"`
	Began time.Time `json:"began"`
}

func newNote(req Request, now time.Time) (note, error) {
	var b [16]byte
	rand.Read(b[:])
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	n := note{Name: fmt.Sprintf("%s%x", namePrefix, b[:4]),
		UUID: fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:]),
		Host: req.Host, Point: string(req.Point.ID), Began: now.UTC()}
	dir, err := filepath.Abs(req.Storage)
	if err != nil {
		return n, err
	}
	n.Dir = filepath.Join(dir, n.Name)
	if longest := n.path(n.Name + ".qga.sock"); len(longest) > maxSocket {
		return n, fmt.Errorf("directory %s has too long a name: the machine's sockets in it would have paths of %d "+
			"bytes, %d are the most", dir, len(longest), maxSocket)
	}
	if req.Point.Definition.Kind == point.ForQEMU {
		n.Host = hypervisor.PlainScheme + n.path("q")
	}
	return n, nil
}

func (n note) path(name string) string { return filepath.Join(n.Dir, name) }

func (n note) machine() hypervisor.Machine {
	return hypervisor.Machine{Name: n.Name, UUID: n.UUID, Host: n.Host}
}

// place is the directory of a drill, noted and locked while the process lives that runs it.
type place struct {
	note       note
	file, lock string
	held       *os.File
}

// makePlace notes the drill, then makes its directory.
func makePlace(stateDir string, n note) (*place, error) {
	dir := filepath.Join(stateDir, noteDir)
	if err := durable.MkdirAll(durable.OS{}, dir); err != nil {
		return nil, fmt.Errorf("note the drill: %w", err)
	}
	p := &place{note: n, file: filepath.Join(dir, n.Name+".json"), lock: filepath.Join(dir, n.Name+".lock")}
	var err error
	// a process that cleans up may have it for a moment, before there is a note
	if p.held, err = lockFile(p.lock, true); err != nil {
		return nil, fmt.Errorf("note the drill: %w", err)
	}
	text, err := json.Marshal(n)
	if err == nil { // durable: the domain of a libvirtd outlives a power cut
		err = durable.WriteReplace(durable.OS{}, p.file, text)
	}
	if err == nil {
		err = os.MkdirAll(filepath.Dir(n.Dir), 0o711)
	}
	if err == nil {
		err = os.Mkdir(n.Dir, 0o711) // the hypervisor's user must get through
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make the directory of the drill: %w", err), p.remove())
	}
	return p, nil
}

var errHeld = errors.New("a living process has it")

// lockFile takes a lock that ends with the process. If another process has it, it waits, or the
// error is errHeld.
func lockFile(path string, wait bool) (*os.File, error) {
	how := unix.F_OFD_SETLK
	if wait {
		how = unix.F_OFD_SETLKW
	}
	for {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return nil, err
		}
		whole := unix.Flock_t{Type: unix.F_WRLCK}
		err = unix.FcntlFlock(f.Fd(), how, &whole)
		switch {
		case err == nil && isAt(f, path):
			return f, nil
		case errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES):
			err = errHeld
		case errors.Is(err, unix.EINTR):
			err = nil
		}
		if err = errors.Join(err, f.Close()); err != nil {
			return nil, err
		} // else whoever had it has removed the file
	}
}

func isAt(f *os.File, path string) bool {
	a, errA := f.Stat()
	b, errB := os.Stat(path)
	return errA == nil && errB == nil && os.SameFile(a, b)
}

// leave gives the place up to whoever cleans up next.
func (p *place) leave() { p.held.Close() }

// remove removes the directory and then the note of it.
func (p *place) remove() error {
	err := os.RemoveAll(p.note.Dir)
	if err == nil {
		err = errors.Join(removeIfThere(p.file), removeIfThere(p.lock))
	}
	return errors.Join(err, p.held.Close())
}

// console returns what is kept of the machine's serial console in the directory.
func (p *place) console() string {
	found, _ := filepath.Glob(filepath.Join(p.note.Dir, p.note.Name+".*")) // the pattern is well formed
	for _, path := range found {
		if strings.HasSuffix(path, ".console") || strings.Contains(filepath.Base(path), ".serial") {
			if text, err := os.ReadFile(path); err == nil {
				return string(text)
			}
		}
	}
	return ""
}

func removeIfThere(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// Leftover is a drill that was found noted on this host.
type Leftover struct {
	Machine string
	UUID    string
	Host    string // URI
	Did     string // in words
	Running bool   // a living process has it: it was left alone
	Err     error  // why it could not be removed; it stays noted
}

// CleanUp removes what drills of killed processes have left, and says what it did. Drills that run
// are left alone.
func CleanUp(ctx context.Context, stateDir string, open func(uri string) (Host, error)) []Leftover {
	dir := filepath.Join(stateDir, noteDir)
	_, err := durable.Sweep(durable.OS{}, dir) // notes that were not written to their end
	var entries []os.DirEntry
	if err == nil {
		entries, err = os.ReadDir(dir)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return []Leftover{{Err: fmt.Errorf("look for what drills have left: %w", err)}}
	}
	var names []string
	for _, e := range entries {
		name, _, _ := strings.Cut(e.Name(), ".")
		if strings.HasPrefix(name, namePrefix) && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	var list []Leftover
	for _, name := range names {
		l := Leftover{Machine: name}
		if err := l.clean(ctx, filepath.Join(dir, name), open); err != nil {
			l.Err = fmt.Errorf("clean up the drill %s: %w", name, err)
		}
		if l.Did != "" || l.Err != nil {
			list = append(list, l)
		}
	}
	return list
}

// clean removes what is noted at path, without its extension.
func (l *Leftover) clean(ctx context.Context, path string, open func(uri string) (Host, error)) error {
	p := &place{file: path + ".json", lock: path + ".lock"}
	var err error
	p.held, err = lockFile(p.lock, false)
	if errors.Is(err, errHeld) {
		l.Running, l.Did = true, "left alone: the drill runs"
		return nil
	}
	if err != nil {
		return err
	}
	text, err := os.ReadFile(p.file)
	// another one was faster, or the drill was killed before or after there was anything
	if errors.Is(err, fs.ErrNotExist) {
		return errors.Join(removeIfThere(p.lock), p.held.Close())
	}
	if err == nil {
		err = json.Unmarshal(text, &p.note)
	}
	if err == nil && (filepath.Base(p.note.Dir) != l.Machine || !filepath.IsAbs(p.note.Dir) ||
		p.note.Name != l.Machine) {
		err = fmt.Errorf("the note %s is damaged", p.file)
	}
	if err == nil {
		l.UUID, l.Host = p.note.UUID, p.note.Host
		err = p.note.clean(ctx, open)
	}
	if err != nil {
		return errors.Join(err, p.held.Close())
	}
	l.Did = fmt.Sprintf("removed: its drill was killed after %s UTC", p.note.Began.Format(time.DateTime))
	return p.remove()
}

// clean opens the host and removes the machine.
func (n note) clean(ctx context.Context, open func(uri string) (Host, error)) error {
	host, err := open(n.Host)
	if err != nil {
		return err
	}
	return errors.Join(n.removeMachine(ctx, host), host.Close())
}

// removeMachine returns when the machine is gone, and every process that worked for it.
func (n note) removeMachine(ctx context.Context, host Host) error {
	err := host.Remove(ctx, n.machine())
	if err != nil && !errors.Is(err, hypervisor.ErrNoMachine) && !strings.HasPrefix(n.Host, hypervisor.PlainScheme) {
		return err
	}
	if t, ok := host.(hypervisor.TraceRemover); ok {
		return t.RemoveTraces(ctx, n.Name)
	}
	return n.endProcesses(ctx) // a plain QEMU may not have listened yet, or not any more
}

// endProcesses kills the processes of a plain QEMU's machine, known by the paths in their command
// lines.
func (n note) endProcesses(ctx context.Context) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		pids := n.processes()
		if len(pids) == 0 {
			return nil
		}
		for _, pid := range pids {
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
				return fmt.Errorf("kill process %d: %w", pid, err)
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("processes %v do not end: %w", pids, ctx.Err())
		case <-tick.C:
		}
	}
}

// processes returns the QEMU, the TPM emulator and the start script of the machine.
func (n note) processes() []int {
	var pids []int
	dirs, _ := filepath.Glob("/proc/[0-9]*") // the pattern is well formed
	for _, dir := range dirs {
		text, err := os.ReadFile(dir + "/cmdline")
		if err != nil || !strings.Contains(string(text), n.Dir+"/") {
			continue
		}
		args := strings.Split(string(text), "\x00")
		program := filepath.Base(args[0])
		ours := strings.HasPrefix(program, "qemu") || strings.HasPrefix(program, "kvm") ||
			strings.HasPrefix(program, "swtpm") ||
			slices.Contains(args[:min(len(args), 2)], n.path(n.Name+".sh"))
		if pid, err := strconv.Atoi(filepath.Base(dir)); err == nil && ours && pid != os.Getpid() {
			pids = append(pids, pid)
		}
	}
	return pids
}
