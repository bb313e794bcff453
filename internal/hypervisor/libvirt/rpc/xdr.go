package rpc

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
)

// stringMax is the longest string libvirt sends or takes, in bytes.
const stringMax = 4 << 20

var errShort = errors.New("message ends early")

// encoder appends XDR to b.
type encoder struct{ b []byte }

func (e *encoder) u32(v uint32) { e.b = binary.BigEndian.AppendUint32(e.b, v) }
func (e *encoder) u64(v uint64) { e.b = binary.BigEndian.AppendUint64(e.b, v) }
func (e *encoder) i32(v int32)  { e.u32(uint32(v)) }

func (e *encoder) flag(v bool) {
	if v {
		e.u32(1)
	} else {
		e.u32(0)
	}
}

func (e *encoder) fixed(p []byte) {
	e.b = append(e.b, p...)
	for len(p)%4 != 0 {
		e.b = append(e.b, 0)
		p = append(p, 0)
	}
}

func (e *encoder) str(s string) {
	e.u32(uint32(len(s)))
	e.fixed([]byte(s))
}

// optional encodes "" as null.
func (e *encoder) optional(s string) {
	e.flag(s != "")
	if s != "" {
		e.str(s)
	}
}

func (e *encoder) domain(d Domain) {
	e.str(d.Name)
	e.fixed(d.UUID[:])
	e.i32(d.ID)
}

func (e *encoder) network(n Network) {
	e.str(n.Name)
	e.fixed(n.UUID[:])
}

func (e *encoder) checkpoint(d Domain, name string) {
	e.str(name)
	e.domain(d)
}

// decoder takes XDR from b. After the first error it returns zero values and keeps that error. It
// allocates no more than a small multiple of what b holds.
type decoder struct {
	b   []byte
	err error
}

func (d *decoder) fail(err error) {
	if d.err == nil {
		d.err = err
	}
	d.b = nil
}

// end returns the first error. It is a call, so that it comes after those before it in a return.
func (d *decoder) end() error { return d.err }

func (d *decoder) take(n int) []byte {
	if d.err != nil || n > len(d.b) {
		d.fail(errShort)
		return nil
	}
	p := d.b[:n]
	d.b = d.b[n:]
	return p
}

func (d *decoder) u32() uint32 {
	if p := d.take(4); p != nil {
		return binary.BigEndian.Uint32(p)
	}
	return 0
}

func (d *decoder) u64() uint64 {
	if p := d.take(8); p != nil {
		return binary.BigEndian.Uint64(p)
	}
	return 0
}

func (d *decoder) i32() int32 { return int32(d.u32()) }

func (d *decoder) str() string {
	n := d.u32()
	if n > stringMax {
		d.fail(fmt.Errorf("string of %d bytes, at most %d are allowed", n, stringMax))
		return ""
	}
	p := d.take((int(n) + 3) &^ 3)
	if p == nil {
		return ""
	}
	return string(p[:n])
}

func (d *decoder) optional() string {
	if d.u32() == 0 {
		return ""
	}
	return d.str()
}

func (d *decoder) uuid() (u [16]byte) {
	copy(u[:], d.take(16))
	return u
}

// count reads the length of an array whose elements take at least size bytes each.
func (d *decoder) count(size int) int {
	n := d.u32()
	if int64(n)*int64(size) > int64(len(d.b)) {
		d.fail(fmt.Errorf("array of %d elements in %d bytes: %w", n, len(d.b), errShort))
		return 0
	}
	return int(n)
}

func (d *decoder) domain() Domain   { return Domain{Name: d.str(), UUID: d.uuid(), ID: d.i32()} }
func (d *decoder) network() Network { return Network{Name: d.str(), UUID: d.uuid()} }

// Params are libvirt's typed parameters: int64, uint64, float64, bool or string by name.
type Params map[string]any

// Uint returns a number, or 0.
func (p Params) Uint(name string) uint64 {
	switch v := p[name].(type) {
	case uint64:
		return v
	case int64:
		return uint64(max(v, 0))
	}
	return 0
}

// String returns a string, or "".
func (p Params) String(name string) string { s, _ := p[name].(string); return s }

func (d *decoder) params() Params {
	out := Params{}
	for range d.count(12) {
		name := d.str()
		switch kind := d.u32(); kind {
		case 1:
			out[name] = int64(d.i32())
		case 2:
			out[name] = uint64(d.u32())
		case 3:
			out[name] = int64(d.u64())
		case 4:
			out[name] = d.u64()
		case 5:
			out[name] = math.Float64frombits(d.u64())
		case 6:
			out[name] = d.u32() != 0
		case 7:
			out[name] = d.str()
		default:
			d.fail(fmt.Errorf("typed parameter %.40q of unknown type %d", name, kind))
		}
		if d.err != nil {
			return nil
		}
	}
	return out
}
