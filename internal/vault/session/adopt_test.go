package session_test

import (
	"encoding/binary"
	"errors"
	"slices"
	"sync"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/blob/mem"
	"github.com/holdfast-vm/holdfast/internal/vault/session"
	"github.com/holdfast-vm/holdfast/internal/vault/state"
)

// dies stores a disk in small packs, tells of them, and is never heard of again.
func dies(t *testing.T, r *room, machine string, d *disk) *session.Session {
	t.Helper()
	r.PackSize = 2 * testChunk
	s := r.begin(t, machine)
	if err := put(t.Context(), s, d, whole(d), nil); err != nil {
		t.Fatal(err)
	}
	if err := s.Tell(t.Context()); err != nil {
		t.Fatal(err)
	}
	return s
}

func gone([]byte) bool { return true }

// A session goes on with what a dead one of its machine has stored: nothing of that is stored
// again, its first use is its own, and the dead one commits no more.
func TestGoOnWithWhatADeadSessionStored(t *testing.T) {
	store := mem.New()
	r := newRoom(t, store)
	d := randomDisk(1, 64)
	dead := dies(t, r, "vm", d)
	other, err := openRoom(t, store)
	if err != nil {
		t.Fatal(err)
	}
	other.Gone = func(holder []byte) bool { return string(holder) == "us" }
	stranger := other.begin(t, "another")
	s := other.begin(t, "vm")
	again := d.again()
	added, err := putAdded(t, s, again)
	if err != nil || added > int64(len(d.data))/8 {
		t.Errorf("%d of %d bytes are stored again: %v", added, len(d.data), err)
	}
	if _, err := commit(t.Context(), dead, d); !errors.Is(err, state.ErrEnded) {
		t.Errorf("the older session commits: %v", err)
	}
	q, err := commit(t.Context(), s, again)
	if err != nil {
		t.Fatal(err)
	}
	other.require(t, q.ID, d.data)
	other.requireSharedChunk(t, again, 3, false)
	other.view(t, func(ctx ctxt, st *state.State) error {
		if open, err := st.Sessions(ctx); err != nil || len(open) > 0 {
			t.Errorf("%d sessions are open: %v", len(open), err)
		}
		return nil
	})
	// Whoever comes later counts on the copies.
	more := d.again()
	if added, err := putAdded(t, stranger, more); err != nil || added > 0 {
		t.Errorf("%d bytes are stored again: %v", added, err)
	}
	if _, err := commit(t.Context(), stranger, more); err != nil {
		t.Fatal(err)
	}
	other.requireSharedChunk(t, again, 3, true)
}

func putAdded(t *testing.T, s *session.Session, d *disk) (int64, error) {
	out, err := s.PutDisk(t.Context(), session.DiskInput{Size: int64(len(d.data)), Data: whole(d),
		Source: newReader(d.data)})
	d.root, d.used = out.Root, out.Used
	return out.Added, err
}

// What a dead session stored once and the next one needs at two places is shared.
func TestAdoptedChunkIsUsedTwice(t *testing.T) {
	r := newRoom(t, mem.New())
	d := randomDisk(2, 9)
	dies(t, r, "vm", d).Abort()
	s := r.begin(t, "vm") // a session of this process that is over is dead
	twice := d.again()
	twice.data = append(twice.data, d.data[:testChunk]...)
	if err := put(t.Context(), s, twice, whole(twice), nil); err != nil {
		t.Fatal(err)
	}
	if _, err := commit(t.Context(), s, twice); err != nil {
		t.Fatal(err)
	}
	r.requireSharedChunk(t, twice, 0, true)
	r.requireSharedChunk(t, twice, 1, false)
}

// Sessions that die one after the other leave all they stored to the last; of two that come at
// once one goes on with it.
func TestSessionsDieOneAfterTheOther(t *testing.T) {
	store := mem.New()
	r := newRoom(t, store)
	var data []byte
	for i := range uint64(3) {
		r.Gone = gone
		part := randomDisk(i, 8)
		data = append(data, part.data...)
		dies(t, r, "vm", part)
	}
	r.Gone = gone
	first, second := r.begin(t, "vm"), r.begin(t, "vm")
	for i, s := range []*session.Session{first, second} {
		d := &disk{data: slices.Clone(data)}
		if err := put(t.Context(), s, d, whole(d), nil); err != nil {
			t.Fatal(err)
		}
		_, err := commit(t.Context(), s, d)
		if i == 0 && !errors.Is(err, state.ErrEnded) || i == 1 && err != nil {
			t.Errorf("session %d of two that went on: %v", i, err)
		}
	}
}

// A session that is alive keeps what it has stored.
func TestNobodyGoesOnFromTheLiving(t *testing.T) {
	r := newRoom(t, mem.New())
	r.Gone = func([]byte) bool { return false }
	d := randomDisk(3, 9)
	alive := dies(t, r, "vm", d)
	r.backUp(t, d.again())
	if _, err := commit(t.Context(), alive, d); err != nil {
		t.Fatal(err)
	}
	r.require(t, d.of, d.data)
}

// Sessions at work at the same time, in one process, on the same content: each makes its point, and
// a session that fails takes nothing from the others.
func TestManySessionsAtOnce(t *testing.T) {
	r := newRoom(t, mem.New())
	r.PackSize = 4 * testChunk
	d := randomDisk(7, 20)
	var wg sync.WaitGroup
	disks := make([]*disk, 12)
	for i := range disks {
		wg.Go(func() {
			s, err := r.Begin(t.Context(), "")
			if err != nil {
				t.Error(err)
				return
			}
			defer s.Abort()
			x := d.again()
			binary.LittleEndian.PutUint64(x.data, uint64(i))
			if err := put(t.Context(), s, x, whole(x), nil); err != nil {
				t.Error(err)
				return
			}
			if i%3 == 0 {
				return
			}
			if _, err := commit(t.Context(), s, x); err != nil {
				t.Error(err)
				return
			}
			disks[i] = x
		})
	}
	wg.Wait()
	fresh, err := openRoom(t, r.Store)
	if err != nil {
		t.Fatal(err)
	}
	for i, x := range disks {
		if i%3 != 0 && x != nil {
			fresh.require(t, x.of, x.data)
		}
	}
}
