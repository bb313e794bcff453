// Package sweep tidies up behind those who use a vault, and behind its log.
//
// A [Sweep] gives up sessions that are silent or gone, condemns objects that are in the store and
// in no entry, rolls the log's volume, cuts old volumes, and deletes checkpoints that nobody needs
// any more. Nothing rests on it: it may run never, or anywhere, several at once, and be cut off at
// any call. Time decides when something is tried; whether it may be done is judged by the log
// alone.
package sweep

import (
	"context"
	"fmt"
	"time"

	"github.com/holdfast-vm/holdfast/internal/blob"
	"github.com/holdfast-vm/holdfast/internal/vault/journal"
	"github.com/holdfast-vm/holdfast/internal/vault/state"
)

// Policy says how long what is left. The zero value of each field is its default.
type Policy struct {
	Silent  time.Duration // from which on a session without progress is given up; 0 means 24 hours
	Orphan  time.Duration // for which an object was seen in no entry; 0 means 24 hours
	Look    time.Duration // from one look for orphans to the next; 0 means a week
	Names   int           // that one run looks at; 0 means 200,000
	Roll    time.Duration // age at which a volume is rolled; 0 means 24 hours
	Entries uint32        // or number of entries; 0 means 65,536
	Cut     time.Duration // for which a volume stays after the next began; 0 means 3 days
}

func (p Policy) withDefaults() Policy {
	for _, d := range []struct {
		of   *time.Duration
		days int
	}{{&p.Silent, 1}, {&p.Orphan, 1}, {&p.Look, 7}, {&p.Roll, 1}, {&p.Cut, 3}} {
		if *d.of == 0 {
			*d.of = time.Duration(d.days) * 24 * time.Hour
		}
	}
	if p.Names == 0 {
		p.Names = 200_000
	}
	if p.Entries == 0 {
		p.Entries = 1 << 16
	}
	return p
}

// Sweep is what is tidied up, and how. Store, Keys and Journal must be set.
type Sweep struct {
	Store   blob.Store
	Keys    *state.Keys
	Journal *journal.Journal
	Gone    func(holder []byte) bool         // reports whether a session's process is proved gone; nil proves nothing
	Memory  Memory                           // nil remembers nothing: then only what is proved gone is given up
	Log     func(format string, args ...any) // progress in words; nil discards
	Policy  Policy
	Clock   func() Clock     // this observer's; nil means the host's
	Now     func() time.Time // by which volumes are old; nil means time.Now
}

// Report says what a run did, or would do.
type Report struct {
	GivenUp  int  `json:"given_up_sessions"`
	Orphans  int  `json:"orphans"`        // objects in no entry, condemned
	Suspects int  `json:"suspects"`       // objects in no entry, not seen for long enough
	Rolled   bool `json:"rolled"`         // the log went on to its next volume
	Cut      int  `json:"cut_volumes"`    // whose entries were deleted
	Swept    bool `json:"swept"`          // checkpoints that nobody needs were deleted
	Waiting  bool `json:"waiting_to_cut"` // for a mirror

	Troubles []string `json:"troubles,omitempty"` // what was left alone, and why
}

// Run tidies up what is due; a dry run only says so. Its errors are faults of access to the store,
// or damage of the log; the same call may succeed later, and goes on where this one ended.
func (s *Sweep) Run(ctx context.Context, dryRun bool) (Report, error) {
	r := &run{Sweep: *s, dry: dryRun}
	r.Policy = r.Policy.withDefaults()
	if r.Log == nil {
		r.Log = func(string, ...any) {}
	}
	if r.Gone == nil {
		r.Gone = func([]byte) bool { return false }
	}
	if r.Clock == nil {
		r.Clock = hostClock
	}
	if r.Now == nil {
		r.Now = time.Now
	}
	if err := r.run(ctx); err != nil {
		return r.report, fmt.Errorf("sweep the vault: %w", err)
	}
	return r.report, nil
}

// run is one run.
type run struct {
	Sweep
	dry    bool
	report Report
	seen   *seen
}

func (r *run) run(ctx context.Context) error {
	if err := r.Journal.Read(ctx); err != nil {
		return err
	}
	if err := r.recall(); err != nil {
		return err
	}
	for _, step := range []func(context.Context) error{r.sessions, r.orphans, r.roll, r.cut} {
		if err := step(ctx); err != nil {
			_ = r.remember() // the error that comes first is told
			return err
		}
	}
	return r.remember()
}
