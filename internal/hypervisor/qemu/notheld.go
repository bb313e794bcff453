package qemu

import (
	"cmp"
	"context"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/holdfast-vm/holdfast/internal/hypervisor"
	"github.com/holdfast-vm/holdfast/internal/hypervisor/devicekind"
	"github.com/holdfast-vm/holdfast/internal/point"
	"github.com/holdfast-vm/holdfast/internal/qmp"
)

// NotHeld lists what of the machine a point does not hold: by QEMU's monitor, so that what was
// plugged in later counts, and by its command line.
func (h *Host) NotHeld(ctx context.Context, m hypervisor.Machine) ([]point.Omission, error) {
	ctx, cancel := context.WithTimeout(ctx, commandTime)
	defer cancel()
	out, err := h.notHeld(ctx)
	if err != nil {
		return nil, fmt.Errorf("look at the devices of machine %s: %w", m.Name, err)
	}
	return out, nil
}

func (h *Host) notHeld(ctx context.Context) ([]point.Omission, error) {
	c, err := h.Client(ctx)
	if err != nil {
		return nil, err
	}
	p, err := readProcess(c.PeerPID())
	if err != nil {
		return nil, err
	}
	return listNotHeld(ctx, c, p, parseCommandLine(p.args))
}

// inventory collects what a point does not hold.
type inventory struct {
	c   *qmp.Client
	p   *process
	cl  commandLine
	out []point.Omission

	files map[string]string // path of a memory object → the file behind it
	seen  map[string]bool   // objects that need not be told again
}

func listNotHeld(ctx context.Context, c *qmp.Client, p *process, cl commandLine) ([]point.Omission, error) {
	i := &inventory{c: c, p: p, cl: cl, files: map[string]string{}, seen: map[string]bool{}}
	for _, step := range []func(context.Context) error{i.memory, i.drives, i.devices, i.objects, i.networks} {
		if err := step(ctx); err != nil {
			return nil, err
		}
	}
	i.out = append(i.out, cl.notHeld(p)...)
	return i.out, nil
}

// memory notes the files behind memory objects.
func (i *inventory) memory(ctx context.Context) error {
	list, err := listObjects(ctx, i.c, "/objects")
	for _, o := range list {
		if err == nil && o.kind == "memory-backend-file" {
			var file string
			file, err = qomString(ctx, i.c, o.path, "mem-path")
			i.files[o.path] = i.p.resolve(file)
		}
	}
	return err
}

// drives looks at the media of all drives, those of the board too.
func (i *inventory) drives(ctx context.Context) error {
	list, err := queryBlock(ctx, i.c)
	if err != nil {
		return err
	}
	for _, b := range list {
		if b.QDev == "" {
			continue
		}
		dev := qomPath(b.QDev)
		i.seen[dev] = true
		if b.Inserted == nil {
			continue
		}
		kind, err := qomString(ctx, i.c, dev, "type")
		if err != nil {
			return err
		}
		if row := driveRow(kind, b); row.Fate == devicekind.LeftOut {
			name := diskLabel(b)
			if name == "" {
				name = cmp.Or(b.Device, strings.TrimPrefix(deviceID(b.QDev), "/machine/"))
			}
			i.out = append(i.out, row.Omit(name, i.p.resolve(imageFile(b))))
		}
	}
	return nil
}

// driveRow says what becomes of what is in a drive of that type.
func driveRow(kind string, b blockDevice) devicekind.Row {
	_, isDisk := busOf(kind)
	switch {
	case strings.Contains(kind, "pflash"):
		return devicekind.Option("pflash")
	case strings.HasSuffix(kind, "-cd"), strings.Contains(kind, "floppy"), !isDisk:
		return devicekind.Device(kind)
	case b.Removable:
		return devicekind.Option("cdrom")
	case b.Inserted.ReadOnly:
		return devicekind.ReadOnlyDisk()
	}
	return devicekind.Device("virtio-blk")
}

// devices looks at what was given by -device or plugged in later.
func (i *inventory) devices(ctx context.Context) error {
	for _, dir := range []string{"/machine/peripheral", "/machine/peripheral-anon"} {
		list, err := listObjects(ctx, i.c, dir)
		if err != nil {
			return err
		}
		for _, o := range list {
			if err := i.device(ctx, o); err != nil {
				return err
			}
		}
	}
	return nil
}

