package nbd

const (
	magicInit     = 0x4e42444d41474943 // "NBDMAGIC"
	magicOption   = 0x49484156454f5054 // "IHAVEOPT"
	magicOptReply = 0x0003e889045565a9

	magicRequest     = 0x25609513
	magicRequestExt  = 0x21e41c71
	magicSimple      = 0x67446698
	magicStructured  = 0x668e33ef
	magicExtended    = 0x6e8a278c
	simpleBytes      = 16
	structuredBytes  = 20
	extendedBytes    = 32
	requestBytes     = 28
	requestExtBytes  = 32
	maxName          = 4096
	maxExport        = 1 << 62
	maxOptionReply   = 64 << 10
	maxErrorPayload  = 16 << 10
	maxStatusPayload = 8 << 20
	maxPayload       = 32 << 20 // what QEMU accepts, and a server that names no limit must

	flagFixedNewstyle = 1 << 0
	flagNoZeroes      = 1 << 1
)

// Options of the handshake.
const (
	optExportName      = 1
	optAbort           = 2
	optList            = 3
	optStartTLS        = 5
	optInfo            = 6
	optGo              = 7
	optStructuredReply = 8
	optListMetaContext = 9
	optSetMetaContext  = 10
	optExtendedHeaders = 11
)

// Replies to options; errors have the highest bit set.
const (
	repAck         = 1
	repServer      = 2
	repInfo        = 3
	repMetaContext = 4
	repErrBit      = 1 << 31
	repErrUnsup    = repErrBit + 1
	repErrPolicy   = repErrBit + 2
	repErrInvalid  = repErrBit + 3
	repErrPlatform = repErrBit + 4
	repErrTLSReqd  = repErrBit + 5
	repErrUnknown  = repErrBit + 6
	repErrShutdown = repErrBit + 7
	repErrTooBig   = repErrBit + 9
	repErrExtended = repErrBit + 10

	infoExport      = 0
	infoName        = 1
	infoDescription = 2
	infoBlockSize   = 3
)

// Flags of an export, as the server sends them.
type Flags uint16

// What an export can do.
const (
	HasFlags       Flags = 1 << 0
	ReadOnly       Flags = 1 << 1
	SendFlush      Flags = 1 << 2
	SendFUA        Flags = 1 << 3
	Rotational     Flags = 1 << 4
	SendTrim       Flags = 1 << 5
	SendZeroes     Flags = 1 << 6
	SendDF         Flags = 1 << 7
	CanMultiConn   Flags = 1 << 8
	SendCache      Flags = 1 << 10
	SendFastZero   Flags = 1 << 11
	StatusPayload  Flags = 1 << 12
	AllocationHole       = 1 << 0 // of base:allocation: not allocated
	AllocationZero       = 1 << 1 // of base:allocation: reads as zeros
)

// Commands.
const (
	cmdRead        = 0
	cmdWrite       = 1
	cmdDisconnect  = 2
	cmdFlush       = 3
	cmdTrim        = 4
	cmdCache       = 5
	cmdWriteZeroes = 6
	cmdBlockStatus = 7

	cmdFlagFUA        = 1 << 0
	cmdFlagNoHole     = 1 << 1
	cmdFlagDF         = 1 << 2
	cmdFlagReqOne     = 1 << 3
	cmdFlagFastZero   = 1 << 4
	cmdFlagPayloadLen = 1 << 5
)

// Replies to commands.
const (
	replyDone        = 1 << 0 // flag: the last chunk
	replyNone        = 0
	replyData        = 1
	replyHole        = 2
	replyStatus      = 5
	replyStatusExt   = 6
	replyErrBit      = 1 << 15
	replyError       = replyErrBit + 1
	replyErrorOffset = replyErrBit + 2
)

var cmdNames = map[uint16]string{
	cmdRead: "read", cmdWrite: "write", cmdFlush: "flush", cmdTrim: "trim", cmdCache: "caching",
	cmdWriteZeroes: "write of zeros", cmdBlockStatus: "block status",
}
