package state

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/zeebo/blake3"

	"github.com/holdfast-vm/holdfast/internal/blob"
	"github.com/holdfast-vm/holdfast/internal/vault/log"
	"github.com/holdfast-vm/holdfast/internal/vault/state/tier"
)

const (
	checkMagic = "HFCHECK1"
	checkHead  = 32
	maxCheck   = 16 << 20 // bytes of a checkpoint's root
)

// Checkpoint implements [log.State]. The same entries make the same checkpoint.
func (s *State) Checkpoint(ctx context.Context) (log.Checkpoint, error) {
	for c := range classes {
		if err := s.tiers[c].Settle(ctx); err != nil {
			return log.Checkpoint{}, err
		}
	}
	clear, secret := s.encode()
	plain := append(append([]byte(nil), clear...), secret...)
	cp := log.Checkpoint{At: s.root.At, Salt: s.parts.keys.salt(sealed, checkMagic, plain), Hash: blake3.Sum256(plain)}
	raw := make([]byte, checkHead, checkHead+len(plain)+tagSize+macSize)
	copy(raw, checkMagic)
	binary.LittleEndian.PutUint32(raw[8:], uint32(len(clear)))
	binary.LittleEndian.PutUint32(raw[12:], uint32(len(secret)+tagSize))
	copy(raw[16:], cp.Salt[:])
	raw = append(raw, clear...)
	aead, err := s.parts.keys.aead(cp.Salt)
	if err != nil {
		return cp, err
	}
	raw = append(raw, aead.Seal(nil, nonceZero[:], secret, raw)...)
	mac := s.parts.keys.log.MAC(raw)
	return cp, s.parts.putObject(ctx, log.CheckpointName(cp), append(raw, mac[:]...))
}

// encode returns what of the root a mirror may know, and the rest.
func (s *State) encode() (clear, secret []byte) {
	r := &s.root
	c := enc(nil).u64(r.Count).at(r.At).raw(r.Head[:]).bool(r.Ended)
	c = putRuns(c, s.tiers[open].Runs)
	c = tier.AppendRows(c, tier.Sorted(s.rows[open], nil))
	c = putNames(c, s.tiers[sealed].Runs)
	x := enc(nil).u64(r.Term).bytes([]byte(r.Owner)).raw(r.Forget.Append(nil)).u64(r.Condemn)
	x = x.u64(r.Points).u64(r.Packs).u64(r.Bytes).u64(r.Condemned).u32(uint32(len(r.Starts)))
	for _, st := range r.Starts {
		x = x.raw(st.Volume.Append(nil)).u64(uint64(st.Time))
	}
	x = putRuns(x, s.tiers[sealed].Runs)
	return c, tier.AppendRows(x, tier.Sorted(s.rows[sealed], nil))
}

func putRuns(e enc, runs []tier.Run) enc {
	e = e.u32(uint32(len(runs)))
	for _, r := range runs {
		e = e.u64(r.From).u64(r.To).u32(uint32(len(r.Parts)))
		for _, p := range r.Parts {
			e = e.raw(p.Salt[:]).u32(p.Size).bytes(p.First).bytes(p.Last)
		}
	}
	return e
}

func getRuns(d *dec) (runs []tier.Run) {
	for range d.count(20) {
		r := tier.Run{From: d.u64(), To: d.u64()}
		for range d.count(28) {
			p := tier.Part{From: r.From, To: r.To, Salt: [16]byte(d.take(16)), Size: d.u32()}
			p.First, p.Last = d.bytes(), d.bytes()
			r.Parts = append(r.Parts, p)
		}
		runs = append(runs, r)
	}
	return runs
}

// putNames adds the names of sealed parts, by which a mirror knows what to copy.
func putNames(e enc, runs []tier.Run) enc {
	n := 0
	for _, r := range runs {
		n += len(r.Parts)
	}
	e = e.u32(uint32(n))
	for _, r := range runs {
		for _, p := range r.Parts {
			e = e.u64(p.From).u64(p.To).raw(p.Salt[:]).u32(p.Size)
		}
	}
	return e
}

