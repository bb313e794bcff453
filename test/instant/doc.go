// Package instant holds the tests that restore a real guest at once and then kill whatever takes
// part, at every step, until its disks are local: the process that serves and copies them, QEMU,
// and both together as a power cut would.
//
// The guest writes numbered records and says which of them are durable. Whatever happens, it finds
// all of those when it goes on or boots again, and in the end they are on its local disks. A power
// cut is simulated by killing QEMU and holdfast: what they had not handed to the host's kernel is
// gone, what they had is not, so that order and completeness of flushes to a real disk are not
// tried here.
//
// HOLDFAST_ROUNDS sets how often something ends before the copies do, by chance from the third time
// on, and HOLDFAST_SEED repeats a run.
package instant
