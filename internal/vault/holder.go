package vault

import (
	"encoding/json"
	"errors"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
)

// holder says which process holds something, so that others can see that it is gone.
type holder struct {
	Machine string `json:"machine"`         // systemd's ID of the installation
	Board   string `json:"board,omitempty"` // UUID of the hardware: a clone has another
	Boot    string `json:"boot"`
	PIDs    string `json:"pids"` // namespace in which PID counts
	PID     int    `json:"pid"`
	Start   string `json:"start"` // ticks since boot
}

var thisProcess = sync.OnceValue(func() *holder {
	h := hostNow()
	h.PID = os.Getpid()
	h.Start, _ = startOf(h.PID)
	return h
})

// hostNow returns what is known of the host and of the namespace of processes.
func hostNow() *holder {
	pids, _ := os.Readlink("/proc/self/ns/pid") // without it nobody is proved gone
	return &holder{Machine: firstLine("/etc/machine-id"), Board: firstLine("/sys/class/dmi/id/product_uuid"),
		Boot: firstLine("/proc/sys/kernel/random/boot_id"), PIDs: pids}
}

func firstLine(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	line, _, _ := strings.Cut(string(b), "\n")
	return strings.TrimSpace(line)
}

// startOf returns when a process was started; false if there is none of this number.
func startOf(pid int) (string, bool) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil { // /proc may hide the processes of others
		return "", !errors.Is(syscall.Kill(pid, 0), syscall.ESRCH)
	}
	// The name of the program, in brackets, may have spaces and brackets.
	f := strings.Fields(string(b)[strings.LastIndex(string(b), ")")+1:])
	const start = 22 - 3 // proc(5): field 22, after pid, name and state
	if len(f) <= start {
		return "", true
	}
	return f[start], true
}

func (h *holder) encode() []byte {
	b, err := json.Marshal(h)
	if err != nil {
		panic(err) // strings and numbers
	}
	return b
}

// isGone reports whether the process is proved to have ended. What cannot be seen from here is not
// proved: another machine, another namespace, a clone of the machine.
func (h *holder) isGone() bool { return h.goneAsSeenFrom(hostNow(), startOf) }

func (h *holder) goneAsSeenFrom(here *holder, started func(int) (string, bool)) bool {
	if h.Machine == "" || h.Machine != here.Machine || h.Boot == "" {
		return false
	}
	if h.Boot != here.Boot {
		return h.Board != "" && h.Board == here.Board
	}
	if h.PIDs == "" || h.PIDs != here.PIDs || h.PID == 0 {
		return false
	}
	start, there := started(h.PID)
	return !there || start != "" && h.Start != "" && start != h.Start
}

// gone reports whether a session's holder is proved gone.
func gone(b []byte) bool {
	var h holder
	return json.Unmarshal(b, &h) == nil && h.isGone()
}
