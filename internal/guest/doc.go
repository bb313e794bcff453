// Package guest talks to the agent inside a machine: it asks the guest to flush and hold its writes
// for the instant of a recovery point, and makes sure that it is released again, whatever happens
// to us.
//
// The promises, in order of importance:
//
//   - A guest that we quiesced is thawed. A [Guard] runs the quiesce in a process of its own, with
//     a timer that is armed before the guest is asked to hold; the death or the stop of the process
//     that wanted the point ends in a thaw. Should both die, a state file says so, and
//     [ThawLeftover] thaws at the next start.
//   - A guest that somebody else holds is left alone.
//   - The level of consistency that is reported is the one that was reached, and its reason says
//     why it is no higher. Doubt lowers the level. A guest that cannot be quiesced is not an error:
//     the point is crash-consistent, and says why.
//
// A [Conn] speaks to the agent over the unix socket of a QEMU character device; hypervisors that
// own the channel themselves bring their own [hypervisor.Agent].
package guest
