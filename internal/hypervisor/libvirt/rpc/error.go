package rpc

import "errors"

// Code is libvirt's number of an error.
type Code int32

// Codes that callers decide by.
const (
	OperationFailed        Code = 9
	InvalidArg             Code = 8
	NoDomain               Code = 42
	NoNetwork              Code = 43
	NoSecret               Code = 66
	AuthFailed             Code = 45
	NoStoragePool          Code = 49
	OperationInvalid       Code = 55
	ConfigUnsupported      Code = 67
	OperationTimeout       Code = 68
	ArgumentUnsupported    Code = 74
	AgentUnresponsive      Code = 86
	AccessDenied           Code = 88
	AgentUnsynced          Code = 97
	NoCheckpoint           Code = 103
	NoBackup               Code = 104
	CheckpointInconsistent Code = 109
)

// Error is what libvirt answered instead of a result.
type Error struct {
	Code    Code
	Domain  int32 // libvirt's number of the part that failed
	Message string
}

func (e *Error) Error() string { return e.Message }

// Is reports whether err is a libvirt error of that code.
func Is(err error, code Code) bool {
	var e *Error
	return errors.As(err, &e) && e.Code == code
}

func (d *decoder) remoteError() *Error {
	e := &Error{Code: Code(d.i32()), Domain: d.i32(), Message: d.optional()}
	if e.Message == "" {
		e.Message = "libvirt gave no reason"
	}
	return e // what follows (level, domain, more strings) repeats it
}
