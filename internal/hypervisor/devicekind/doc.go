// Package devicekind knows what becomes of every kind of device of a machine in a recovery point.
//
// [Table] has one row per kind: what QEMU and libvirt call it, and whether a point holds its
// content, a restore builds it again from the definition, or it is left out, and why. Drivers of
// hypervisors look up what they find: [Device], [Object], [Option] and [Element]. What is in no row
// is not known, and so not held: [Unknown] says that, and nobody drops it silently.
//
// The table stands in docs/manual/devices.md as well; a test holds the two together. It decides
// nothing by itself and reads nothing.
package devicekind
