package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/holdfast-vm/holdfast/internal/hypervisor"
	"github.com/holdfast-vm/holdfast/internal/point"
	"github.com/holdfast-vm/holdfast/internal/qmp"
)

// Roles of the small files of a machine.
const (
	roleNVRAM  = "nvram"
	roleTPM    = "tpm"
	roleKernel = "kernel"
	roleInitrd = "initrd"
)

// Describe returns the command line of m and the facts that pin it down, the firmware variables,
// TPM state, kernel and initrd, and what of the machine cannot be kept.
func (h *Host) Describe(ctx context.Context, m hypervisor.Machine) (hypervisor.Description, error) {
	ctx, cancel := context.WithTimeout(ctx, commandTime)
	defer cancel()
	out, err := h.describe(ctx)
	if err != nil {
		return hypervisor.Description{}, fmt.Errorf("describe machine %s: %w", m.Name, err)
	}
	return out, nil
}

func (h *Host) describe(ctx context.Context) (out hypervisor.Description, err error) {
	c, err := h.Client(ctx)
	if err != nil {
		return out, err
	}
	p, err := readProcess(c.PeerPID())
	if err != nil {
		return out, err
	}
	cl := parseCommandLine(p.args)
	if err := cl.settleArgs(ctx, c, p); err != nil {
		return out, err
	}
	if out.Definition, err = define(ctx, c, p, &cl); err != nil {
		return out, err
	}
	var l fileList
	if err := l.addFirmware(ctx, c, p); err != nil {
		return out, err
	}
	l.addVariables(cl, p)
	l.addBoot(cl, p)
	l.addTPM(cl, p)
	out.Files, out.Warnings = l.files, l.warnings
	out.NotHeld, err = listNotHeld(ctx, c, p, cl)
	return out, err
}

// define says what was started, and what pins it down.
func define(ctx context.Context, c *qmp.Client, p *process, cl *commandLine) (point.Definition, error) {
	def := point.Definition{Kind: point.ForQEMU, Args: cl.args(), Dir: p.startDir(cl.paths())}
	machine, err := qomString(ctx, c, "/machine", "type")
	if err != nil {
		return def, err
	}
	def.MachineType = strings.TrimSuffix(machine, "-machine")
	def.Hypervisor = "QEMU " + c.Version().String()
	def.CPU, err = expandCPU(ctx, c, cl.first("cpu"))
	return def, err
}

// expandCPU returns the CPU model with all its features as JSON, "" where QEMU does not say.
func expandCPU(ctx context.Context, c *qmp.Client, cpu string) (string, error) {
	if cpu == "" {
		return "", nil
	}
	p := parseProps(cpu, "model")
	features := map[string]any{}
	for _, key := range p.keys() {
		switch value := p.get(key); {
		case key == "model":
		case strings.HasPrefix(key, "+"):
			features[key[1:]] = true
		case strings.HasPrefix(key, "-"):
			features[key[1:]] = false
		case value == "on" || value == "off":
			features[key] = value == "on"
		default:
			features[key] = value
		}
	}
	model := map[string]any{"name": p.get("model"), "props": features}
	var out json.RawMessage
	err := c.Execute(ctx, "query-cpu-model-expansion", map[string]any{"type": "full", "model": model}, &out)
	if qmp.Refused(err) {
		return "", nil
	}
	return string(out), err
}

// fileList collects the small files of a machine.
type fileList struct {
	files    []point.File
	warnings []string
}

func (l *fileList) add(role, name, path string) {
	st, err := os.Stat(path)
	if err != nil {
		l.warnings = append(l.warnings, fmt.Sprintf("%s file is not stored: %v", role, err))
		return
	}
	for _, f := range l.files {
		if f.Role == role && f.Name == name {
			name = fmt.Sprintf("%d-%s", len(l.files), name)
		}
	}
	l.files = append(l.files, point.File{Role: role, Path: path, Name: name, Mode: uint32(st.Mode().Perm()),
		Size: st.Size()})
}

// addFirmware adds the images of writable flash.
func (l *fileList) addFirmware(ctx context.Context, c *qmp.Client, p *process) error {
	list, err := queryBlock(ctx, c)
	if err != nil {
		return err
	}
	for _, b := range list {
		if b.Inserted == nil || b.Inserted.ReadOnly || b.QDev == "" {
			continue
		}
		kind, err := qomString(ctx, c, qomPath(b.QDev), "type")
		if err != nil {
			return err
		}
		if strings.Contains(kind, "pflash") {
			path := p.resolve(b.Inserted.File)
			l.add(roleNVRAM, filepath.Base(path), path)
		}
	}
	return nil
}

