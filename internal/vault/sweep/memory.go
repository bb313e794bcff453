package sweep

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Memory keeps what an observer saw of one vault from one run to the next, which may be another
// process of the same host. What is lost, or older than it was, costs time and nothing else.
type Memory interface {
	// Load returns what was stored last; nothing if nothing was.
	Load() ([]byte, error)
	// Store replaces it.
	Store([]byte) error
}

// Clock is what an observer's clock shows: it counts from when the host was booted, and nobody sets
// it.
type Clock struct {
	Boot string        // names the boot; "" means that nothing can be said
	At   time.Duration // since then, never backwards
}

// hostClock is the clock of this host.
func hostClock() Clock {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return Clock{}
	}
	var t unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &t) != nil {
		return Clock{}
	}
	return Clock{Boot: strings.TrimSpace(string(b)), At: time.Duration(t.Nano())}
}

// seen is what is remembered. Times are of the clock of one boot: after another all that was seen
// was seen just now.
type seen struct {
	Boot     string                   `json:"boot"`
	Sessions map[string]time.Duration `json:"sessions"` // since when one stands as it is
	Orphans  map[string]time.Duration `json:"orphans"`  // names of objects in no entry, since when
	After    string                   `json:"after"`    // name up to which was looked; "" means to the end
	Looked   time.Duration            `json:"looked"`   // when that began
	Ever     bool                     `json:"ever"`     // somebody looked at all
	Cut      string                   `json:"cut"`      // volumes before this one are cut
}

// recall takes up what was remembered. What does not read is forgotten.
func (r *run) recall() error {
	now := r.Clock()
	r.seen = &seen{}
	if r.Memory != nil {
		b, err := r.Memory.Load()
		if err != nil {
			return fmt.Errorf("recall what was seen before: %w", err)
		}
		if err := json.Unmarshal(b, r.seen); err != nil {
			r.seen = &seen{}
		}
	}
	if r.seen.Sessions == nil {
		r.seen.Sessions = map[string]time.Duration{}
	}
	if r.seen.Orphans == nil {
		r.seen.Orphans = map[string]time.Duration{}
	}
	if now.Boot == "" || r.seen.Boot != now.Boot {
		r.seen.Boot, r.seen.Looked = now.Boot, now.At
		for _, m := range []map[string]time.Duration{r.seen.Sessions, r.seen.Orphans} {
			for k := range m {
				m[k] = now.At
			}
		}
	}
	return nil
}

// since notes that something is seen now, and returns for how long it was.
func (r *run) since(m map[string]time.Duration, what string) time.Duration {
	now := r.Clock()
	at, ok := m[what]
	if !ok || at > now.At {
		m[what] = now.At
		return 0
	}
	return now.At - at
}

func (r *run) remember() error {
	if r.Memory == nil {
		return nil
	}
	b, err := json.Marshal(r.seen)
	if err == nil {
		err = r.Memory.Store(b)
	}
	if err != nil {
		return fmt.Errorf("remember what was seen: %w", err)
	}
	return nil
}
