// Package holdfast holds no code: it is the root of a program, not a library.
//
// What is promised is the binary built from cmd/holdfast, and the formats in docs/formats. All code
// lives under internal, in layers that import downwards only: faces (cli), workflows (protect,
// restore), mechanisms (vault, capture, guest, hypervisor, diskimage), protocols and storage (qmp,
// nbd, qcow2, blob, durable), ground (point, extent). The tests beside this file hold that.
package holdfast
