package fault_test

import (
	"context"
	"errors"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/blob"
	"github.com/holdfast-vm/holdfast/internal/blob/blobtest"
	"github.com/holdfast-vm/holdfast/internal/blob/fault"
	"github.com/holdfast-vm/holdfast/internal/blob/mem"
)

func TestContract(t *testing.T) {
	blobtest.Run(t, func(*testing.T) blob.Store { return fault.New(mem.New()) })
}

var errTest = errors.New("test")

// session makes every kind of call once or more and returns the first error.
func session(ctx context.Context, s blob.Store) error {
	if err := blob.Put(ctx, s, "a", []byte("x")); err != nil {
		return err
	}
	if _, err := blob.Get(ctx, s, "a"); err != nil {
		return err
	}
	for _, err := range s.List(ctx, "", "") {
		if err != nil {
			return err
		}
	}
	return s.Delete(ctx, "a")
}

const sessionCalls = 8 // create, write, commit, stat, read, list and its end, delete

func TestFailCall(t *testing.T) {
	i := 0
	for ; ; i++ {
		s := fault.New(mem.New())
		s.FailCall(i, errTest)
		err := session(t.Context(), s)
		if s.Calls() <= i {
			if err != nil {
				t.Errorf("no call failed: %v", err)
			}
			break
		}
		if !errors.Is(err, errTest) || s.Calls() != i+1 {
			t.Errorf("call %d: error %v after %d calls", i, err, s.Calls())
		}
	}
	if i != sessionCalls {
		t.Errorf("a session has %d calls, want %d", i, sessionCalls)
	}
}

func TestFailMethod(t *testing.T) {
	for _, m := range []fault.Method{fault.Create, fault.Write, fault.Commit, fault.ReadAt, fault.Stat, fault.List,
		fault.Delete} {
		s := fault.New(mem.New())
		s.FailMethod(m, errTest)
		if err := session(t.Context(), s); !errors.Is(err, errTest) {
			t.Errorf("%s: %v", m, err)
		}
		s.FailMethod(m, nil)
		if err := s.Delete(t.Context(), "a"); err != nil {
			t.Fatal(err)
		}
		if err := session(t.Context(), s); err != nil {
			t.Errorf("%s after its end: %v", m, err)
		}
	}
}

func TestLoseReply(t *testing.T) {
	s := fault.New(mem.New())
	s.LoseReply(2, errTest)
	if err := blob.Put(t.Context(), s, "a", []byte("x")); !errors.Is(err, errTest) {
		t.Errorf("put: %v", err)
	}
	if got, err := blob.Get(t.Context(), s, "a"); string(got) != "x" || err != nil {
		t.Errorf("the commit whose reply was lost left %q, %v", got, err)
	}
}

func TestDropPower(t *testing.T) {
	inner := mem.New()
	s := fault.New(inner)
	s.DropPower(2)
	if err := blob.Put(t.Context(), s, "a", []byte("x")); !errors.Is(err, fault.ErrPowerLost) {
		t.Errorf("put: %v", err)
	}
	if _, err := s.Stat(t.Context(), "a"); !errors.Is(err, fault.ErrPowerLost) {
		t.Errorf("stat: %v", err)
	}
	if _, err := inner.Stat(t.Context(), "a"); !errors.Is(err, blob.ErrNotExist) {
		t.Errorf("stat of what was not committed: %v", err)
	}
}
