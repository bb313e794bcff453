package cli

import "runtime/debug"

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
