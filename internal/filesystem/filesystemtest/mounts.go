package filesystemtest

import (
	"fmt"
	"os"
	"runtime"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

const movedEnv = "HOLDFAST_TEST_OWN_MOUNTS"

// OwnMounts runs the tests, if move says so in a mount namespace of their own, after prepare has
// been called in it. Whatever ends the process, its mounts end with it, and the loop devices below
// them. And nobody else can keep them: a process that moves into a namespace of its own while a
// test has something mounted takes a copy of the mount along, and the image cannot be mounted
// again as long as that lives. It does not return.
func OwnMounts(m *testing.M, move bool, prepare func() error) {
	if move && os.Getenv(movedEnv) == "" {
		err := moveMounts()
		if err == nil {
			err = prepare()
		}
		if err == nil {
			err = syscall.Exec("/proc/self/exe", os.Args, append(os.Environ(), movedEnv+"=1"))
		}
		fmt.Fprintln(os.Stderr, "own mount namespace:", err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// moveMounts moves this thread, which is the one that stays when the program is started again.
func moveMounts() error {
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return err
	}
	return unix.Mount("none", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
}
