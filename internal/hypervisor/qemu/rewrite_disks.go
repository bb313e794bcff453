package qemu

import (
	"path/filepath"
	"sort"
	"strings"

	"github.com/holdfast-vm/holdfast/internal/point"
)

var (
	// filterDrivers pass on what is below them.
	filterDrivers = wordSet("throttle copy-on-read compress blkverify blkdebug blklogwrites preallocate")
	// protocolDrivers are the lowest node of a disk.
	protocolDrivers = wordSet("file host_device nbd rbd ssh iscsi http https ftp ftps gluster nfs nvme vvfat null-co " +
		"null-aio")
	// commonKeys are options that every block driver has.
	commonKeys = wordSet("driver node-name read-only auto-read-only discard detect-zeroes cache force-share")
)

// replaceDisks puts the restored images in the place of the old ones. A disk that was not restored
// goes, with its device.
func (w *rewriter) replaceDisks() {
	placed := make(map[int]bool) // options that hold a restored disk
	for _, d := range w.r.Point.Disks {
		path := w.r.Disks[d.Name]
		if path == "" {
			w.warn("disk %s was not restored: it is left out", d.Name)
			continue
		}
		format := w.r.Formats[d.Name]
		if format == "" {
			format = "raw"
		}
		i := w.placeNode(d, path, format)
		if i < 0 {
			i = w.placeDrive(d, path, format, placed)
		}
		if i < 0 {
			w.warn("disk %s is not in the command line, as if plugged in later: it is added as a virtio disk", d.Name)
			i = w.addDrive(path, format)
			w.unlock(i, "", d.Name)
		}
		placed[i] = true
	}
	for _, name := range w.r.Point.ExcludedDisks {
		w.warn("disk %s is not part of the point: it is left out", name)
	}
	w.dropOthers(placed)
}

func (w *rewriter) addDrive(path, format string) int {
	p := &props{list: []property{{key: "file", value: path}, {key: "format", value: format},
		{key: "if", value: "virtio"}}}
	w.cl.options = append(w.cl.options, option{name: "drive", value: p.String(), hasValue: true})
	return len(w.cl.options) - 1
}

// node finds the -blockdev of a node name; -1 if there is none.
func (w *rewriter) node(name string) (int, *props) {
	for i, o := range w.cl.options {
		if o.name == "blockdev" && name != "" {
			if p := parseProps(o.value, "driver"); p.get("node-name") == name {
				return i, p
			}
		}
	}
	return -1, nil
}

// placeNode replaces the image below the node that the disk was captured from, and returns the
// option of that node; -1 if the command line has no such node.
func (w *rewriter) placeNode(d point.Disk, path, format string) int {
	root, p := w.node(d.Source.Node)
	if root < 0 {
		root, p = w.node(strings.TrimPrefix(d.Source.Node, localPrefix))
	}
	if root < 0 {
		return -1
	}
	at, prefix := root, ""
	for filterDrivers[p.get(prefix+"driver")] {
		if child := p.get(prefix + "file"); child != "" {
			next, np := w.node(child)
			if next < 0 {
				return -1
			}
			at, p, prefix = next, np, ""
			continue
		}
		if p.get(prefix+"file.driver") == "" {
			return -1
		}
		prefix += "file."
	}
	w.replaceFormat(at, p, prefix, path, format)
	w.unlock(at, prefix, d.Name)
	return root
}

// unlock gives the node at prefix of option i the secret of a disk that is encrypted.
func (w *rewriter) unlock(i int, prefix, disk string) {
	file := w.r.KeyFiles[disk]
	if file == "" {
		return
	}
	id := "hf-key-" + disk
	o := &w.cl.options[i]
	p := parseProps(o.value, impliedKey[o.name])
	p.set(prefix+"encrypt.format", "luks")
	p.set(prefix+"encrypt.key-secret", id)
	o.value = p.String()
	secret := &props{list: []property{{key: "qom-type", value: "secret", bare: true, implied: true},
		{key: "id", value: id},
		{key: "file", value: file}}}
	w.cl.options = append(w.cl.options, option{name: "object", value: secret.String(), hasValue: true})
	w.warn("disk %s is encrypted again: the machine reads its secret from %s at each start", disk, file)
}

