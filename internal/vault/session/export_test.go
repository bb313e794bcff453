package session

import (
	"context"
	"testing"
)

// Tell tells of all that is in finished packs, as a session does every few minutes.
func (s *Session) Tell(ctx context.Context) error {
	if err := s.data.commits.Wait(); err != nil {
		return err
	}
	if err := s.nodes.commits.Wait(); err != nil {
		return err
	}
	s.telling.wait.Wait()
	return s.tell(ctx)
}

// SetPieceSize makes the operations of progress smaller for a test.
func SetPieceSize(t *testing.T, n int) {
	was := pieceSize
	pieceSize = n
	t.Cleanup(func() { pieceSize = was })
}

// Claims returns how many chunks and nodes a session remembers.
func (s *Session) Claims() (n int) {
	for i := range s.claims.shards {
		n += len(s.claims.shards[i].of)
	}
	return n
}

// Spans returns how many leaves a batch has workers look at.
func (s *Session) Spans(ctx context.Context, in DiskInput) (n int, err error) {
	p, err := s.newPut(ctx, in)
	if err != nil {
		return 0, err
	}
	out, done := make(chan span), make(chan error, 1)
	go func() { defer close(out); done <- p.split(ctx, out) }()
	for range out {
		n++
	}
	return n, <-done
}