func (i *inventory) device(ctx context.Context, o object) error {
	row := devicekind.Device(o.kind)
	if o.kind == "cxl-type3" {
		file, err := i.fileOf(ctx, o.path, "persistent-memdev", "memdev", "lsa")
		if err != nil || file == "" { // volatile, or a memory whose content ends with QEMU
			return err
		}
	}
	if o.kind == "nvme" { // a disk that may have more than its drive
		if link, err := qomString(ctx, i.c, o.path, "pmrdev"); err != nil || link != "" {
			i.seen[link] = true
			i.out = append(i.out, devicekind.Device("nvdimm").Omit(deviceName(o), i.files[link]))
			return err
		}
	}
	if row.Fate != devicekind.LeftOut || i.seen[o.path] || emptyDrive(row.Kind) {
		return nil
	}
	source, err := i.source(ctx, o.path)
	if err == nil {
		i.out = append(i.out, row.Omit(deviceName(o), source))
	}
	return err
}

// emptyDrive reports whether a device of a kind that has media is a drive with nothing in it, as
// one is that is not among the drives with media.
func emptyDrive(kind string) bool {
	return slices.Contains([]string{"medium", "floppy", "memory-card", "board-memory"}, kind)
}

func deviceName(o object) string {
	if id, ok := strings.CutPrefix(o.path, "/machine/peripheral/"); ok {
		return id
	}
	return o.kind
}

// source returns what of the host is behind a device, "" if it does not say.
func (i *inventory) source(ctx context.Context, dev string) (string, error) {
	if file, err := i.fileOf(ctx, dev, "memdev"); err != nil || file != "" {
		return file, err
	}
	for _, property := range []string{"chardev", "fsdev", "rootdir", "file", "host", "sysfsdev", "hostdevice",
		"hostaddr", "vhostdev", "evdev", "wwpn", "device"} {
		v, err := qomString(ctx, i.c, dev, property)
		if err != nil {
			return "", err
		}
		if v == "" {
			continue
		}
		switch property {
		case "chardev":
			return i.otherEnd(ctx, v)
		case "fsdev":
			return i.cl.folder(v, i.p), nil
		}
		return v, nil
	}
	return "", nil
}

// fileOf returns the file behind the memory object that a property of a device links to. The object
// need not be told again.
func (i *inventory) fileOf(ctx context.Context, dev string, properties ...string) (string, error) {
	file := ""
	for _, property := range properties {
		link, err := qomString(ctx, i.c, dev, property)
		if err != nil {
			return "", err
		}
		if link != "" {
			i.seen[link] = true
		}
		if file == "" {
			file = i.files[link]
		}
	}
	return file, nil
}

// otherEnd returns what a character device leads to: by the command line, else in QEMU's words.
func (i *inventory) otherEnd(ctx context.Context, id string) (string, error) {
	if p := i.cl.byID("chardev", id); p != nil && p.get("path") != "" {
		return i.p.resolve(p.get("path")), nil
	}
	var list []struct{ Label, Filename string }
	if err := i.c.Execute(ctx, "query-chardev", nil, &list); err != nil {
		return "", err
	}
	for _, c := range list {
		if c.Label == id {
			return strings.TrimPrefix(c.Filename, "disconnected:"), nil
		}
	}
	return "", nil
}

// folder returns the folder behind a -fsdev or -virtfs.
func (cl *commandLine) folder(id string, p *process) string {
	for _, name := range []string{"fsdev", "virtfs"} {
		for _, v := range cl.values(name) {
			f := parseProps(v, impliedKey[name])
			if f.get("id") == id || f.get("id") == "" && name == "virtfs" {
				return p.resolve(f.get("path"))
			}
		}
	}
	return id
}

// objects looks at what was given by -object or made later, except for what a device has told.
func (i *inventory) objects(ctx context.Context) error {
	list, err := listObjects(ctx, i.c, "/objects")
	if err != nil {
		return err
	}
	for _, o := range list {
		row := devicekind.Object(o.kind)
		if row.Fate != devicekind.LeftOut || i.seen[o.path] {
			continue
		}
		source, tell, err := i.objectSource(ctx, o)
		if err != nil {
			return err
		}
		if tell {
			i.out = append(i.out, row.Omit(path.Base(o.path), source))
		}
	}
	return nil
}

