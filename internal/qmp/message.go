package qmp

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// MaxLine is the longest line accepted from QEMU, in bytes.
const MaxLine = 64 << 20

// Error is QEMU's refusal of a command.
type Error struct {
	Class string // GenericError, CommandNotFound, DeviceNotFound, …
	Desc  string // for people
}

func (e *Error) Error() string { return "qemu: " + e.Desc }

// Refused reports whether err is an [Error] of QEMU, that is, whether the command was answered and
// not carried out.
func Refused(err error) bool {
	var e *Error
	return errors.As(err, &e)
}

// Version is what QEMU says of itself in its greeting.
type Version struct {
	Major, Minor, Micro int
	Package             string // the distribution's name for it
}

// String returns the version as "7.2.22 (package)".
func (v Version) String() string {
	s := fmt.Sprintf("%d.%d.%d", v.Major, v.Minor, v.Micro)
	if v.Package != "" {
		s += " (" + v.Package + ")"
	}
	return s
}

// AtLeast reports whether v is major.minor or newer.
func (v Version) AtLeast(major, minor int) bool {
	return v.Major > major || v.Major == major && v.Minor >= minor
}

// Event is something that happened in QEMU.
type Event struct {
	Name string
	Data json.RawMessage
	Time time.Time // by QEMU's clock
}

// message is any line that QEMU sends.
type message struct {
	greeting *greeting
	event    *Event
	id       uint64 // of the command that is answered; 0 if QEMU could not make out the command
	result   json.RawMessage
	err      *Error
}

type greeting struct {
	version Version
	oob     bool
}

// wire is the union of all lines.
type wire struct {
	QMP *struct {
		Version struct {
			Qemu    struct{ Major, Minor, Micro int }
			Package string
		}
		Capabilities []json.RawMessage
	}
	Event     string
	Data      json.RawMessage
	Timestamp struct{ Seconds, Microseconds int64 }
	ID        json.RawMessage
	Return    json.RawMessage
	Error     *struct{ Class, Desc string }
}

// decode reads one line.
func decode(line []byte) (message, error) {
	var w wire
	if err := json.Unmarshal(line, &w); err != nil {
		return message{}, fmt.Errorf("decode QMP message: %w", err)
	}
	switch {
	case w.QMP != nil:
		return message{greeting: decodeGreeting(&w)}, nil
	case w.Event != "":
		at := time.Unix(w.Timestamp.Seconds, w.Timestamp.Microseconds*1000)
		return message{event: &Event{Name: w.Event, Data: w.Data, Time: at}}, nil
	case w.Error != nil:
		id, err := decodeID(w.ID)
		return message{id: id, err: &Error{Class: w.Error.Class, Desc: w.Error.Desc}}, err
	case w.Return != nil:
		id, err := decodeID(w.ID)
		return message{id: id, result: w.Return}, err
	}
	return message{}, errors.New("decode QMP message: neither greeting, event nor answer")
}

func decodeGreeting(w *wire) *greeting {
	v := w.QMP.Version
	g := &greeting{version: Version{v.Qemu.Major, v.Qemu.Minor, v.Qemu.Micro, v.Package}}
	for _, c := range w.QMP.Capabilities {
		g.oob = g.oob || string(c) == `"oob"`
	}
	return g
}

func decodeID(raw json.RawMessage) (uint64, error) {
	if len(raw) == 0 {
		return 0, nil
	}
	var id uint64
	if err := json.Unmarshal(raw, &id); err != nil {
		return 0, fmt.Errorf("decode QMP message: id %.40s is not ours", raw)
	}
	return id, nil
}
