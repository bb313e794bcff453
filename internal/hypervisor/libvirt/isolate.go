package libvirt

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"github.com/beevik/etree"

	"github.com/holdfast-vm/holdfast/internal/hypervisor"
	"github.com/holdfast-vm/holdfast/internal/hypervisor/console"
	"github.com/holdfast-vm/holdfast/internal/hypervisor/isolation"
	"github.com/holdfast-vm/holdfast/internal/hypervisor/libvirt/rpc"
	"github.com/holdfast-vm/holdfast/internal/hypervisor/pause"
)

// consoleSuffix ends the name of the file that an isolated machine's first serial port writes to.
const consoleSuffix = ".console"

// outward are devices that show the guest something of the host, or the host something to others.
var outward = []string{"filesystem", "hostdev", "vsock", "redirdev", "redirfilter", "shmem", "smartcard", "parallel",
	"graphics", "crypto"}

// isolate leaves the machine no way out. It runs last.
func (b *builder) isolate() {
	if !b.rebuild.Isolated {
		return
	}
	devices := b.dom.SelectElement("devices")
	for _, tag := range outward {
		for _, el := range devices.SelectElements(tag) {
			if tag != "graphics" && tag != "redirfilter" {
				b.warn("isolated: %s (%s) is left out", tag,
					el.SelectAttrValue("type", el.SelectAttrValue("mode", "unknown")))
			}
			devices.RemoveChild(el)
		}
	}
	b.closePorts(devices)
	for _, el := range devices.SelectElements("audio") {
		b.quiet(el)
	}
	for _, el := range devices.FindElements("video/model/acceleration") {
		el.CreateAttr("accel3d", "no")
	}
	b.ejectRemote(devices)
	for _, space := range []string{"commandline", "override", "deprecation"} {
		for _, el := range b.dom.SelectElements(space) {
			b.warn("isolated: QEMU arguments of the definition's own (%s) are left out", el.FullTag())
			b.dom.RemoveChild(el)
		}
	}
	b.cutInterfaces(devices)
}

// quiet makes an audio backend none.
func (b *builder) quiet(el *etree.Element) {
	id := el.SelectAttrValue("id", "1")
	for _, c := range el.ChildElements() {
		el.RemoveChild(c)
	}
	el.Attr = nil
	el.CreateAttr("id", id)
	el.CreateAttr("type", "none")
}

// closePorts ends the first serial port in a file, the others nowhere, and keeps of the channels
// only the guest agent's.
func (b *builder) closePorts(devices *etree.Element) {
	for _, el := range devices.SelectElements("channel") {
		if attr(el, "target", "name") != agentChannel {
			devices.RemoveChild(el)
			continue
		}
		el.CreateAttr("type", "unix")
	}
	first := true
	serial := devices.SelectElements("serial")
	for _, el := range append(serial, devices.SelectElements("console")...) {
		if el.Tag == "console" && len(serial) > 0 && attr(el, "target", "type") != "virtio" {
			devices.RemoveChild(el) // the serial port again
			continue
		}
		for _, c := range el.ChildElements() {
			if c.Tag != "target" && c.Tag != "address" && c.Tag != "alias" {
				el.RemoveChild(c)
			}
		}
		el.RemoveAttr("tty")
		el.CreateAttr("type", "null")
		if first {
			el.CreateAttr("type", "file")
			el.CreateElement("source").CreateAttr("path", b.consoleFile())
		}
		first = false
	}
}

func (b *builder) consoleFile() string {
	return filepath.Join(b.rebuild.StorageDir, b.rebuild.Name+consoleSuffix)
}

// ejectRemote takes out media that are not files of this host, and floppies, which the original may
// write.
func (b *builder) ejectRemote(devices *etree.Element) {
	for _, el := range devices.SelectElements("disk") {
		device, source := el.SelectAttrValue("device", "disk"), el.SelectElement("source")
		if device != "cdrom" && device != "floppy" || source == nil {
			continue
		}
		if device == "cdrom" && el.SelectAttrValue("type", "file") == "file" {
			continue
		}
		b.warn("isolated: medium %s of drive %s is left out", sourceOf(el), attr(el, "target", "dev"))
		for _, tag := range []string{"source", "backingStore", "auth"} {
			for _, c := range el.SelectElements(tag) {
				el.RemoveChild(c)
			}
		}
		el.CreateAttr("type", "file")
	}
}

// Isolation looks at the QEMU process, and asks it for its networks. Cards whose links libvirt
// holds down are cut off.
func (h *Host) Isolation(ctx context.Context, m hypervisor.Machine) (isolation.Report, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	report, err := h.inspect(ctx, m)
	if err != nil {
		return report, fmt.Errorf("check that %s is isolated: %w", m.Name, err)
	}
	return report, nil
}

func (h *Host) inspect(ctx context.Context, m hypervisor.Machine) (isolation.Report, error) {
	l, err := h.look(ctx, m)
	if err == nil && l.off() {
		err = fmt.Errorf("%w that runs", hypervisor.ErrNoMachine)
	}
	if err != nil {
		return isolation.Report{}, err
	}
	pid, err := processOf(formatUUID(l.dom.UUID))
	if err != nil {
		return isolation.Report{}, err
	}
	own := []string{m.Name}
	for _, el := range diskElements(l.live) {
		if file := sourceOf(el); filepath.IsAbs(file) {
			own = append(own, filepath.Dir(file))
		}
	}
	report, err := isolation.Inspect(pid, own)
	if err != nil {
		return report, err
	}
	info, err := l.c.MonitorCommand(ctx, l.dom, "info network", true)
	if err != nil {
		return report, err
	}
	return report.Add(isolation.Backends(info, linksDown(l.live)...)...), nil
}

// Mark returns the mark of a domain as it was looked up a moment ago. Of one whose process cannot
// be seen from here, as in another container, only libvirt's number is known.
func Mark(dom rpc.Domain) pause.Mark {
	var m pause.Mark
	if pid, err := processOf(formatUUID(dom.UUID)); err == nil {
		m = pause.Of(pid, nil)
	}
	m.Domain = dom.ID
	return m
}

// processOf returns the QEMU process of a machine's UUID.
func processOf(uuid string) (int, error) {
	dirs, _ := filepath.Glob("/proc/[0-9]*") // the pattern is well formed
	for _, dir := range dirs {
		text, err := os.ReadFile(dir + "/cmdline")
		if err == nil && bytes.Contains(text, []byte("\x00-uuid\x00"+uuid+"\x00")) {
			return strconv.Atoi(filepath.Base(dir))
		}
	}
	return 0, fmt.Errorf("no process on this host runs the machine with UUID %s", uuid)
}

// SerialText returns the last max bytes that an isolated machine wrote to its first serial port.
func (h *Host) SerialText(ctx context.Context, m hypervisor.Machine, max int64) (string, error) {
	l, err := h.look(ctx, m)
	if err != nil {
		return "", err
	}
	for _, tag := range []string{"serial", "console"} {
		for _, el := range l.live.FindElements("devices/" + tag + "[@type='file']") {
			if path := attr(el, "source", "path"); path != "" {
				return console.Tail(path, max)
			}
		}
	}
	return "", nil
}

// RemoveTraces removes what libvirt keeps of a machine that was removed: its log.
func (h *Host) RemoveTraces(_ context.Context, name string) error {
	dir := "/var/log/libvirt/qemu"
	if h.driver == "qemu:///session" {
		dir = filepath.Join(userDir("XDG_CACHE_HOME", ".cache"), "libvirt/qemu/log")
	}
	err := os.Remove(filepath.Join(dir, name+".log"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
