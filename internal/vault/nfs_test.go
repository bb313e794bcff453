package vault_test

import (
	"bytes"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/blob/dir"
	"github.com/holdfast-vm/holdfast/internal/blob/dir/nfstest"
	"github.com/holdfast-vm/holdfast/internal/point"
	"github.com/holdfast-vm/holdfast/internal/vault"
)

// Two hosts on one network file system back up, purge and collect at once. What was acknowledged
// and not purged reads back from a third, and nothing else is there.
func TestHostsOnNetworkFileSystem(t *testing.T) {
	server := nfstest.New(t, nfstest.Options{Lost: 5})
	on := func() *dir.Store {
		s, err := dir.Create(server.Mount(t) + "/store")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		return s
	}
	first := on()
	key := newVault(t, first)
	hosts := []*vault.Vault{openVault(t, first, key), openVault(t, on(), key)}
	lasting := make([]map[point.ID][]byte, len(hosts))
	var wg sync.WaitGroup
	for i, v := range hosts {
		wg.Go(func() { lasting[i] = backUpPurgeCollect(t, v, uint64(i)) })
	}
	wg.Wait()
	if t.Failed() {
		return
	}
	third := openVault(t, on(), key)
	points, err := third.Points(t.Context())
	if err != nil || len(points) != len(lasting[0])+len(lasting[1]) {
		t.Fatalf("%d points, %v; want %d and %d", len(points), err, len(lasting[0]), len(lasting[1]))
	}
	for _, p := range points {
		want := lasting[0][p.ID]
		if want == nil {
			want = lasting[1][p.ID]
		}
		requirePoint(t, third, p, want, rand.New(rand.NewPCG(0, 0)))
	}
}

// backUpPurgeCollect makes points of one machine, purges each second one and collects garbage. It
// returns what the points hold that are left.
func backUpPurgeCollect(t *testing.T, v *vault.Vault, seed uint64) map[point.ID][]byte {
	rng := rand.New(rand.NewPCG(seed, 7))
	d := &disk{data: make([]byte, 40*testChunk)}
	left := map[point.ID][]byte{}
	var before point.ID
	for n := range 4 {
		s, err := v.Begin(t.Context(), "")
		if err != nil {
			t.Errorf("begin: %v", err)
			return nil
		}
		data, zero := d.scribble(rng)
		if err := put(t.Context(), s, d, data, zero); err != nil {
			t.Errorf("put: %v", err)
			return nil
		}
		p := newPoint([]string{"a", "b"}[seed], d)
		if err := s.Commit(t.Context(), p); err != nil {
			t.Errorf("commit: %v", err)
			return nil
		}
		left[p.ID] = bytes.Clone(d.data)
		if n%2 == 1 {
			if err := v.PurgePoint(t.Context(), before); err != nil {
				t.Errorf("purge: %v", err)
			}
			delete(left, before)
			if _, err := v.CollectGarbage(t.Context(), vault.GCOptions{Full: n == 3}); err != nil {
				t.Errorf("collect: %v", err)
			}
		}
		before = p.ID
	}
	return left
}
