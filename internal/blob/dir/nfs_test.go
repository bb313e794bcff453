package dir_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/blob"
	"github.com/holdfast-vm/holdfast/internal/blob/blobtest"
	"github.com/holdfast-vm/holdfast/internal/blob/dir"
	"github.com/holdfast-vm/holdfast/internal/blob/dir/nfstest"
)

// kindsOfNetwork are file systems on which a store is whole.
var kindsOfNetwork = map[string]nfstest.Options{
	"Caches":      {},
	"LostAnswers": {Lost: 3},
	"NoLinks":     {Lost: 3, NoLinks: true},
	"NoNegative":  {Lost: 3, NoNegative: true, CoarseTimes: 50},
}

// client opens the store as one more client.
func client(t *testing.T, s *nfstest.Server) *dir.Store {
	t.Helper()
	store, err := dir.Create(s.Mount(t) + "/store")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { store.Close() })
	return store
}

func TestContractOnNetworkFileSystem(t *testing.T) {
	for _, name := range []string{"LostAnswers", "NoLinks"} {
		o := kindsOfNetwork[name]
		t.Run(name, func(t *testing.T) {
			blobtest.Run(t, func(t *testing.T) blob.Store { return client(t, nfstest.New(t, o)) })
		})
	}
}

// What one client has put, or deleted, another is told of when it must be, whatever it knows from
// before; also if the folder was not there when it asked first.
func TestAnotherClientIsAsked(t *testing.T) {
	for kind, o := range kindsOfNetwork {
		t.Run(kind, func(t *testing.T) {
			server := nfstest.New(t, o)
			a, b := client(t, server), client(t, server)
			for i := range 4 {
				name := fmt.Sprintf("next/%d/1", i/2)
				if absent, err := b.Absent(t.Context(), name); err != nil || !absent != (i%2 == 1) {
					t.Fatalf("%s is absent before it is put: %v, %v", name, absent, err)
				}
				if err := blob.Put(t.Context(), a, name, []byte("x")); i%2 == 0 && err != nil {
					t.Fatal(err)
				}
				if absent, err := b.Absent(t.Context(), name); err != nil || absent {
					t.Fatalf("%s, which another client has put, is absent: %v, %v", name, absent, err)
				}
				if err := b.Settle(t.Context(), name); err != nil {
					t.Fatal(err)
				}
				if err := blob.Put(t.Context(), b, name, []byte("y")); !errors.Is(err, blob.ErrExist) {
					t.Fatalf("put %s again: %v", name, err)
				}
			}
			if err := a.Delete(t.Context(), "next/0/1"); err != nil {
				t.Fatal(err)
			}
			if absent, err := b.Absent(t.Context(), "next/0/1"); err != nil || !absent {
				t.Fatalf("what another client has deleted is absent: %v, %v", absent, err)
			}
		})
	}
}

// A file that is kept open for reading and that another client removes is a stale handle: the
// object is gone, or it is another one.
func TestStaleHandle(t *testing.T) {
	server := nfstest.New(t, nfstest.Options{})
	a, b := client(t, server), client(t, server)
	for i, want := range []string{"old", "new"} {
		if err := blob.Put(t.Context(), a, "x", []byte(want)); err != nil {
			t.Fatal(err)
		}
		p := make([]byte, 3)
		if _, err := b.ReadAt(t.Context(), "x", p, 0); i == 0 && err != nil || err == nil && string(p) != want {
			t.Fatalf("read %q, %v; want %q", p, err, want)
		}
		if err := a.Delete(t.Context(), "x"); err != nil {
			t.Fatal(err)
		}
		if _, err := b.ReadAt(t.Context(), "x", p, 0); !errors.Is(err, blob.ErrNotExist) {
			t.Fatalf("read what another client has deleted: %q, %v", p, err)
		}
	}
}

// Many clients put the same names: of each name one wins, and what all read is the winner's.
func TestOneClientWins(t *testing.T) {
	for kind, o := range kindsOfNetwork {
		t.Run(kind, func(t *testing.T) {
			server := nfstest.New(t, o)
			const rounds = 20
			stores := []*dir.Store{client(t, server), client(t, server), client(t, server)}
			wins := make([][rounds]bool, len(stores))
			var wg sync.WaitGroup
			for c, s := range stores {
				wg.Go(func() {
					for i := range rounds {
						err := blob.Put(t.Context(), s, fmt.Sprintf("log/%d/%d", i/5, i), []byte{byte(c)})
						if err != nil && !errors.Is(err, blob.ErrExist) {
							t.Errorf("put %d: %v", i, err)
						}
						wins[c][i] = err == nil
					}
				})
			}
			wg.Wait()
			reader := client(t, server)
			for i := range rounds {
				name := fmt.Sprintf("log/%d/%d", i/5, i)
				got, err := blob.Get(t.Context(), reader, name)
				if err != nil || len(got) != 1 {
					t.Fatalf("%s holds %q, %v", name, got, err)
				}
				for c := range stores {
					if wins[c][i] != (int(got[0]) == c) {
						t.Errorf("%s is of client %d; client %d was told that it won: %v", name, got[0], c, wins[c][i])
					}
				}
			}
			if o.Lost > 0 && server.Repeats() == 0 {
				t.Error("no answer was lost: the test shows nothing")
			}
		})
	}
}

// Names that the client of a network file system makes up are no objects, are swept once their
// client has died, and files of a writer that lives on another client are not.
func TestNamesOfTheClient(t *testing.T) {
	server := nfstest.New(t, nfstest.Options{})
	a, b := client(t, server), client(t, server)
	w, err := a.Create(t.Context(), "packs/1")
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	for _, dead := range []string{"packs/.nfs0000000000000001", "tmp/.nfs0000000000000002", "tmp/hf-1-0.tmp"} {
		path := filepath.Join(a.Root(), dead)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, 0o400); err != nil {
			t.Fatal(err)
		}
	}
	if n, err := b.SweepTemp(); n != 2 || err != nil {
		t.Errorf("swept %d files, %v; want 2", n, err)
	}
	if err := w.Commit(t.Context()); err != nil {
		t.Errorf("commit, after another client has swept: %v", err)
	}
	for info, err := range b.List(t.Context(), "", "") {
		if info.Name != "packs/1" || err != nil {
			t.Errorf("list shows %q, %v", info.Name, err)
		}
	}
	if err := blob.Put(t.Context(), a, "packs/.nfs01", nil); err == nil {
		t.Error("an object has the name of a file that was removed")
	}
}

// What docs/design/network-stores.md says is needed is needed: without it an object is overlooked.
func TestOptionsAreNeeded(t *testing.T) {
	for option, o := range map[string]nfstest.Options{
		"nocto": {NoCTO: true}, "lookupcache=all with coarse times": {CoarseTimes: 1000},
	} {
		t.Run(option, func(t *testing.T) {
			server := nfstest.New(t, o)
			a, b := client(t, server), client(t, server)
			if absent, err := b.Absent(t.Context(), "x"); err != nil || !absent {
				t.Fatal(absent, err)
			}
			if err := blob.Put(t.Context(), a, "x", nil); err != nil {
				t.Fatal(err)
			}
			if absent, err := b.Absent(t.Context(), "x"); err != nil || !absent {
				t.Errorf("the object is seen (absent %v, %v): strike the option from the list", absent, err)
			}
		})
	}
}
