package role

// FileSystems is the check that every drill makes: local file systems are mounted as the guest
// wants them, and none of them is damaged.
func FileSystems() Check {
	return Check{Name: "file systems", Unix: shell(fileSystems), Windows: powershell(windowsVolumes)}
}

// fileSystems says no with status 1 while something may still be mounted, and with 3 when damage
// was met. What ext4 has counted before the point was taken counts too: it stays in the superblock
// until fsck is run.
const fileSystems = `bad=0
# read-only says whether the guest wants $1 so.
wants_ro() {
	while read -r _ dir _ options _; do
		[ "$dir" = "$1" ] && case ",$options," in *,ro,*) return 0 ;; esac
	done </etc/fstab
	return 1
}
is_local() {
	case $1 in ext2|ext3|ext4|xfs|btrfs|f2fs|jfs|reiserfs|vfat|exfat|ntfs|ntfs3|fuseblk|bcachefs) return 0 ;; esac
	return 1
}
while read -r device dir type options _; do
	is_local "$type" || continue
	case ",$options," in
	*,ro,*) [ -r /etc/fstab ] && wants_ro "$dir" || { echo "$dir ($device, $type) is mounted read-only"; bad=1; } ;;
	esac
done </proc/self/mounts
if [ -r /etc/fstab ]; then
	while read -r device dir type options _; do
		case $device in "#"*|"") continue ;; esac
		is_local "$type" || continue
		case ",$options," in *,noauto,*|*,nofail,*) continue ;; esac
		while read -r _ mounted _; do [ "$mounted" = "$dir" ] && continue 2; done </proc/self/mounts
		echo "$dir ($device, $type) is not mounted"
		bad=1
	done </etc/fstab
fi
for counter in /sys/fs/ext4/*/errors_count; do
	[ -r "$counter" ] || continue
	n=$(cat "$counter")
	device=${counter#/sys/fs/ext4/}
	[ "${n:-0}" = 0 ] || { echo "ext4 on ${device%/errors_count} has met $n errors"; bad=3; }
done
said=$(dmesg 2>/dev/null | grep -E 'EXT[234]-fs error|XFS \([^)]*\): ((Metadata )?[Cc]orruption|.*[Ii]nternal error|.*[Ss]hut(ting)? ?down|log I/O error)|BTRFS (error|critical)|F2FS-fs.*(corrupt|error)|JBD2.*[Ee]rror|I/O error, dev |Remounting filesystem read-only' | grep -vE 'dev (fd|sr)[0-9]' | tail -n 5)
[ -z "$said" ] || { echo "$said"; bad=3; }
exit $bad`
