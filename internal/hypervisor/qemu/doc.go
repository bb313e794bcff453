// Package qemu drives one plain QEMU process over its QMP socket: what it is made of, what it takes
// to build it again, and building it again as a start script.
//
// A host is one URI, qmp:PATH[,qga=PATH], and has one machine: the QEMU that listens on PATH.
// Nothing has to listen there when the host is made: [Host.Define] puts a new machine there. QEMU
// serves one client per socket, so a [Host] holds one connection and whoever else needs the monitor
// takes it from [Host.Client].
//
// Nothing here changes a running machine.
package qemu
