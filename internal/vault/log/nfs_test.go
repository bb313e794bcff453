package log_test

import (
	"fmt"
	"sync"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/blob/dir"
	"github.com/holdfast-vm/holdfast/internal/blob/dir/nfstest"
	"github.com/holdfast-vm/holdfast/internal/vault/log"
)

// Two writers on two clients of a network file system append at once, while one of them closes
// volumes. What was acknowledged a third client finds, each once.
func TestWritersOnNetworkFileSystem(t *testing.T) {
	for name, o := range map[string]nfstest.Options{
		"links": {Lost: 4}, "no links": {Lost: 4, NoLinks: true}, "NFS 3": {Lost: 4, CoarseTimes: 20, NoNegative: true},
	} {
		t.Run(name, func(t *testing.T) {
			server := nfstest.New(t, o)
			on := func() *dir.Store {
				s, err := dir.Create(server.Mount(t) + "/store")
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { s.Close() })
				return s
			}
			first := on()
			begin(t, first)
			writers := []*opened{open(t, first, log.Options{}), open(t, on(), log.Options{})}
			const each = 20
			var wg sync.WaitGroup
			for i, w := range writers {
				wg.Go(func() {
					for n := range each {
						if err := w.commit(i*each + n); err != nil {
							t.Errorf("commit %d: %v", i*each+n, err)
						}
						if n%8 == 7 {
							if err := closeVolume(t, w, i); err != nil {
								t.Error(err)
							}
						}
					}
				})
			}
			wg.Wait()
			open(t, on(), log.Options{}).wantPoints(t, len(writers)*each)
			if server.Repeats() == 0 {
				t.Error("no answer was lost: the test shows nothing")
			}
		})
	}
}

// closeVolume closes the present volume, by an entry or beside it.
func closeVolume(t *testing.T, w *opened, how int) error {
	var err error
	if how == 0 {
		err = w.Roll(t.Context())
	} else {
		err = w.Do(t.Context(), func(l *log.Log) error { return l.Close(t.Context()) })
	}
	if err != nil {
		return fmt.Errorf("close a volume: %w", err)
	}
	return nil
}