// objectSource returns what of the host an object stands on, and whether that is worth telling:
// a secret that stands in the command line is in the point, and huge pages are not a file.
func (i *inventory) objectSource(ctx context.Context, o object) (source string, tell bool, err error) {
	if o.kind == "memory-backend-file" {
		file := i.files[o.path]
		return file, !isDirectory(file), nil
	}
	for _, property := range []string{"file", "dir", "path"} {
		if source, err = qomString(ctx, i.c, o.path, property); err != nil || source != "" {
			return i.p.resolve(source), true, err
		}
	}
	for _, property := range []string{"serial", "evdev", "if", "chardev"} {
		if source, err = qomString(ctx, i.c, o.path, property); err != nil || source != "" {
			return source, true, err
		}
	}
	return "", o.kind != "secret", nil
}

// servedNetwork finds the networks of other processes in QEMU's list.
var servedNetwork = regexp.MustCompile(`(?m)^[ \\]*([^\s:]+): index=\d+,type=(vhost-user|vhost-vdpa)`)

func (i *inventory) networks(ctx context.Context) error {
	var info string
	args := map[string]string{"command-line": "info network"}
	if err := i.c.Execute(ctx, "human-monitor-command", args, &info); err != nil && !qmp.Refused(err) {
		return err
	}
	for _, m := range servedNetwork.FindAllStringSubmatch(info, -1) {
		i.out = append(i.out, devicekind.Element("interface", "vhostuser").Omit(m[1], m[2]))
	}
	return nil
}

// notHeld lists what only the command line tells. p resolves relative paths and may be nil.
func (cl *commandLine) notHeld(p *process) []point.Omission {
	var out []point.Omission
	for _, o := range cl.options {
		row := devicekind.Option(o.name)
		if o.name == "" {
			continue
		}
		if row.Kind == devicekind.Unknown.Kind {
			out = append(out, row.Omit("-"+o.name, o.value))
			continue
		}
		if file := hostFile(o); file != "" && (o.name != "mem-path" || !isDirectory(p.resolve(file))) {
			out = append(out, row.Omit("-"+o.name, p.resolve(file)))
		}
		if o.name == "tpmdev" {
			if t := parseProps(o.value, "type"); t.get("type") != "emulator" {
				out = append(out, devicekind.Element("tpm", "passthrough").Omit(t.get("id"), t.get("path")))
			}
		}
		if o.name == "netdev" || o.name == "nic" {
			if dir := parseProps(o.value, "type").get("smb"); dir != "" {
				out = append(out, devicekind.Option("smb").Omit("smb", p.resolve(dir)))
			}
		}
	}
	return out
}

// hostFile returns the file that an option has QEMU read, and that is not captured; "" if none.
func hostFile(o option) string {
	switch o.name {
	case "readconfig", "dtb", "option-rom", "shim":
		return o.value
	case "mem-path":
		return o.value
	case "fw_cfg", "smbios", "acpitable":
		p := parseProps(o.value, "name")
		for _, key := range []string{"file", "data", "path"} {
			if v := p.get(key); v != "" {
				return v
			}
		}
	}
	return ""
}

// NotHeldArguments returns those of QEMU's arguments, each with its value, that give a machine
// something of the host: an image, a folder, a socket, or a device of a kind that is not rebuilt.
func NotHeldArguments(args []string) []string {
	cl := parseCommandLine(append([]string{""}, args...))
	var out []string
	for _, o := range cl.options {
		if o.name == "" || foreign(o) {
			out = append(out, strings.TrimSpace("-"+o.name+" "+o.value))
		}
	}
	return out
}

// foreign reports whether an option gives a machine something of the host.
func foreign(o option) bool {
	p := parseProps(o.value, impliedKey[o.name])
	switch o.name {
	case "device":
		return devicekind.Device(p.get("driver")).Fate == devicekind.LeftOut || p.get("drive") != "" ||
			p.get("chardev") != ""
	case "object":
		return devicekind.Object(p.get("qom-type")).Fate == devicekind.LeftOut
	case "smbios":
		return hostFile(o) != ""
	case "s", "gdb", "D", "pidfile", "incoming", "loadvm", "readconfig":
		return true
	}
	row := devicekind.Option(o.name)
	return row.Fate != devicekind.Rebuilt || row.Kind == "port" || row.Kind == "network-card"
}
