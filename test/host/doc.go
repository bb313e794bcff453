// Package host tests what becomes of machines on hosts that lack something: no KVM, no QEMU, no
// room, a guest that stands still. It boots no operating system.
package host
