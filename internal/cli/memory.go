package cli

import (
	"runtime"
	"runtime/debug"
)

// leanMemory is the soft limit for commands that move data, in bytes: they run beside machines that
// need the memory more. What they hold for long is small; above the limit the collector works
// harder.
const leanMemory = 120 << 20

// lean sets the limit, unless the user has set one.
func (a *app) lean() {
	if a.env.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(leanMemory)
	}
}

// processors is how many processors the process may use.
var processors = runtime.GOMAXPROCS(0)

// compresses tells Go's scheduler that threads will be in C for long, unless the user has told it
// something. A thread that compresses a chunk counts as one in a system call: when all processors
// have one, the scheduler takes their places away in the hope of more work, wakes a thread that
// looks for it in vain, and each compression pays for that. With places to spare it leaves them
// alone.
func (a *app) compresses() {
	if a.env.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(2 * processors)
	}
}
