// Package vm is the guest lab: it boots a real Debian guest for tests and for the demo.
//
// The guest is built from Debian packages by the recipe in image and cached by the hash of that
// recipe. It has three disks: vda, the system, qcow2; vdb, qcow2 on an iothread; vdc, raw. Inside,
// the jobs of [Options.Work] write: "disks" runs the writer of package wgen across vdb and vdc,
// "db" commits numbered rows to a SQLite database on the system disk. What they have made durable
// they say on the console: "ACKED n" and "COMMITTED n".
//
// Another disk, [LabServices], has systemd, PostgreSQL and a web server, for those who ask a guest
// what it serves.
//
// The lab has a monitor and an agent channel of its own, so that a test looks into a guest without
// taking the ones that the product uses, frozen or not.
//
// KVM is used where a kernel has been seen to run under it, else QEMU's own emulation, TCG. That is
// found out once after each start of the machine, see [Accel]. HOLDFAST_LAB_ACCEL, kvm or tcg,
// decides without looking.
//
// Whatever a test starts here ends with the test, and with the test process if that is killed.
package vm
