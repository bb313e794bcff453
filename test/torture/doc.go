// Package torture holds the tests that do to Holdfast what life does: they kill, stop and starve
// the real binary and the real QEMU while a real guest writes, and then ask the guest's own
// verifier what a recovery point is worth.
//
// Whatever was done, the guest's writes go on, what was acknowledged before a backup began is in
// its point, all disks of a point show one instant, and after the next backup or "holdfast host
// reconcile" nothing of ours is left in the machine or on the host.
//
// HOLDFAST_ROUNDS sets how many rounds [TestRounds] runs under each hypervisor, HOLDFAST_SEED
// repeats a run. With -short, as in make test, there are two rounds and nothing else: chance adds
// up over many runs. make torture runs it whole.
package torture
