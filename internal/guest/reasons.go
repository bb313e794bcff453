package guest

// Why a point is as consistent as it is, and no more: what becomes [Outcome].Reason. The manual
// (docs/manual/quiesce.md) explains every one of them, and a test holds it to that.

// The guest is not asked, or not able.
const (
	reasonNotWanted    = "no more than crash consistency was asked for"
	reasonNotQuiesced  = "the guest was not quiesced"
	reasonNoGuard      = "the guard that releases the guest could not be started: %v"
	reasonGuardDied    = "the guard that was to release the guest died: %s"
	reasonNoAgent      = "the machine has no guest agent to ask: %v"
	reasonSilent       = "the guest agent does not answer"
	reasonInUse        = "the guest agent's socket is in use by another client"
	reasonUnreachable  = "the guest agent could not be reached: %v"
	reasonAbilities    = "what the guest agent is able to do is not known: %v"
	reasonNotAllowed   = "the guest agent does not allow %s"
	reasonLostEarly    = "the guest agent was lost: %v"
	reasonLeftHeld     = "the guest was left held by an earlier attempt: %v"
	reasonNeverAsked   = "the guest was not asked to hold its writes"
	reasonHeldUnknown  = "whether the guest is held already is not known: %v"
	reasonHeldByOthers = "somebody else holds the guest's file systems"
	reasonHeldByUs     = "another holdfast is quiescing this guest"
	reasonNotNoted     = "the guest was not asked to hold its writes, as that could not be noted: %v"
)

// The guest did not hold its writes, or not until the instant was taken.
const (
	reasonRefused      = "the guest could not quiesce: %s"
	reasonTooSlow      = "the guest did not quiesce within %v"
	reasonLostAtFreeze = "the guest agent was lost while the guest was to quiesce: %v"
	reasonNothingHeld  = "the guest quiesced none of its file systems"
	reasonTimeUp       = "the guest was released after %v, as the instant had not been taken by then"
	reasonReleased     = "the guest was released before the instant was taken"
	reasonNotUntilThaw = "the guest did not hold its writes until the thaw: %s"
	reasonLostAtThaw   = "the guest agent was lost while the guest was held, " +
		"so whether writes were held until the thaw is not known: %v"
	reasonSomeReleased = "only %d of %d file systems were still held at the thaw"
	reasonNotReleased  = "the guest is not known to be released: %v"
)

// The guest held its writes. Joined by a semicolon to the first two is whether applications took
// part: one of these, or of those below.
const (
	reasonHeld    = "%d file systems were flushed and held"
	reasonHeldOne = "1 file system was flushed and held"
	reasonVSS     = "the guest's VSS writers were frozen"
	reasonNoMore  = "no more was asked for"
	reasonSystem  = "the guest agent does not say what system it runs on, " +
		"so whether applications took part is not known"
	reasonHookAtThaw = "the file systems were flushed and held, but a hook in the guest failed at the thaw: %s"
)

// What is known of the hooks of a guest that held its writes.
const (
	reasonHooksRan     = "the hooks of applications succeeded: %s"
	reasonHookRan      = "the hook %s succeeded"
	reasonNoHook       = "no hooks of applications ran, as the guest agent was started without --fsfreeze-hook"
	reasonNoHooks      = "no hooks of applications are installed in %s"
	reasonHooksIgnored = "the hook dispatcher %s ignores hooks that fail, so whether they succeeded is not known"
	reasonHooksUnknown = "whether hooks of applications ran is not known: %v"
	reasonNoFiles      = "whether hooks of applications ran is not known, " +
		"as the guest agent does not let files be read (guest-file-open)"
	reasonHookUnread   = "what the hook %s does is not known: %v"
	reasonWhereUnknown = "where the hooks of %s are is not known: %v"
	reasonListUnknown  = "whether there are hooks in %s is not known: %v"
	reasonNoPrograms   = "whether there are hooks in %s is not known, " +
		"as the guest agent does not let programs run (guest-exec)"
)
