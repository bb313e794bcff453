package libvirt

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/beevik/etree"

	"github.com/holdfast-vm/holdfast/internal/hypervisor"
)

// builder turns the definition of the machine that was into that of the machine to be. What it does
// not know it keeps.
type builder struct {
	rebuild    hypervisor.Rebuild
	dom        *etree.Element
	libVersion uint64  // of libvirt, as rpc.Client.LibVersion has it
	secrets    []keyed // that disks are encrypted with
	warnings   []string
}

// keyed is a disk that is encrypted with what is in a file, and opened with a secret of libvirtd's.
type keyed struct {
	disk string
	ref  *etree.Element
	file string
}

func newBuilder(r hypervisor.Rebuild, old *etree.Element) *builder {
	return &builder{rebuild: r, dom: old.Copy()}
}

func (b *builder) warn(format string, args ...any) {
	b.warnings = append(b.warnings, fmt.Sprintf(format, args...))
}

func (b *builder) xml() (string, error) {
	doc := etree.NewDocument()
	doc.SetRoot(b.dom)
	return doc.WriteToString()
}

func (b *builder) build() error {
	if b.dom.SelectElement("devices") == nil || b.dom.SelectElement("os") == nil {
		return errors.New("the definition in the point lacks its devices or os element")
	}
	b.accelerate()
	b.identity()
	b.firmware()
	if err := b.disks(); err != nil {
		return err
	}
	b.media()
	b.foreign()
	b.interfaces()
	b.tpm()
	b.consoles()
	b.isolate()
	if err := b.complete(); err != nil {
		return err
	}
	return nil
}

// complete checks that every disk that was written found its place.
func (b *builder) complete() error {
	for name := range b.rebuild.Disks {
		if b.dom.FindElement("devices/disk/target[@dev='"+name+"']") == nil {
			return fmt.Errorf("the definition in the point has no disk %s", name)
		}
	}
	return nil
}

func (b *builder) identity() {
	b.dom.RemoveAttr("id")
	child(b.dom, "name").SetText(b.rebuild.Name)
	if genid := b.dom.SelectElement("genid"); genid != nil {
		genid.SetText(newUUID()) // the guest must notice that time has jumped, in place as well
	}
	for _, el := range b.dom.SelectElements("seclabel") {
		if el.SelectAttrValue("type", "dynamic") == "static" {
			b.warn("static security label of model %s is dropped", el.SelectAttrValue("model", "unknown"))
			b.dom.RemoveChild(el)
		}
	}
	if attr(b.dom, "cpu", "mode") == "host-passthrough" {
		b.warn("the CPU is the host's own (host-passthrough): if this host has another model, the guest sees another " +
			"CPU")
	}
	if b.rebuild.SameIdentity {
		return
	}
	uuid := child(b.dom, "uuid")
	old := uuid.Text()
	if uuid.SetText(b.rebuild.UUID); b.rebuild.UUID == "" {
		uuid.SetText(newUUID())
	}
	for _, el := range b.dom.FindElements("sysinfo/system/entry[@name='uuid']") {
		if el.Text() == old {
			el.SetText(uuid.Text()) // libvirt refuses a difference
		}
	}
}

// firmware points the machine to the restored firmware variables, kernel and initrd, and to
// firmware that exists here.
func (b *builder) firmware() {
	os_ := b.dom.SelectElement("os")
	for _, role := range []string{"kernel", "initrd"} {
		el := os_.SelectElement(role)
		if el == nil {
			continue
		}
		if path := b.file(role, filepath.Base(strings.TrimSpace(el.Text()))); path != "" {
			el.SetText(path)
		} else if missing(strings.TrimSpace(el.Text())) {
			b.warn("%s %s does not exist here and is not in the point", role, strings.TrimSpace(el.Text()))
		}
	}
	if loader := os_.SelectElement("loader"); loader != nil && missing(strings.TrimSpace(loader.Text())) &&
		loader.Text() != "" {
		b.warn("firmware %s does not exist here: libvirt chooses another", strings.TrimSpace(loader.Text()))
		if loader.SelectAttrValue("type", "") == "pflash" {
			os_.CreateAttr("firmware", "efi")
		}
		os_.RemoveChild(loader)
	}
	b.findEmulator()
	b.nvram(os_)
}

