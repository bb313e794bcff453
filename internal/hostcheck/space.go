package hostcheck

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/holdfast-vm/holdfast/internal/diskimage"
)

const (
	leastScratch   = 64 << 20 // bytes, for small machines
	comfortScratch = 4 << 30
	tryBytes       = 1 << 20 // that are written to see whether a directory takes any
)

// checkScratch writes to the scratch space, as a backup and a drill do.
func checkScratch(_ context.Context, l *look) []Finding {
	f := Finding{Subject: l.Scratch, Verdict: Works,
		Lost: "backups of running machines, and drills",
		Advice: "free space there, or name another directory: --scratch DIR, HOLDFAST_SCRATCH; for drills --storage " +
			"DIR"}
	room, err := tryDir(l.Scratch)
	if err != nil {
		f.Verdict, f.Found = Fails, err.Error()
		return one(f)
	}
	kind := fileSystem(existing(l.Scratch))
	f.Found = fmt.Sprintf("%s free, %s", bytesOf(room), kind)
	switch {
	case room < leastScratch:
		f.Verdict = Fails
	case kind == "tmpfs":
		f.Verdict, f.Lost = Limited, "what is written there takes memory"
	case room < comfortScratch:
		f.Verdict, f.Lost = Limited,
			"backups and drills of machines that write much are broken off when the space is used up"
	default:
		f.Lost, f.Advice = "", ""
	}
	if f.Verdict != Fails {
		l.reach(&f)
	}
	return one(f)
}

// reach lowers the verdict if machines, which run as another user, cannot get to the scratch space.
func (l *look) reach(f *Finding) {
	for _, h := range l.met {
		uid, gid := h.software.UID, h.software.GID
		if h.err != nil || uid < 0 {
			continue
		}
		if dir := barred(existing(l.Scratch), uid, gid); dir != "" {
			f.Verdict = Limited
			f.Lost = fmt.Sprintf("machines of %s run as user %d and cannot get through %s: no backups and drills of "+
				"them",
				h.URI(), uid, dir)
			f.Advice = "chmod o+x " + dir + ", or name another directory"
			return
		}
	}
}

// barred returns the directory on the way to dir that a user cannot get through, "" if there is
// none.
func barred(dir string, uid, gid int) string {
	for at := dir; ; at = filepath.Dir(at) {
		info, err := os.Stat(at)
		if err != nil {
			return at
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		mode := info.Mode().Perm()
		switch {
		case uid == 0 || !ok:
		case int(st.Uid) == uid && mode&0o100 != 0:
		case int(st.Gid) == gid && mode&0o010 != 0:
		case mode&0o001 == 0:
			return at
		}
		if at == filepath.Dir(at) {
			return ""
		}
	}
}

// checkState makes a file where locks and notes are kept.
func checkState(_ context.Context, l *look) []Finding {
	f := Finding{Subject: l.StateDir, Verdict: Works}
	room, err := tryDir(l.StateDir)
	if err != nil {
		return one(Finding{Subject: l.StateDir, Verdict: Fails, Found: err.Error(),
			Lost:   "backups, instant restores and exports: each notes what it does before it does it",
			Advice: "run this as a user who may write there, or name another directory with HOLDFAST_STATE"})
	}
	f.Found = bytesOf(room) + " free, " + fileSystem(existing(l.StateDir))
	return one(f)
}

// tryDir writes a file to a directory, or to the one that it will be made in, durably, and returns
// how much room is left.
func tryDir(dir string) (room int64, err error) {
	dir = existing(dir)
	file, err := os.CreateTemp(dir, ".holdfast-check-*")
	if err != nil {
		return 0, err
	}
	defer os.Remove(file.Name())
	defer file.Close()
	if _, err := file.Write(bytes.Repeat([]byte("holdfast"), tryBytes/8)); err != nil {
		return 0, err
	}
	if err := file.Sync(); err != nil {
		return 0, err
	}
	return diskimage.Room(dir)
}

// existing returns the directory, or the nearest above it that is there.
func existing(dir string) string {
	for at := dir; ; at = filepath.Dir(at) {
		if _, err := os.Stat(at); !errors.Is(err, fs.ErrNotExist) || at == filepath.Dir(at) {
			return at
		}
	}
}

// kinds are the file systems that are worth a word, by the number that statfs gives.
var kinds = map[int64]string{
	unix.EXT4_SUPER_MAGIC: "ext4", unix.XFS_SUPER_MAGIC: "XFS", unix.BTRFS_SUPER_MAGIC: "Btrfs",
	unix.TMPFS_MAGIC:     "tmpfs",
	unix.NFS_SUPER_MAGIC: "NFS", unix.OVERLAYFS_SUPER_MAGIC: "overlayfs", 0x2fc12fc1: "ZFS", 0x65735546: "FUSE",
}

func fileSystem(dir string) string {
	var st unix.Statfs_t
	if unix.Statfs(dir, &st) != nil {
		return "a file system that cannot be told"
	}
	if kind := kinds[int64(st.Type)]; kind != "" {
		return kind
	}
	return fmt.Sprintf("a file system of type %#x", st.Type)
}

func bytesOf(n int64) string {
	if n < 10<<30 {
		return fmt.Sprintf("%d MiB", n>>20)
	}
	return fmt.Sprintf("%d GiB", n>>30)
}
