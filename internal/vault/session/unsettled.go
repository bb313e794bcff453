package session

import (
	"sync"

	"github.com/holdfast-vm/holdfast/internal/vault/log"
)

// unsettled are packs that the index knows of sessions of this process, and of which no entry tells
// yet: only their own session counts on them.
type unsettled struct{ packs sync.Map } // log.ObjectID: log.Session

func (u *unsettled) add(id log.ObjectID, s log.Session) { u.packs.Store(id, s) }
func (u *unsettled) remove(id log.ObjectID)             { u.packs.Delete(id) }

// hides reports whether a session must not count on a pack.
func (u *unsettled) hides(id log.ObjectID, from log.Session) bool {
	of, ok := u.packs.Load(id)
	return ok && of != from
}