// replaceFormat makes the node at prefix of option i one of the format, over the file at path.
func (w *rewriter) replaceFormat(i int, p *props, prefix, path, format string) {
	driver := p.get(prefix + "driver")
	if protocolDrivers[driver] {
		if format == "raw" {
			replaceProtocol(p, prefix, path)
		} else {
			keepCommon(p, prefix, "")
			p.set(prefix+"driver", format)
			p.set(prefix+"file.driver", "file")
			p.set(prefix+"file.filename", path)
		}
		w.cl.options[i].value = p.String()
		return
	}
	child := p.get(prefix + "file")
	if driver != format {
		keepCommon(p, prefix, "file")
		p.set(prefix+"driver", format)
	} else {
		dropKeys(p, prefix, "backing", "data-file", "encrypt", "size", "offset")
	}
	if below, bp := w.node(child); below >= 0 {
		replaceProtocol(bp, "", path)
		w.cl.options[below].value = bp.String()
	} else {
		dropKeys(p, prefix+"file.", "node-name")
		replaceProtocol(p, prefix+"file.", path)
	}
	w.cl.options[i].value = p.String()
}

// replaceProtocol makes the node at prefix a file.
func replaceProtocol(p *props, prefix, path string) {
	if driver := p.get(prefix + "driver"); driver == "file" || driver == "host_device" {
		keepCommon(p, prefix, "aio locking")
	} else {
		keepCommon(p, prefix, "")
	}
	p.set(prefix+"driver", "file")
	p.set(prefix+"filename", path)
}

// keepCommon drops the options of the node at prefix that not every driver has, except for those
// named.
func keepCommon(p *props, prefix, also string) {
	extra := wordSet(also)
	p.remove(func(key string) bool {
		rest, ok := strings.CutPrefix(key, prefix)
		head, _, _ := strings.Cut(rest, ".")
		return ok && !commonKeys[head] && !extra[head]
	})
}

func dropKeys(p *props, prefix string, heads ...string) {
	p.remove(func(key string) bool {
		rest, ok := strings.CutPrefix(key, prefix)
		head, _, _ := strings.Cut(rest, ".")
		for _, h := range heads {
			if ok && head == h {
				return true
			}
		}
		return false
	})
}

// driveFile returns the image that an option gives the guest as a disk, "" if it is not such an
// option.
func driveFile(o option) string {
	if hdIndex(o.name) >= 0 {
		return o.value
	}
	if o.name != "drive" {
		return ""
	}
	p := parseProps(o.value, "")
	if kind := p.get("if"); kind == "pflash" || kind == "floppy" || kind == "sd" || p.get("media") == "cdrom" {
		return ""
	}
	for _, key := range []string{"file", "file.filename", "filename"} {
		if v := p.get(key); v != "" {
			return v
		}
	}
	return ""
}

// hdIndex returns the drive index that an option such as -hda stands for, -1 if it is not one. An
// image without an option is -hda.
func hdIndex(name string) int {
	if name == "" {
		return 0
	}
	if len(name) == 3 && strings.HasPrefix(name, "hd") && name[2] >= 'a' && name[2] <= 'd' {
		return int(name[2] - 'a')
	}
	return -1
}

// placeDrive replaces the image of a -drive, -hda or bare image, found by its file. It returns -1
// if there is none.
func (w *rewriter) placeDrive(d point.Disk, path, format string, placed map[int]bool) int {
	for i := range w.cl.options {
		o := &w.cl.options[i]
		file := driveFile(*o)
		if placed[i] || file == "" || !w.sameImage(file, d.Source.File) {
			continue
		}
		if index := hdIndex(o.name); index >= 0 {
			p := &props{list: []property{{key: "file", value: path}, {key: "format", value: format},
				{key: "index", value: string(rune('0' + index))}, {key: "media", value: "disk"}}}
			o.name, o.value = "drive", p.String()
			w.unlock(i, "", d.Name)
			return i
		}
		p := parseProps(o.value, "")
		if p.get("format") != format && p.get("driver") != format { // options of the other format mean nothing
			dropKeys(p, "", "l2-cache-size", "cache-size", "refcount-cache-size", "lazy-refcounts", "overlap-check",
				"cache-clean-interval", "size", "offset")
		}
		dropKeys(p, "", "backing", "driver", "filename", "data-file", "encrypt", "key-secret", "snapshot")
		p.remove(func(key string) bool { return strings.HasPrefix(key, "file.") })
		p.set("file", path)
		p.set("format", format)
		o.value = p.String()
		w.unlock(i, "", d.Name)
		return i
	}
	return -1
}