// findEmulator leaves the choice to libvirt where QEMU is not where it was.
func (b *builder) findEmulator() {
	if emulator := b.dom.FindElement("devices/emulator"); emulator != nil && missing(emulator.Text()) {
		b.warn("QEMU is not at %s here: libvirt chooses another", emulator.Text())
		b.dom.SelectElement("devices").RemoveChild(emulator)
	}
}

func (b *builder) nvram(os_ *etree.Element) {
	b.varstore(os_)
	el := os_.SelectElement("nvram")
	if el == nil {
		return
	}
	path := b.file("nvram", filepath.Base(nvramPath(b.dom)))
	os_.RemoveChild(el)
	format, template := el.SelectAttrValue("format", ""), ""
	if path == "" {
		b.warn("firmware variables are not in the point: the machine begins with fresh ones")
		if !b.rebuild.Isolated {
			return
		}
		path, template = b.varsFile(), el.SelectAttrValue("template", "") // where all of it is discarded
	}
	fresh := os_.CreateElement("nvram")
	for key, value := range map[string]string{"format": format, "template": template} {
		if value != "" {
			fresh.CreateAttr(key, value)
		}
	}
	fresh.SetText(path)
}

// varstore does the same for variables that a device of QEMU's keeps.
func (b *builder) varstore(os_ *etree.Element) {
	el := os_.SelectElement("varstore")
	if el == nil {
		return
	}
	if path := b.file("nvram", filepath.Base(nvramPath(b.dom))); path != "" {
		el.CreateAttr("path", path)
		return
	}
	b.warn("firmware variables are not in the point: the machine begins with fresh ones")
	os_.RemoveChild(el)
}

func (b *builder) varsFile() string {
	return filepath.Join(b.rebuild.StorageDir, b.rebuild.Name+"_VARS.fd")
}

// file returns the path of a restored file of the point; "" if it was not restored.
func (b *builder) file(role, name string) string { return b.rebuild.Files[role+"/"+name] }

// disks puts the written images in the place of the old ones.
func (b *builder) disks() error {
	devices := b.dom.SelectElement("devices")
	for _, el := range diskElements(b.dom) {
		name := attr(el, "target", "dev")
		path, ok := b.rebuild.Disks[name]
		if !ok {
			b.warn("disk %s is not restored and dropped from the machine", name)
			devices.RemoveChild(el)
			continue
		}
		secret := secretOf(el)
		for _, tag := range []string{"source", "backingStore", "mirror", "encryption", "auth"} {
			for _, c := range el.SelectElements(tag) {
				el.RemoveChild(c)
			}
		}
		el.CreateAttr("type", "file")
		el.CreateAttr("device", "disk")
		el.RemoveAttr("rawio")
		el.RemoveAttr("sgio")
		driver := child(el, "driver")
		driver.CreateAttr("name", "qemu")
		driver.CreateAttr("type", b.format(name))
		source := el.CreateElement("source")
		source.CreateAttr("file", path)
		if err := b.encrypt(source, name, secret); err != nil {
			return err
		}
		if err := b.stackDisk(el, name); err != nil {
			return err
		}
	}
	return nil
}

// encrypt has the image opened with the secret that the old one was opened with.
func (b *builder) encrypt(source *etree.Element, disk string, secret *etree.Element) error {
	file := b.rebuild.KeyFiles[disk]
	if file == "" {
		return nil
	}
	if secret == nil {
		return fmt.Errorf("disk %s is to be encrypted again, but the definition in the point names no secret of its",
			disk)
	}
	el := source.CreateElement("encryption")
	el.CreateAttr("format", "luks")
	el.AddChild(secret.Copy())
	name := secret.SelectAttrValue("uuid", secret.SelectAttrValue("usage", ""))
	b.secrets = append(b.secrets, keyed{disk: disk, ref: secret, file: file})
	b.warn("disk %s is encrypted again: libvirt's secret %s must be what is in %s", disk, name, file)
	return nil
}

func (b *builder) format(disk string) string {
	if f := b.rebuild.Formats[disk]; f != "" {
		return f
	}
	return "raw"
}

// media ejects what is not here.
func (b *builder) media() {
	for _, el := range b.dom.FindElements("devices/disk") {
		device := el.SelectAttrValue("device", "disk")
		source := el.SelectElement("source")
		if device != "cdrom" && device != "floppy" || source == nil {
			continue
		}
		path := source.SelectAttrValue("file", source.SelectAttrValue("dev", ""))
		switch {
		case path == "" || missing(path):
			b.warn("medium %s of drive %s does not exist here and is ejected", sourceOf(el), attr(el, "target", "dev"))
		case device == "floppy" && el.SelectElement("readonly") == nil:
			b.warn("floppy %s is ejected: the point does not hold it, and the original may write it", path)
		default:
			continue
		}
		el.RemoveChild(source)
		el.CreateAttr("type", "file")
	}
}