// addVariables adds the firmware variables that a device of its own keeps (uefi-vars, QEMU 10).
func (l *fileList) addVariables(cl commandLine, p *process) {
	for _, v := range cl.values("device") {
		d := parseProps(v, "driver")
		if file := d.get("jsonfile"); file != "" && strings.HasPrefix(d.get("driver"), "uefi-vars") {
			l.add(roleNVRAM, filepath.Base(file), p.resolve(file))
		}
	}
}

// addBoot adds what a machine without a boot loader boots from.
func (l *fileList) addBoot(cl commandLine, p *process) {
	for role, path := range cl.bootFiles() {
		path = p.resolve(path)
		l.add(role, filepath.Base(path), path)
	}
}

// bootFiles returns the paths of kernel and initrd by role.
func (cl *commandLine) bootFiles() map[string]string {
	files := make(map[string]string)
	for _, role := range []string{roleKernel, roleInitrd} {
		path := cl.first(role)
		for _, name := range []string{"machine", "M"} {
			if v := parseProps(cl.first(name), "type").get(role); v != "" {
				path = v
			}
		}
		if path != "" {
			files[role] = path
		}
	}
	return files
}

// addTPM adds the state of an emulated TPM, found through the emulator's own command line.
func (l *fileList) addTPM(cl commandLine, p *process) {
	for _, v := range cl.values("tpmdev") {
		tpm := parseProps(v, "type")
		chardev := cl.byID("chardev", tpm.get("chardev"))
		if tpm.get("type") != "emulator" {
			continue // it is told as what a point does not hold
		}
		if chardev == nil {
			l.warnings = append(l.warnings, "the state of the TPM is not stored: its emulator has no socket")
			continue
		}
		dir, err := tpmStateDir(p.resolve(chardev.get("path")))
		if err != nil {
			l.warnings = append(l.warnings, fmt.Sprintf("the state of the TPM is not stored: %v", err))
			continue
		}
		l.addTree(dir)
	}
}

func (l *fileList) addTree(dir string) {
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err == nil && e.Type().IsRegular() && name != ".lock" {
			l.add(roleTPM, name, path)
		}
		return err
	})
	if err != nil {
		l.warnings = append(l.warnings, fmt.Sprintf("the state of the TPM is not stored: %v", err))
	}
}

// tpmStateDir looks for the swtpm process that serves the control socket and returns its state
// directory.
func tpmStateDir(socket string) (string, error) {
	procs, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return "", err
	}
	for _, file := range procs {
		raw, err := os.ReadFile(file)
		if err != nil {
			continue // it has ended
		}
		dir, ok := tpmArgs(splitArgs(raw), socket)
		if !ok {
			continue
		}
		if filepath.IsAbs(dir) {
			return dir, nil
		}
		cwd, err := os.Readlink(filepath.Join(filepath.Dir(file), "cwd"))
		return filepath.Join(cwd, dir), err
	}
	return "", errors.New("no swtpm process has the control socket " + socket)
}

// tpmArgs returns the state directory that swtpm's args name, and whether they name the control
// socket.
func tpmArgs(args []string, socket string) (dir string, ok bool) {
	for i, a := range args {
		key, value, joined := strings.Cut(a, "=")
		if key != "--ctrl" && key != "--tpmstate" {
			continue
		}
		if (!joined || key != strings.TrimSpace(key)) && i+1 < len(args) {
			value = args[i+1]
		}
		p := parseProps(value, "type")
		switch key {
		case "--ctrl":
			ok = ok || p.get("path") != "" && filepath.Base(p.get("path")) == filepath.Base(socket) &&
				(p.get("path") == socket || !filepath.IsAbs(p.get("path")))
		case "--tpmstate":
			dir = p.get("dir")
		}
	}
	return dir, ok && dir != ""
}

// paths returns the relative paths of images in the command line.
func (cl *commandLine) paths() []string {
	var out []string
	cl2 := commandLine{options: append([]option(nil), cl.options...)}
	cl2.edit("drive blockdev", func(_ *option, p *props) {
		for _, key := range p.keys() {
			if key == "file" || key == "filename" || strings.HasSuffix(key, ".filename") {
				out = append(out, p.get(key))
			}
		}
	})
	return out
}
