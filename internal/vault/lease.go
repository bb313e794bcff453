package vault

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-vm/holdfast/internal/blob"
)

const (
	leasePrefix = "leases/"
	// A lease of another host that was not renewed for leaseTTL is taken for dead; of this host, when its process is gone.
	leaseTTL   = time.Hour
	leaseRenew = 10 * time.Minute

	readerLease = "reader" // What of who stores nothing
)

// lease tells garbage collection that somebody works on the vault. Its object is renewed under a new name, since nothing is changed in place.
type lease struct {
	Session string    `json:"session"` // 24 hexadecimal digits: what the session's packs begin with
	What    string    `json:"what"`    // "session", "reader", "gc"
	Host    string    `json:"host"`
	Boot    string    `json:"boot"` // boot ID of the host
	PID     int       `json:"pid"`
	Birth   uint64    `json:"birth"` // start time of the process in clock ticks since boot
	Began   time.Time `json:"began"`
	Renewed time.Time `json:"renewed"`
	Count   int       `json:"count"` // renewals

	name string // of the object
}

func newSessionID() (id [12]byte) {
	rand.Read(id[:])
	return id
}

func newLease(id [12]byte, what string) lease {
	host, _ := os.Hostname()
	now := time.Now().UTC()
	return lease{Session: hex.EncodeToString(id[:]), What: what, Host: host, Boot: bootID(), PID: os.Getpid(), Birth: processBirth(os.Getpid()), Began: now, Renewed: now}
}

func bootID() string {
	b, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b))
}

// processBirth is birthOf; tests let processes die with it.
var processBirth = birthOf

// birthOf returns the start time of a process, 0 if there is none: a PID alone may be used again.
func birthOf(pid int) uint64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	s := string(b)
	fields := strings.Fields(s[strings.LastIndexByte(s, ')')+1:])
	if len(fields) < 20 || fields[0] == "Z" || fields[0] == "X" {
		return 0
	}
	var n uint64
	fmt.Sscan(fields[19], &n)
	return n
}

func (l *lease) String() string {
	return fmt.Sprintf("%s of process %d on %s since %s", l.What, l.PID, l.Host, l.Began.Local().Format("2006-01-02 15:04:05"))
}

// alive reports whether the owner may still be working.
func (l *lease) alive(now time.Time) bool {
	host, _ := os.Hostname()
	if l.Host != host {
		return now.Sub(l.Renewed) < leaseTTL
	}
	if l.Boot != bootID() {
		return false
	}
	if unix.Kill(l.PID, 0) == unix.ESRCH {
		return false
	}
	return processBirth(l.PID) == l.Birth
}

// heldLease renews itself until released.
type heldLease struct {
	store blob.Store
	stop  chan struct{}
	done  chan struct{}

	mu  sync.Mutex
	cur lease
}

func takeLease(ctx context.Context, s blob.Store, l lease) (*heldLease, error) {
	h := &heldLease{store: s, cur: l, stop: make(chan struct{}), done: make(chan struct{})}
	if err := h.write(ctx); err != nil {
		return nil, fmt.Errorf("take a lease on the vault: %w", err)
	}
	go h.renew()
	return h, nil
}

// write stores the lease under its next name and removes the one before.
func (h *heldLease) write(ctx context.Context) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	next := h.cur
	next.Count++
	next.Renewed = time.Now().UTC()
	next.name = fmt.Sprintf("%s%s-%d", leasePrefix, next.Session, next.Count)
	raw, err := json.Marshal(next)
	if err != nil {
		return err
	}
	if err := blob.Put(ctx, h.store, next.name, raw); err != nil {
		return err
	}
	old := h.cur.name
	h.cur = next
	if old != "" {
		return h.store.Delete(ctx, old)
	}
	return nil
}

func (h *heldLease) renew() {
	defer close(h.done)
	t := time.NewTicker(leaseRenew)
	defer t.Stop()
	for {
		select {
		case <-h.stop:
			return
		case <-t.C:
			if err := h.check(context.Background()); err == nil {
				_ = h.write(context.Background()) // a lease that could not be renewed is found lost by check at the commit
			}
		}
	}
}