// sameImage compares a file of the command line with the one that a disk was captured from.
func (w *rewriter) sameImage(file, source string) bool {
	return source != "" && (file == source || w.old(file) == w.old(source) || filepath.Clean(w.old(file)) == source)
}

// dropOthers removes the disks that hold no restored image, their devices, and nodes that nothing
// uses any more.
func (w *rewriter) dropOthers(placed map[int]bool) {
	gone := make(map[string]bool) // drives and nodes whose devices go too
	var kept []option
	for i, o := range w.cl.options {
		file := driveFile(o)
		p := parseProps(o.value, "")
		readOnly := p.get("readonly") == "on" || p.get("read-only") == "on"
		if file == "" || placed[i] || readOnly && exists(w.old(file)) {
			kept = append(kept, o)
			continue
		}
		w.warn("image %s is not part of the point: it is left out", file)
		if id := p.get("id"); id != "" {
			gone[id] = true
		}
	}
	roots := make(map[string]bool)
	for i := range placed {
		roots[parseProps(w.cl.options[i].value, "driver").get("node-name")] = true
	}
	w.cl.options = kept
	w.dropDevices(gone, roots)
	w.dropUnused()
}

// dropDevices removes the devices of drives in gone, and of nodes that are neither among roots nor
// read-only and here.
func (w *rewriter) dropDevices(gone, roots map[string]bool) {
	var left []string
	w.cl.drop(func(o option) bool {
		if o.name != "device" {
			return false
		}
		drive := parseProps(o.value, "driver").get("drive")
		if gone[drive] {
			return true
		}
		if i, _ := w.node(drive); i < 0 || roots[drive] || w.keepsNode(drive) {
			return false
		}
		left = append(left, drive)
		return true
	})
	sort.Strings(left)
	for _, name := range left {
		w.warn("the image of node %s is not part of the point: it is left out", name)
	}
}

// keepsNode reports whether a node is read-only and its file is on this host.
func (w *rewriter) keepsNode(name string) bool {
	for depth := 0; depth < 16; depth++ {
		i, p := w.node(name)
		if i < 0 {
			return false
		}
		for _, key := range []string{"filename", "file.filename"} {
			if file := p.get(key); file != "" {
				return p.get("read-only") == "on" && exists(w.old(file))
			}
		}
		if p.get("read-only") != "on" {
			return false
		}
		next := p.get("file")
		if _, below := w.node(next); below != nil && below.get("read-only") != "on" &&
			exists(w.old(below.get("filename"))) {
			return true
		}
		name = next
	}
	return false
}

// dropUnused removes nodes that no device, machine property, drive or other node refers to.
func (w *rewriter) dropUnused() {
	for {
		used := make(map[string]bool)
		w.cl.edit("blockdev device machine M drive object", func(o *option, p *props) {
			for _, key := range p.keys() {
				if !strings.HasSuffix(key, "node-name") || o.name != "blockdev" {
					used[p.get(key)] = true
				}
			}
		})
		before := len(w.cl.options)
		w.cl.drop(func(o option) bool {
			return o.name == "blockdev" && !used[parseProps(o.value, "driver").get("node-name")]
		})
		if len(w.cl.options) == before {
			return
		}
	}
}

// dropStaleMedia empties removable drives whose media are not on this host.
func (w *rewriter) dropStaleMedia() {
	w.cl.edit("drive", func(_ *option, p *props) {
		file := p.get("file")
		if p.get("media") == "cdrom" && file != "" && !isURI(file) && !exists(w.old(file)) {
			w.warn("medium %s is not on this host: the drive is left empty", file)
			dropKeys(p, "", "file", "format")
		}
	})
	w.cl.drop(func(o option) bool {
		stale := (o.name == "cdrom" || o.name == "fda" || o.name == "fdb") && !exists(w.old(o.value))
		if stale {
			w.warn("medium %s is not on this host: it is left out", o.value)
		}
		return stale
	})
}
