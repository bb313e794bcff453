package capture

// The reasons why a disk was read whole and not by the record of changes, as its point has them.
// docs/manual/cli.md explains each.
const (
	WholeAsked       = "a full read was asked for"
	WholeFirst       = "there is no earlier point with a record of changes"
	WholeLost        = "the record of changes since the last point is lost"
	WholeUnclean     = "the record of changes is inconsistent: QEMU did not end cleanly"
	WholeInUse       = "the record of changes is in use by another job"
	WholeStopped     = "the recording of changes was stopped"
	WholeGranularity = "changes were recorded in blocks of %d bytes, not %d"
	WholeResized     = "the disk was resized from %d to %d bytes"
	WholeFormat      = "%s images cannot hold a record of changes under libvirt"
	WholeOtherVault  = "the record of changes since the last point, %s, belongs to another vault"
	WholeUnusable    = "the record of changes cannot be used: %v"
	WholeBusy        = "the host was too busy to take the instant with the machine held still for no more than %s"
	WholeImage       = "the image has no record of changes"
)
