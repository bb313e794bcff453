package rpc

import (
	"bytes"
	"testing"
)

// FuzzMessages feeds a client what a hostile daemon could send: no panic, and no more memory than
// was sent.
func FuzzMessages(f *testing.F) {
	dom := encoder{}
	dom.i32(3)
	dom.domain(Domain{Name: "vm", ID: 1})
	job := encoder{b: bytes.Clone(dom.b)}
	job.u32(1)
	job.str("operation")
	job.u32(1)
	job.i32(9)
	dom.i32(1)
	dom.i32(2)
	remoteError := encoder{}
	remoteError.i32(42)
	remoteError.i32(10)
	remoteError.optional("no such thing")
	for _, m := range []message{
		{header{prog: programRemote, vers: 1, proc: procEventLifecycle, typ: typeMessage}, dom.b},
		{header{prog: programRemote, vers: 1, proc: procEventJobCompleted, typ: typeMessage}, job.b},
		{header{prog: programRemote, vers: 1, proc: procOpen, typ: typeReply, serial: 1, status: statusError},
			remoteError.b},
		{header{prog: programRemote, vers: 1, proc: procDomainScreenshot, typ: typeStream, serial: 1,
			status: statusContinue}, []byte("part")},
		{header{prog: programRemote, vers: 1, proc: procDomainScreenshot, typ: typeStream, serial: 1,
			status: statusContinue}, nil},
		{header{prog: programRemote, vers: 1, proc: procDomainScreenshot, typ: typeStream, serial: 1,
			status: statusError}, remoteError.b},
		{header{prog: programKeepalive, vers: 1, proc: keepalivePing, typ: typeMessage}, nil},
	} {
		f.Add(append(appendHeader(nil, m.header, len(m.body)), m.body...))
	}
	f.Fuzz(func(t *testing.T, stream []byte) {
		r := bytes.NewReader(stream)
		s := newStream(procDomainScreenshot, 1000)
		for {
			m, err := readMessage(r)
			if err != nil {
				return
			}
			m.result(m.prog, m.proc)
			if _, ev, ok := decodeEvent(m); ok && len(ev.Params)*8 > len(stream) {
				t.Fatalf("%d parameters from %d bytes", len(ev.Params), len(stream))
			}
			decodeReplies(m.body)
			s.take(m)
			if got, _ := s.result(); len(got) > 1000 {
				t.Fatalf("%d bytes, at most 1000 are wanted", len(got))
			}
		}
	})
}

// decodeReplies reads a body as every kind of reply.
func decodeReplies(body []byte) {
	for _, read := range []func(*decoder){
		func(d *decoder) { d.params() },
		func(d *decoder) { d.domain() },
		func(d *decoder) { d.network() },
		func(d *decoder) { d.str() },
		func(d *decoder) { d.optional() },
		func(d *decoder) {
			for range d.count(24) {
				d.domain()
			}
		},
	} {
		read(&decoder{b: body})
	}
}
