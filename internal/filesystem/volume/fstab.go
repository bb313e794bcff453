package volume

import (
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/holdfast-vm/holdfast/internal/filesystem/partition"
)

// fstabEntry is a line of /etc/fstab.
type fstabEntry struct {
	spec, file, kind string
	options          []string
}

const (
	maxFstab   = 1 << 20 // bytes
	maxEntries = 4096
	maxMounts  = 512 // of file systems that are on disks
)

// parseFstab returns the lines that mount something; other lines are skipped, as mount
// does.
func parseFstab(text []byte) []fstabEntry {
	var out []fstabEntry
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		if len(fields) < 3 || strings.HasPrefix(fields[0], "#") || len(out) == maxEntries {
			continue
		}
		e := fstabEntry{spec: unescape(fields[0]), file: unescape(fields[1]), kind: fields[2]}
		if len(fields) > 3 {
			e.options = strings.Split(fields[3], ",")
		}
		if strings.HasPrefix(e.file, "/") {
			e.file = path.Clean(e.file)
			out = append(out, e)
		}
	}
	return out
}

// unescape replaces \040 and the like.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

func (e fstabEntry) has(option string) bool { return slices.Contains(e.options, option) }

// kinds of file systems that hold nothing that is on a disk.
var virtualKinds = []string{"swap", "tmpfs", "proc", "sysfs", "devtmpfs", "devpts", "none", "ignore", "cgroup",
	"cgroup2", "debugfs", "tracefs",
	"securityfs", "hugetlbfs", "mqueue", "ramfs", "overlay", "aufs", "autofs", "efivarfs", "binfmt_misc", "configfs",
	"pstore", "bpf", "fusectl"}

// onDisk reports whether an entry mounts a file system of a disk when the machine starts.
func (e fstabEntry) onDisk() bool {
	return !slices.Contains(virtualKinds, e.kind) && !e.has("noauto") && !e.has("bind") && !e.has("rbind") &&
		!strings.HasPrefix(e.spec, "/dev/loop") &&
		!e.has("loop")
}

// remote reports whether an entry mounts something of another machine.
func (e fstabEntry) remote() bool {
	return slices.Contains([]string{"nfs", "nfs4", "cifs", "smb3", "smbfs", "ceph", "glusterfs", "9p", "virtiofs",
		"fuse.sshfs", "davfs", "afs", "lustre"}, e.kind)
}

// source returns the volume that an entry of fstab means.
func (v *Volumes) source(spec string) (*Volume, error) {
	if key, value, ok := strings.Cut(spec, "="); ok && !strings.HasPrefix(spec, "/") {
		return v.tagged(strings.ToUpper(key), strings.Trim(value, `"'`))
	}
	if rest, ok := strings.CutPrefix(spec, "/dev/disk/by-"); ok {
		key, value, _ := strings.Cut(rest, "/")
		return v.byDisk(key, unescapeUdev(value))
	}
	if name, ok := strings.CutPrefix(spec, "/dev/mapper/"); ok {
		return v.byName(unmangle(name), spec)
	}
	if name, ok := strings.CutPrefix(spec, "/dev/"); ok {
		return v.byName(name, spec)
	}
	return nil, fmt.Errorf("%s: no device of a disk of this point", spec)
}

func (v *Volumes) byDisk(key, value string) (*Volume, error) {
	switch key {
	case "uuid", "label", "partuuid", "partlabel":
		return v.tagged(strings.ToUpper(key), value)
	case "id":
		if name, ok := strings.CutPrefix(value, "dm-name-"); ok {
			return v.byName(unmangle(name), value)
		}
	}
	return v.byPosition(value)
}

// byPosition takes the number of a partition from a name that says by which bus, slot or serial
// number its disk is known, if only one disk has such a partition with files.
func (v *Volumes) byPosition(name string) (*Volume, error) {
	if len(v.disks) == 1 {
		if i := strings.LastIndex(name, "-part"); i >= 0 {
			if n, err := strconv.Atoi(name[i+5:]); err == nil {
				return v.byName(partition.Name(v.disks[0].Name, n), name)
			}
		}
	}
	return nil, fmt.Errorf("%s: which disk that is cannot be known from the disks alone", name)
}

// tagged finds a volume by what is written on it. Several that match are an error: which one the
// machine would take is chance.
func (v *Volumes) tagged(key, value string) (*Volume, error) {
	var found *Volume
	for _, vol := range v.List {
		match := false
		switch key {
		case "UUID":
			match = vol.Type != "LVM2_member" && strings.EqualFold(vol.UUID, value)
		case "LABEL":
			match = vol.Label == value
		case "PARTUUID":
			match = strings.EqualFold(vol.PartUUID, value)
		case "PARTLABEL":
			match = vol.PartLabel == value
		}
		if !match || value == "" {
			continue
		}
		if found != nil {
			return nil, fmt.Errorf("%s=%s: both %s and %s have it", key, value, found.Name, vol.Name)
		}
		found = vol
	}
	if found == nil {
		return nil, fmt.Errorf("%s=%s is on no disk of this point", key, value)
	}
	return found, nil
}

// byName finds vda1, vg/lv, or what the machine calls its disks by other names of the same order:
// sda1 for vda1.
func (v *Volumes) byName(name, spec string) (*Volume, error) {
	if vol := v.Find(name); vol != nil {
		return vol, nil
	}
	disk, part, ok := deviceName(name)
	if ok && disk < len(v.disks) {
		own := v.disks[disk].Name
		if part > 0 {
			own = partition.Name(own, part)
		}
		if vol := v.Find(own); vol != nil {
			return vol, nil
		}
	}
	return nil, fmt.Errorf("%s is on no disk of this point", spec)
}

// deviceName takes apart what Linux calls disks: sdb2 is disk 1, partition 2. Part is 0 for a whole
// disk.
func deviceName(name string) (disk, part int, ok bool) {
	if rest, is := strings.CutPrefix(name, "nvme"); is {
		ctrl, rest, ok1 := strings.Cut(rest, "n1")
		number, partText, _ := strings.Cut(rest, "p")
		disk, err := strconv.Atoi(ctrl)
		if !ok1 || number != "" || err != nil || disk < 0 {
			return 0, 0, false
		}
		return numbered(disk, partText)
	}
	for _, prefix := range []string{"sd", "vd", "xvd", "hd"} {
		rest, is := strings.CutPrefix(name, prefix)
		letters := strings.TrimRight(rest, "0123456789")
		if !is || len(letters) != 1 || letters[0] < 'a' || letters[0] > 'z' {
			continue
		}
		return numbered(int(letters[0]-'a'), rest[1:])
	}
	return 0, 0, false
}

func numbered(disk int, part string) (int, int, bool) {
	if part == "" {
		return disk, 0, true
	}
	n, err := strconv.Atoi(part)
	return disk, n, err == nil && n > 0
}

// unmangle turns what device-mapper calls a logical volume, vg--x-root, into vg-x/root.
func unmangle(name string) string {
	name = strings.ReplaceAll(name, "--", "\x00")
	name = strings.Replace(name, "-", "/", 1)
	return strings.ReplaceAll(name, "\x00", "-")
}

// unescapeUdev replaces \x20 and the like.
func unescapeUdev(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) && s[i+1] == 'x' {
			if n, err := strconv.ParseUint(s[i+2:i+4], 16, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}
