package protect

import (
	"context"
	"io"
	"sync"

	"github.com/holdfast-vm/holdfast/internal/capture"
	"github.com/holdfast-vm/holdfast/internal/extent"
	"github.com/holdfast-vm/holdfast/internal/hypervisor"
	"github.com/holdfast-vm/holdfast/internal/point"
	"github.com/holdfast-vm/holdfast/internal/vault"
)

// intake takes batches of changed blocks into a session of the vault. Different disks may come at
// the same time.
type intake struct {
	session  *vault.Session
	lineage  lineage
	progress func(stage string, done, total int64)

	mu          sync.Mutex
	trees       map[string]tree // by disk
	done, total int64           // bytes
}

// tree is a disk as far as it has been stored.
type tree struct {
	root        string
	used, added int64
	of          point.ID // the point that has it; "" for one that this session made
}

func newIntake(s *vault.Session, l lineage, progress func(string, int64, int64)) *intake {
	return &intake{session: s, lineage: l, progress: progress, trees: map[string]tree{}}
}

// put applies a batch to its disk: the first one to the tree of the last point, each later one to
// what the one before made.
func (s *intake) put(ctx context.Context, read capture.Read) error {
	base := s.begin(read)
	out, err := s.session.PutDisk(ctx, vault.DiskInput{
		Size: read.Size, Base: base.root, Of: base.of, BaseUsed: base.used, Data: read.Data, Zero: read.Zero,
		Source:   read.Source,
		Progress: s.more,
	})
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.trees[read.Disk] = tree{root: out.Root, used: out.Used, added: s.trees[read.Disk].added + out.Added}
	return nil
}

// begin counts the batch in and returns the tree that it changes.
func (s *intake) begin(read capture.Read) tree {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.total += read.Data.Bytes()
	s.progress(StageStore, s.done, s.total)
	if t, ok := s.trees[read.Disk]; ok {
		return t
	}
	return s.lineage.base(read.Disk, read.Size)
}

func (s *intake) more(bytes int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.done += bytes
	s.progress(StageStore, min(s.done, s.total), s.total)
}

// disk returns what was stored of d, which had size bytes at the instant. A disk of which no batch
// came is as it was before.
func (s *intake) disk(d hypervisor.Disk, size int64) point.Disk {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := point.Disk{Name: d.Name, Size: size, Source: sourceOf(d)}
	if t, ok := s.trees[d.Name]; ok {
		out.Root, out.Used, out.Added = t.root, t.used, t.added
	} else if last := s.lineage.disk(d.Name); last != nil && last.Size == size {
		out.Root, out.Used = last.Root, last.Used
	}
	return out
}

// file stores a small file of the machine as a disk of its own.
func (s *intake) file(ctx context.Context, size int64, source io.ReaderAt) (string, error) {
	out, err := s.session.PutDisk(ctx, vault.DiskInput{
		Size: size, Data: extent.Of(extent.Extent{Len: size}), Source: source,
	})
	return out.Root, err
}

func sourceOf(d hypervisor.Disk) point.Source {
	out := point.Source{File: d.File, Format: d.Format, Node: d.Node, Device: d.Device, Bus: d.Bus, Serial: d.Serial,
		IOThread: d.IOThread}
	if d.Encrypted != "" {
		out.Encryption = &point.Encryption{Format: d.Encrypted}
	}
	return out
}