// Load implements [log.State].
func (s *State) Load(ctx context.Context, c log.Checkpoint) (log.Loaded, error) {
	name := log.CheckpointName(c)
	raw, err := blob.Read(ctx, s.parts.store, name, 1<<20)
	if errors.Is(err, blob.ErrTooLarge) {
		raw, err = blob.Read(ctx, s.parts.store, name, maxCheck)
	}
	if err != nil {
		return log.Loaded{}, fmt.Errorf("read %s: %w", name, err)
	}
	clear, secret, err := s.open(raw, c.Salt)
	if err != nil {
		return log.Loaded{}, damaged(name, err)
	}
	hash := log.Hash(blake3.Sum256(append(clear[:len(clear):len(clear)], secret...)))
	if c.Hash != (log.Hash{}) && c.Hash != hash {
		return log.Loaded{}, damaged(name, errors.New("it is another than the log names"))
	}
	if err := s.decode(clear, secret); err != nil {
		return log.Loaded{}, damaged(name, err)
	}
	if s.root.At != c.At {
		return log.Loaded{}, damaged(name, fmt.Errorf("it is of entry %s", s.root.At))
	}
	return log.Loaded{Hash: hash, Head: s.root.Head, Ended: s.root.Ended}, nil
}

// open returns the two halves of a checkpoint's plain bytes.
func (s *State) open(raw []byte, salt log.Salt) (clear, secret []byte, err error) {
	if len(raw) < checkHead+macSize || string(raw[:8]) != checkMagic || log.Salt(raw[16:32]) != salt {
		return nil, nil, errors.New("its header is another's")
	}
	signed := raw[:len(raw)-macSize]
	if s.parts.keys.log.MAC(signed) != log.Hash(raw[len(signed):]) {
		return nil, nil, errors.New("it does not authenticate")
	}
	n, m := uint64(binary.LittleEndian.Uint32(raw[8:])), uint64(binary.LittleEndian.Uint32(raw[12:]))
	if checkHead+n+m != uint64(len(signed)) {
		return nil, nil, errors.New("its sizes do not fit")
	}
	aead, err := s.parts.keys.aead(salt)
	if err != nil {
		return nil, nil, err
	}
	secret, err = aead.Open(nil, nonceZero[:], signed[checkHead+n:], signed[:checkHead+n])
	return signed[checkHead : checkHead+n], secret, err
}

// decode makes the state what a checkpoint says. After an error the state is of no use.
func (s *State) decode(clear, secret []byte) error {
	s.Reset()
	r := &s.root
	d := dec{b: clear}
	r.Count, r.At = d.u64(), d.at()
	copy(r.Head[:], d.take(32))
	r.Ended = d.bool()
	openRuns := getRuns(&d)
	if err := s.takeRows(open, &d, openRuns); err != nil {
		return err
	}
	for range d.count(36) {
		d.take(36)
	}
	x := dec{b: secret}
	r.Term, r.Owner = x.u64(), string(x.bytes())
	r.Forget = log.ReadVolume(x.take(10))
	r.Condemn = x.u64()
	r.Counters = Counters{Points: x.u64(), Packs: x.u64(), Bytes: x.u64(), Condemned: x.u64()}
	for range x.count(18) {
		st := start{Volume: log.ReadVolume(x.take(10))}
		st.Time = int64(x.u64())
		r.Starts = append(r.Starts, st)
	}
	sealedRuns := getRuns(&x)
	if err := s.takeRows(sealed, &x, sealedRuns); err != nil {
		return err
	}
	if err := d.end(); err != nil {
		return err
	}
	return x.end()
}

func (s *State) takeRows(c class, d *dec, runs []tier.Run) error {
	if d.bad {
		return errBody
	}
	rows, rest, err := tier.ReadRows(d.b)
	if err != nil {
		return err
	}
	d.b = rest
	s.tiers[c] = tier.New(s.parts.of(c), rules{s}, runs)
	for _, row := range rows {
		if len(row.Key) == 0 {
			return errBody
		}
		s.rows[c][string(row.Key)] = row
	}
	return nil
}

// Verify reads back, and settles, all that a checkpoint is made of, and returns what it says of
// itself.
func Verify(ctx context.Context, store blob.Store, k *Keys, c log.Checkpoint) (log.Loaded, error) {
	s := New(store, k, Options{})
	loaded, err := s.Load(ctx, c)
	if err != nil {
		return loaded, err
	}
	for c := range classes {
		for _, run := range s.tiers[c].Runs {
			for _, p := range run.Parts {
				if _, err := (classed{s.parts, c}).read(ctx, p); err != nil {
					return loaded, err
				}
				if err := store.Settle(ctx, partName(p)); err != nil {
					return loaded, err
				}
			}
		}
	}
	return loaded, store.Settle(ctx, log.CheckpointName(c))
}

// Digest returns what Checkpoint would, and stores nothing: a second fold compares by it.
func (s *State) Digest(ctx context.Context) (log.Checkpoint, error) {
	p := newParts(s.parts.store, s.parts.keys)
	p.dry = true
	return s.on(p).Checkpoint(ctx)
}
