package qemu

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// process is what the kernel says of a running QEMU.
type process struct {
	args []string
	dir  string            // where relative paths of its command line begin
	open map[string]string // base name → path of the files it has open; "" where several have the name
}

// readProcess looks at /proc. A QEMU that made itself a daemon has / as its directory; then the
// files it has open say where it was started.
func readProcess(pid int) (*process, error) {
	proc := fmt.Sprintf("/proc/%d", pid)
	raw, err := os.ReadFile(proc + "/cmdline")
	if err != nil {
		return nil, fmt.Errorf("read the command line of QEMU: %w", err)
	}
	p := &process{args: splitArgs(raw), open: make(map[string]string)}
	if p.dir, err = os.Readlink(proc + "/cwd"); err != nil {
		return nil, fmt.Errorf("find the directory of QEMU: %w", err)
	}
	fds, err := os.ReadDir(proc + "/fd")
	if err != nil {
		return nil, fmt.Errorf("list the files of QEMU: %w", err)
	}
	for _, fd := range fds {
		p.remember(proc + "/fd/" + fd.Name())
	}
	return p, nil
}

func (p *process) remember(link string) {
	target, err := os.Readlink(link)
	if err != nil || !filepath.IsAbs(target) {
		return // closed meanwhile, or no file
	}
	base := filepath.Base(target)
	if old, ok := p.open[base]; ok && old != target {
		target = ""
	}
	p.open[base] = target
}

func splitArgs(raw []byte) []string {
	var args []string
	for _, a := range bytes.Split(bytes.TrimSuffix(raw, []byte{0}), []byte{0}) {
		args = append(args, string(a))
	}
	return args
}

// resolve returns the absolute form of a path of the command line. What is not a path, such as
// nbd:// or json:, stays as it is.
func (p *process) resolve(name string) string {
	name = strings.TrimPrefix(name, "file:")
	if p == nil || name == "" || filepath.IsAbs(name) || isURI(name) {
		return name
	}
	abs := filepath.Join(p.dir, name)
	if _, err := os.Lstat(abs); err == nil {
		return abs
	}
	if target := p.open[filepath.Base(name)]; strings.HasSuffix(target, "/"+filepath.Clean(name)) {
		return target
	}
	return abs
}

// startDir returns the directory that relative paths of the command line begin in.
func (p *process) startDir(relative []string) string {
	if p.dir != "/" {
		return p.dir
	}
	for _, name := range relative {
		clean := filepath.Clean(name)
		if target := p.resolve(name); !filepath.IsAbs(name) && strings.HasSuffix(target, "/"+clean) && target != "/"+
			clean {
			return strings.TrimSuffix(target, "/"+clean)
		}
	}
	return p.dir
}

// isURI reports whether QEMU takes name as protocol:rest and not as a path.
func isURI(name string) bool {
	protocol, _, ok := strings.Cut(name, ":")
	return ok && !strings.Contains(protocol, "/")
}

func isDirectory(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}
