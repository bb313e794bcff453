package cli_test

import (
	"errors"
	"os"
	"regexp"
	"strconv"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"
)

var processNumber = regexp.MustCompile(`(?:^|process )(\d+)`)

// killCmd kills the process that each file names, and waits until it is gone with all its threads:
// until then it has its locks.
func killCmd(ts *testscript.TestScript, _ bool, files []string) {
	for _, name := range files {
		text, err := os.ReadFile(ts.MkAbs(name))
		ts.Check(err)
		m := processNumber.FindStringSubmatch(string(text))
		if m == nil {
			ts.Fatalf("%s names no process: %q", name, text)
		}
		pid, err := strconv.Atoi(m[1])
		ts.Check(err)
		fd, err := unix.PidfdOpen(pid, 0)
		ts.Check(err)
		defer unix.Close(fd)
		ts.Check(unix.Kill(pid, unix.SIGKILL))
		for {
			_, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, -1)
			if !errors.Is(err, unix.EINTR) {
				ts.Check(err)
				break
			}
		}
	}
}
