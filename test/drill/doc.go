// Package drill tests drills of real guests with the holdfast that users run, under plain QEMU and
// libvirt.
//
// The original runs and writes all the time: no drill may disturb it.
package drill
