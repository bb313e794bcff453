package hypervisor

import "context"

// What only some hosts can do. Whoever needs one of these asks whether the host is one.
type (
	// Owner is a host whose machines run as another user, who must be let in to the files and
	// sockets that they need.
	Owner interface {
		// MachineOwner returns the user and group that machines run as, -1 for this process' own.
		MachineOwner(ctx context.Context) (uid, gid int, err error)
	}

	// Finder is a host that finds one machine without listing all, which may be many or slow to
	// answer.
	Finder interface {
		// Machine returns the machine of that name, or [ErrNoMachine].
		Machine(ctx context.Context, name string) (Machine, error)
	}

	// TraceRemover is a host that keeps something of a machine, such as its log, after Remove.
	TraceRemover interface {
		// RemoveTraces removes what is kept of a machine that was removed.
		RemoveTraces(ctx context.Context, name string) error
	}

	// AgentListener is a host whose machine's guest agent is reached by a socket that another
	// process can open too.
	AgentListener interface {
		// AgentSocket returns the path of that socket, "" if there is none.
		AgentSocket(ctx context.Context) string
	}
)
