package wgen

import (
	"bytes"
	"errors"
	"testing"
	"time"
)

// memDisk remembers what it was before each write.
type memDisk struct {
	data    []byte
	onWrite func()
}

func (d *memDisk) ReadAt(p []byte, off int64) (int, error) {
	return bytes.NewReader(d.data).ReadAt(p, off)
}

func (d *memDisk) WriteAt(p []byte, off int64) (int, error) {
	d.onWrite()
	return copy(d.data[off:], p), nil
}

func (d *memDisk) Zero(off, length int64) error {
	d.onWrite()
	clear(d.data[off : off+length])
	return nil
}

const testSpan = 32 * SlotSize

// history returns both disks as they were after each write of steps steps, oldest first.
func history(t *testing.T, seed uint64, steps int) (as, bs [][]byte) {
	t.Helper()
	a, b := &memDisk{data: make([]byte, testSpan)}, &memDisk{data: make([]byte, testSpan)}
	record := func() {
		as, bs = append(as, bytes.Clone(a.data)), append(bs, bytes.Clone(b.data))
	}
	a.onWrite, b.onWrite = record, record
	layout, err := NewLayout(seed, testSpan)
	if err != nil {
		t.Fatal(err)
	}
	w, err := NewWriter(a, b, testSpan, layout, make([]byte, SlotSize))
	if err != nil {
		t.Fatal(err)
	}
	for range steps {
		if err := w.Step(time.Unix(1, 0)); err != nil {
			t.Fatal(err)
		}
	}
	record()
	return as, bs
}

func check(a, b []byte) (nA, nB uint64, err error) {
	return Check(bytes.NewReader(a), bytes.NewReader(b), int64(len(a)), int64(len(b)))
}

// Every instant of a run passes, and the step found never goes back.
func TestEveryInstantPasses(t *testing.T) {
	for seed := range uint64(5) {
		as, bs := history(t, seed, 300)
		if _, _, err := check(as[0], bs[0]); !errors.Is(err, ErrUnwritten) {
			t.Fatalf("blank disks: %v, want ErrUnwritten", err)
		}
		last := uint64(0)
		for i := 1; i < len(as); i++ {
			nA, nB, err := check(as[i], bs[i])
			if err != nil {
				t.Fatalf("seed %d, write %d: %v", seed, i, err)
			}
			if nB > nA || nA > nB+1 || nB < last {
				t.Fatalf("seed %d, write %d: nA=%d nB=%d after %d", seed, i, nA, nB, last)
			}
			last = nB
		}
		if last != 300 {
			t.Fatalf("seed %d: last step is %d, want 300", seed, last)
		}
	}
}

// Two disks of different instants fail, unless the pair looks exactly as some instant did.
func TestTornPairFails(t *testing.T) {
	as, bs := history(t, 7, 200)
	refused := 0
	for i := 1; i < len(as); i++ {
		for _, gap := range []int{2, 3, 5, 40} {
			for _, pair := range [][2]int{{i, i - gap}, {i - gap, i}} {
				if pair[0] < 1 || pair[1] < 1 || looksLikeOneInstant(as, bs, pair[0], pair[1]) {
					continue
				}
				if _, _, err := check(as[pair[0]], bs[pair[1]]); !errors.Is(err, ErrInconsistent) {
					t.Fatalf("A after write %d with B after write %d: %v, want ErrInconsistent", pair[0], pair[1], err)
				}
				refused++
			}
		}
	}
	if refused < 2000 {
		t.Errorf("only %d torn pairs were tried", refused)
	}
}

func looksLikeOneInstant(as, bs [][]byte, i, j int) bool {
	for k := range as {
		if bytes.Equal(as[i], as[k]) && bytes.Equal(bs[j], bs[k]) {
			return true
		}
	}
	return false
}

// A flipped bit, a lost record and a record from elsewhere are all found.
func TestDamageFails(t *testing.T) {
	as, bs := history(t, 3, 100)
	a, b := as[len(as)-1], bs[len(bs)-1]
	layout, err := NewLayout(3, testSpan)
	if err != nil {
		t.Fatal(err)
	}
	at := layout.slot(diskB, 99) * SlotSize
	for name, damage := range map[string]func(b []byte){
		"flipped bit":      func(b []byte) { b[at+1000] ^= 1 },
		"lost record":      func(b []byte) { clear(b[at : at+SlotSize]) },
		"half a record":    func(b []byte) { clear(b[at+SlotSize/2 : at+SlotSize]) },
		"record elsewhere": func(b []byte) { copy(b[testSpan-SlotSize:], b[at:at+SlotSize]) },
		"damaged header":   func(b []byte) { b[9] ^= 1 },
	} {
		t.Run(name, func(t *testing.T) {
			damaged := bytes.Clone(b)
			damage(damaged)
			if bytes.Equal(damaged, b) {
				t.Fatal("nothing was damaged")
			}
			if _, _, err := check(a, damaged); !errors.Is(err, ErrInconsistent) {
				t.Errorf("Check = %v, want ErrInconsistent", err)
			}
		})
	}
}

// A writer that was cut off at any write carries on, and every later instant passes again.
func TestCarryOnAfterCut(t *testing.T) {
	as, bs := history(t, 11, 130)
	for i := range as {
		a, b := &memDisk{data: bytes.Clone(as[i])}, &memDisk{data: bytes.Clone(bs[i])}
		verify := func() {
			if _, _, err := check(a.data, b.data); err != nil && !errors.Is(err, ErrUnwritten) {
				t.Fatalf("cut at write %d: %v", i, err)
			}
		}
		a.onWrite, b.onWrite = verify, verify
		layout := Layout{Seed: 11, Slots: testSpan / SlotSize}
		w, err := NewWriter(a, b, testSpan, layout, make([]byte, SlotSize))
		if err != nil {
			t.Fatalf("cut at write %d: %v", i, err)
		}
		before := w.Done()
		for range 3 {
			if err := w.Step(time.Unix(2, 0)); err != nil {
				t.Fatal(err)
			}
		}
		if _, nB, err := check(a.data, b.data); err != nil || nB != before+3 {
			t.Fatalf("cut at write %d: step %d, %v; want step %d", i, nB, err, before+3)
		}
	}
}

func FuzzCheck(f *testing.F) {
	f.Add([]byte{}, []byte{})
	layout := Layout{Seed: 1, Slots: 32}
	slot := make([]byte, 32*SlotSize)
	layout.putHeader(slot[:SlotSize])
	f.Add(slot, slot)
	f.Fuzz(func(t *testing.T, a, b []byte) {
		nA, nB, err := check(a, b)
		if err == nil && (nB > nA || nA > nB+1) {
			t.Errorf("Check = %d, %d without an error", nA, nB)
		}
	})
}
