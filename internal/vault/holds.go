package vault

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/holdfast-vm/holdfast/internal/point"
	"github.com/holdfast-vm/holdfast/internal/vault/log"
	"github.com/holdfast-vm/holdfast/internal/vault/state"
)

// holderNote is what a hold says of who has it.
type holderNote struct {
	Who     string  `json:"who"`               // in words
	Process *holder `json:"process,omitempty"` // it ends with this process; nil for one that outlives it
}

func (n holderNote) encode() []byte {
	b, err := json.Marshal(n)
	if err != nil {
		panic(err) // strings and numbers
	}
	return b
}

// readHolder reads what encode wrote. What does not read holds all the same.
func readHolder(b []byte) (n holderNote) {
	if json.Unmarshal(b, &n) != nil || n.Who == "" {
		n = holderNote{Who: "somebody who does not say it in a way that this version understands"}
	}
	return n
}

// Hold keeps a point from being deleted until Release is called with the same words, which say who
// needs it. It outlives the process. Doing so twice is harmless. When it returns nil the hold
// survives power loss. It returns ErrNoPoint if the point is not there any more.
func (v *Vault) Hold(ctx context.Context, id point.ID, who string) error {
	_, err := v.hold(ctx, id, holderNote{Who: who})
	return err
}

// hold makes a hold and returns it, the zero value if the same stood already.
func (v *Vault) hold(ctx context.Context, id point.ID, n holderNote) (state.Hold, error) {
	sid, err := stateID(id)
	if err != nil {
		return state.Hold{}, err
	}
	h := state.Hold{Point: sid, Holder: n.encode()}
	rand.Read(h.ID[:])
	made := true
	_, err = v.journal.Append(ctx, func(ctx context.Context, st *state.State) ([]log.Op, error) {
		if _, err := v.living(ctx, st, id); err != nil {
			return nil, err
		}
		there, err := st.Holds(ctx, sid)
		if err != nil {
			return nil, err
		}
		made = n.Process != nil || !slices.ContainsFunc(there, func(o state.Hold) bool {
			return string(o.Holder) == string(h.Holder)
		})
		if !made {
			return nil, nil
		}
		if err := h.Check(ctx, st); err != nil {
			return nil, v.whyNot(ctx, st, id, err)
		}
		return []log.Op{h.Op()}, nil
	})
	if err != nil || !made {
		return state.Hold{}, of("hold", id, err)
	}
	return h, nil
}

// Release ends a hold; with who "" all of them, but those of processes that may be running. It does
// nothing if there is none.
func (v *Vault) Release(ctx context.Context, id point.ID, who string) error {
	return v.release(ctx, id, func(h state.Hold) bool {
		n := readHolder(h.Holder)
		if who == "" {
			return n.Process == nil || n.Process.isGone()
		}
		return n.Who == who
	})
}

// releaseEnded ends the holds of processes that are proved gone: they keep nobody from deleting a
// point.
func (v *Vault) releaseEnded(ctx context.Context, id point.ID) error {
	return v.release(ctx, id, func(h state.Hold) bool {
		n := readHolder(h.Holder)
		return n.Process != nil && n.Process.isGone()
	})
}

// release ends the holds of a point for which is reports true.
func (v *Vault) release(ctx context.Context, id point.ID, is func(state.Hold) bool) error {
	sid, err := stateID(id)
	if err != nil {
		return nil //nolint:nilerr // there is no such point, and nobody holds it
	}
	_, err = v.journal.Append(ctx, func(ctx context.Context, st *state.State) (ops []log.Op, err error) {
		holds, err := st.Holds(ctx, sid)
		for _, h := range holds {
			if is(h) {
				ops = append(ops, h.Release())
			}
		}
		return ops, err
	})
	return of("release", id, err)
}

// holdersOf says who holds a point.
func holdersOf(ctx context.Context, st *state.State, id point.ID) (who []string, err error) {
	sid, err := stateID(id)
	if err != nil {
		return nil, err
	}
	holds, err := st.Holds(ctx, sid)
	for _, h := range holds {
		who = append(who, readHolder(h.Holder).Who)
	}
	slices.Sort(who)
	return slices.Compact(who), err
}

// releaseGone ends the holds of processes that are proved gone.
func (v *Vault) releaseGone(ctx context.Context) error {
	_, err := v.journal.Append(ctx, func(ctx context.Context, st *state.State) (ops []log.Op, err error) {
		err = st.EachHold(ctx, func(h state.Hold) bool {
			if n := readHolder(h.Holder); n.Process != nil && n.Process.isGone() && len(ops) < 256 {
				ops = append(ops, h.Release())
			}
			return true
		})
		return ops, err
	})
	if err != nil && !errors.Is(err, state.ErrNoChange) {
		return fmt.Errorf("release what ended processes held: %w", err)
	}
	return nil
}
