package torture

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"github.com/holdfast-vm/holdfast/internal/point"
	"github.com/holdfast-vm/holdfast/test/vm/program"
)

// smallDisk mounts a file system of that many MiB, and returns what fills it up except for some
// MiB, and frees it again.
func (l *lab) smallDisk(mib int) (dir string, fill func(leave int64), free func()) {
	l.t.Helper()
	dir = filepath.Join(l.dir, fmt.Sprintf("small%d", mib))
	if err := os.Mkdir(dir, 0o755); err != nil {
		l.t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%dm", mib)); err != nil {
		l.t.Fatalf("mount a small file system: %v", err)
	}
	l.t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			l.t.Error(err)
		}
	})
	filler := filepath.Join(dir, "filler")
	fill = func(leave int64) {
		l.t.Helper()
		f, err := os.Create(filler)
		if err != nil {
			l.t.Fatal(err)
		}
		defer f.Close()
		for err = syscall.ENOSPC; err == syscall.ENOSPC; { // others take from it at the same time
			var st syscall.Statfs_t
			if err := syscall.Statfs(dir, &st); err != nil {
				l.t.Fatal(err)
			}
			room := int64(st.Bavail)*st.Bsize - leave<<20
			if room <= 0 {
				return
			}
			err = syscall.Fallocate(int(f.Fd()), 0, 0, room)
		}
		if err != nil {
			l.t.Fatal(err)
		}
	}
	free = func() {
		l.t.Helper()
		if err := os.Remove(filler); err != nil {
			l.t.Fatal(err)
		}
	}
	return dir, fill, free
}

func smallScratch(l *lab) {
	dir, _, _ := l.smallDisk(100)
	p := l.takes("--full-read", "--scratch", dir)
	if p.Rung != point.SlicedPush && p.Rung != point.Compare {
		l.t.Errorf("taken by %s: %s", p.Rung, p.RungReason)
	}
	l.writesGoOn(10)
	l.tracked(l.takes("--scratch", dir), "vda", "vdb", "vdc")
}

func noScratch(l *lab) {
	l.unchanged(func() {
		l.fails(1, []string{"not enough scratch space", "bytes needed", `"scratch"`}, l.backupArgs("--full-read", "--scratch-limit=1MiB")...)
	})
	l.writesGoOn(10)
	l.tracked(l.takes(), "vda", "vdb")
}

// Somebody else fills the scratch's disk while QEMU writes there: the backup gives up, or makes do,
// and no write of the guest fails.
func filledScratch(l *lab) {
	dir, fill, free := l.smallDisk(400)
	cmd := l.start(l.backupArgs("--full-read", "--scratch", dir)...)
	program.Until(l.t, "the backup has begun", func() bool { return l.noted() || cmd.Ended() })
	fill(1)
	cmd.Wait(l.t)
	l.writesGoOn(50)
	free()
	switch cmd.Status() {
	case 0:
		l.checked(decode[point.RecoveryPoint](l.t, cmd.Out.String()))
	default:
		l.failed(cmd, 1, "not enough scratch space")
	}
	l.takes()
}

// The vault's disk is full: the earlier points are whole, and with room again the next one counts
// from the last that was made.
func fullVault(l *lab) {
	dir, fill, free := l.smallDisk(300)
	usual := l.vault
	defer func() { l.vault = usual }()
	l.vault = filepath.Join(dir, "vault")
	key := l.key
	defer func() { l.key = key }()
	l.key = filepath.Join(l.dir, "small.key")
	l.must("vault", "init", l.vault)
	flags := []string{"--exclude-disk=vda", "--consistency=filesystem"}
	first, least := l.takes(flags...), l.floor()
	fill(0)
	l.writesGoOn(50)
	l.unchanged(func() { l.fails(1, []string{"no space", `"no_space"`}, l.backupArgs(flags...)...) })
	l.writesGoOn(10)
	l.verify(first.ID, floor{})
	l.must("vault", "check", "--read-data")
	free()
	second := l.takes(flags...)
	l.tracked(second, "vdb")
	l.verify(second.ID, least)
	l.must("vault", "check", "--read-data")
	l.must("host", "reconcile", "--release")
}
