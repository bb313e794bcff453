package export

// Settle waits until everything in the background has ended; nothing more may begin.
func (s *Server) Settle() { s.bg.wait() }
