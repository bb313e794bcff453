package log

// Rules are those of docs/design/log.md that tests leave out, to show that each is needed.
type Rules uint32

// The rules that can be left out, here and in the rooms that stand on the log.
const (
	Definite      Rules = 1 << iota // R1: a put in doubt is repeated until the answer is definite
	KnowNonce                       // R1, R2: one's own entry is recognised by its nonce
	LookAfterPut                    // R2: next/VOLUME is looked for after the put
	MarkBeforeCut                   // R3: entries are cut only after next/VOLUME was put
	VoidMarks                       // R3, R5: what rested on entries that turned out void is void
	GoodCounts                      // R4: what a commit counts on must stand
	OwnPacks                        // R4: none of a commit's own packs was condemned
	LivingBase                      // R4: a commit's base must live
	SayFirst                        // R5: packs are deleted only after their condemnation is acknowledged
	LeaveCounted                    // R5: a condemnation leaves out what was counted on since its mark
	NoRival                         // R5: a condemnation is void if another stands since its mark
	HoldsRefuse                     // R6: a hold refuses a purge
	ReadOn                          // R7: a reader that misses a pack reads the log on
	SettleRead                      // R9: what was only read is settled before something builds on it
	AskAbsent                       // R9: absent is not answered from a cache
	Remember                        // R2, R4: the state remembers condemned names and nonces
	WalkOnce                        // R6: each piece of what a purge frees counts once
	LeaveShared                     // R6: what was shared since it was walked is not freed
)

// Has reports whether all of r are among them.
func (s Rules) Has(r Rules) bool { return s&r == r }