func (b *builder) interfaces() {
	devices := b.dom.SelectElement("devices")
	for _, el := range devices.SelectElements("interface") {
		if !b.rebuild.SameIdentity && !b.rebuild.Isolated {
			child(el, "mac").CreateAttr("address", newMAC())
		}
		source := el.SelectElement("source")
		if source == nil {
			continue
		}
		for _, key := range []string{"network", "bridge", "dev"} {
			if to, ok := b.rebuild.Networks[source.SelectAttrValue(key, "")]; ok {
				source.CreateAttr(key, to)
				source.RemoveAttr("portid")
			}
		}
	}
}

// tpm warns of an emulated TPM that begins empty.
func (b *builder) tpm() {
	for range b.dom.FindElements("devices/tpm") {
		if !b.has("tpm/") {
			b.warn("TPM state is not in the point: the TPM begins empty, and what was sealed to it is lost")
		}
	}
}

func (b *builder) has(prefix string) bool {
	for key := range b.rebuild.Files {
		if strings.HasPrefix(key, prefix) {
			return true
		}
	}
	return false
}

// consoles makes room for sockets, files and ports that the old machine may still have.
func (b *builder) consoles() {
	devices := b.dom.SelectElement("devices")
	for _, el := range devices.SelectElements("channel") {
		if source := el.SelectElement("source"); source != nil && el.SelectAttrValue("type", "") == "unix" {
			el.RemoveChild(source) // libvirt makes a new one
		}
	}
	for _, tag := range []string{"serial", "console", "parallel"} {
		for _, el := range devices.SelectElements(tag) {
			b.console(tag, el)
		}
	}
	if b.rebuild.SameIdentity {
		return
	}
	for _, el := range devices.SelectElements("graphics") {
		if el.SelectAttr("port") != nil {
			for _, key := range []string{"port", "tlsPort", "websocket"} {
				el.RemoveAttr(key)
			}
			el.CreateAttr("autoport", "yes")
		}
		el.RemoveAttr("socket")
	}
	if cid := devices.FindElement("vsock/cid"); cid != nil {
		cid.RemoveAttr("address")
		cid.CreateAttr("auto", "yes")
	}
}

// console turns a console that the new machine cannot have into a pty.
func (b *builder) console(tag string, el *etree.Element) {
	kind := el.SelectAttrValue("type", "pty")
	switch kind {
	case "unix", "file", "tcp", "udp", "pipe", "dev", "nmdm":
	default:
		return
	}
	path := attr(el, "source", "path")
	switch {
	case !b.rebuild.SameIdentity:
		b.warn("%s of type %s, which the old machine may use, becomes a pty", tag, kind)
	case path != "" && missing(filepath.Dir(path)):
		b.warn("%s of type %s becomes a pty: there is no directory %s any more", tag, kind, filepath.Dir(path))
	default:
		return
	}
	el.CreateAttr("type", "pty")
	for _, c := range []string{"source", "protocol", "log"} {
		if old := el.SelectElement(c); old != nil {
			el.RemoveChild(old)
		}
	}
}

func missing(path string) bool {
	_, err := os.Stat(path)
	return err != nil
}

// child returns the child of that tag, made if need be.
func child(el *etree.Element, tag string) *etree.Element {
	if c := el.SelectElement(tag); c != nil {
		return c
	}
	return el.CreateElement(tag)
}

func newUUID() string {
	var u [16]byte
	rand.Read(u[:])
	u[6], u[8] = u[6]&0x0f|0x40, u[8]&0x3f|0x80
	return formatUUID(u)
}

func newMAC() string {
	var m [3]byte
	rand.Read(m[:])
	return fmt.Sprintf("52:54:00:%02x:%02x:%02x", m[0], m[1], m[2])
}

func parseUUID(s string) (u [16]byte, err error) {
	b, err := hex.DecodeString(strings.ReplaceAll(s, "-", ""))
	if err != nil || len(b) != len(u) {
		return u, fmt.Errorf("%q is not a UUID", s)
	}
	copy(u[:], b)
	return u, nil
}
