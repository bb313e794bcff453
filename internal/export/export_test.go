package export

// Settle waits until everything in the background has ended; nothing more may begin.
func (s *Server) Settle() { s.bg.wait() }

// Idle waits until nothing is under way in the background.
func (s *Server) Idle() { s.bg.work.Wait() }
