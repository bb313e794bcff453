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

	"github.com/holdfast-vm/holdfast/internal/hypervisor"
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
	n := note{Name: fmt.Sprintf("%s%x", namePrefix, b[:4]), UUID: fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:]),
		Host: req.Host, Point: string(req.Point.ID), Began: now.UTC()}
	dir, err := filepath.Abs(req.Storage)
	if err != nil {
		return n, err
	}
	n.Dir = filepath.Join(dir, n.Name)
	if longest := n.path(n.Name + ".qga.sock"); len(longest) > maxSocket {
		return n, fmt.Errorf("directory %s has too long a name: the machine's sockets in it would have paths of %d bytes, %d are the most", dir, len(longest), maxSocket)
	}
	if req.Point.Definition.Kind == "qemu" {
		n.Host = PlainHost + n.path("q")
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
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("note the drill: %w", err)
	}
	p := &place{note: n, file: filepath.Join(dir, n.Name+".json"), lock: filepath.Join(dir, n.Name+".lock")}
	var err error
	if p.held, err = lockFile(p.lock); err != nil {
		return nil, fmt.Errorf("note the drill: %w", err)
	}
	text, err := json.Marshal(n)
	if err == nil {
		err = os.WriteFile(p.file+".new", text, 0o600)
	}
	if err == nil {
		err = os.Rename(p.file+".new", p.file)
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

// lockFile takes a lock that ends with the process; errHeld if another process has it.
func lockFile(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	whole := unix.Flock_t{Type: unix.F_WRLCK}
	err = unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &whole)
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
		err = errHeld
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// leave gives the place up to whoever cleans up next.
func (p *place) leave() { p.held.Close() }

// remove removes the directory and then the note of it.
func (p *place) remove() error {
	err := os.RemoveAll(p.note.Dir)
	if err == nil {
		err = errors.Join(removeIfThere(p.file+".new"), removeIfThere(p.file), removeIfThere(p.lock))
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

// CleanUp removes what drills of killed processes have left, and returns in words what it did. Drills that run are left alone.
func CleanUp(ctx context.Context, stateDir string, open func(uri string) (Host, error)) (did []string, err error) {
	found, _ := filepath.Glob(filepath.Join(stateDir, noteDir, namePrefix+"*.json")) // the pattern is well formed, unless the directory's name is odd
	for _, file := range found {
		what, cleanErr := cleanOne(ctx, file, open)
		if what != "" {
			did = append(did, what)
		}
		if cleanErr != nil {
			err = errors.Join(err, fmt.Errorf("clean up the drill %s: %w", strings.TrimSuffix(filepath.Base(file), ".json"), cleanErr))
		}
	}
	return did, err
}

func cleanOne(ctx context.Context, file string, open func(uri string) (Host, error)) (string, error) {
	lock := strings.TrimSuffix(file, ".json") + ".lock"
	held, err := lockFile(lock)
	if errors.Is(err, errHeld) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	p := &place{file: file, lock: lock, held: held}
	text, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) { // another one was faster
		return "", errors.Join(removeIfThere(lock), held.Close())
	}
	if err == nil {
		err = json.Unmarshal(text, &p.note)
	}
	if err == nil && (filepath.Base(p.note.Dir) != p.note.Name || !strings.HasPrefix(p.note.Name, namePrefix) || p.note.Name+".json" != filepath.Base(file)) {
		err = fmt.Errorf("the note %s is damaged", file)
	}
	if err != nil {
		return "", errors.Join(err, held.Close())
	}
	if err := p.note.clean(ctx, open); err != nil {
		return "", errors.Join(err, held.Close())
	}
	if err := p.remove(); err != nil {
		return "", err
	}
	return fmt.Sprintf("removed the machine %s of a drill that was killed at %s UTC", p.note.Name, p.note.Began.Format(time.DateTime)), nil
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
	if err != nil && !errors.Is(err, hypervisor.ErrNoMachine) && !strings.HasPrefix(n.Host, PlainHost) {
		return err
	}
	if t, ok := host.(interface {
		RemoveTraces(ctx context.Context, name string) error
	}); ok {
		return t.RemoveTraces(ctx, n.Name)
	}
	return n.endProcesses(ctx) // a plain QEMU may not have listened yet, or not any more
}

// endProcesses kills the processes of a plain QEMU's machine, known by the paths in their command lines.
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
		ours := strings.HasPrefix(program, "qemu") || strings.HasPrefix(program, "kvm") || strings.HasPrefix(program, "swtpm") ||
			slices.Contains(args[:min(len(args), 2)], n.path(n.Name+".sh"))
		if pid, err := strconv.Atoi(filepath.Base(dir)); err == nil && ours && pid != os.Getpid() {
			pids = append(pids, pid)
		}
	}
	return pids
}