// check returns ErrLeaseLost if somebody took the owner for dead.
func (h *heldLease) check(ctx context.Context) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	_, err := h.store.Stat(ctx, h.cur.name)
	if errors.Is(err, blob.ErrNotExist) {
		return ErrLeaseLost
	}
	return err
}

func (h *heldLease) release(ctx context.Context) error {
	close(h.stop)
	<-h.done
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.store.Delete(ctx, h.cur.name)
}

func (h *heldLease) session() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.cur.Session
}

// leases returns all leases but those of session except, after removing the dead ones.
func (v *Vault) leases(ctx context.Context, except string) ([]lease, error) {
	for {
		live, moved, err := v.leasesOnce(ctx, except)
		if err != nil || !moved {
			return live, err
		}
	}
}

// leasesOnce also reports whether a lease went away between being listed and being read: it may stand under its next name.
func (v *Vault) leasesOnce(ctx context.Context, except string) (live []lease, moved bool, err error) {
	for info, err := range v.store.List(ctx, leasePrefix, "") {
		if err != nil {
			return nil, false, fmt.Errorf("list leases: %w", err)
		}
		raw, err := blob.Get(ctx, v.store, info.Name)
		if errors.Is(err, blob.ErrNotExist) {
			moved = true
			continue
		}
		if err != nil {
			return nil, false, fmt.Errorf("read lease %s: %w", info.Name, err)
		}
		l := lease{name: info.Name}
		if err := json.Unmarshal(raw, &l); err != nil || !l.alive(time.Now()) {
			if err := v.store.Delete(ctx, info.Name); err != nil {
				return nil, false, fmt.Errorf("break dead lease %s: %w", info.Name, err)
			}
			continue
		}
		if l.Session != except {
			live = append(live, l)
		}
	}
	return live, moved, nil
}

// learnSessions takes in what sessions have stored whose segment is not written yet: those at work, and those that were killed. So what a backup had stored
// before it was interrupted is not stored again.
func (v *Vault) learnSessions(ctx context.Context, except string) error {
	known := map[string]bool{except: true}
	for info, err := range v.store.List(ctx, leasePrefix, "") {
		if err != nil {
			return fmt.Errorf("list leases: %w", err)
		}
		raw, err := blob.Get(ctx, v.store, info.Name)
		if errors.Is(err, blob.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("read lease %s: %w", info.Name, err)
		}
		var l lease
		if json.Unmarshal(raw, &l) != nil || l.What == readerLease || known[l.Session] || !isSession(l.Session) {
			continue
		}
		known[l.Session] = true
		if err := v.index.LearnSession(ctx, l.Session); err != nil {
			return err
		}
	}
	return nil
}

// isSession reports whether s is the session of a lease.
func isSession(s string) bool {
	raw, err := hex.DecodeString(s)
	return err == nil && len(raw) == 12 && strings.ToLower(s) == s
}

// readLease tells garbage collection that somebody reads, and takes in what others did before. A store that cannot be written is read
// without a lease.
func (v *Vault) readLease(ctx context.Context) (release func(), err error) {
	release, err = v.takeReadLease(ctx)
	if err != nil {
		return nil, err
	}
	if err := v.index.Reload(ctx); err != nil { // after the lease: what it shows stays
		release()
		return nil, err
	}
	return release, nil
}

func (v *Vault) takeReadLease(ctx context.Context) (release func(), err error) {
	if v.opts.NoLease {
		return func() {}, nil
	}
	h, err := takeLease(ctx, v.store, newLease(newSessionID(), readerLease))
	switch {
	case errors.Is(err, fs.ErrPermission), errors.Is(err, unix.EROFS), errors.Is(err, blob.ErrNoSpace):
		return func() {}, nil
	case err != nil:
		return nil, err
	}
	return func() { _ = h.release(context.WithoutCancel(ctx)) }, nil // a lease left behind dies with this process
}
