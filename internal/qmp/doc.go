// Package qmp speaks QEMU's machine protocol over a unix socket.
//
// A [Client] is one connection. Commands may run concurrently and are matched to their answers by
// id; each ends when its context does, and a late answer is dropped. Events are queued per
// [Subscription] and never hold up the connection. QEMU serves one client per socket: [Dial] says
// so with [ErrInUse] when another client is being served.
//
// The package knows nothing of disks or machines. It trusts nothing that comes over the socket: a
// line longer than [MaxLine] or one that is not a message ends the connection.
package qmp
