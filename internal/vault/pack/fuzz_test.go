package pack

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/blob"
	"github.com/holdfast-vm/holdfast/internal/blob/mem"
	"github.com/holdfast-vm/holdfast/internal/vault/log"
)

// FuzzTable: any plain table is refused, or reads as rows that fill a pack and make the same table.
func FuzzTable(f *testing.F) {
	_, p := small(f)
	own := p.entries[0].Salt
	o := origins{own: own}
	w := Writer{entries: p.entries, origins: o}
	for i := range p.entries {
		w.origins.add(p.entries[i].Salt)
	}
	end := uint32(p.entries[2].Offset + p.entries[2].Stored)
	f.Add(w.table(), uint32(len(p.entries)), uint32(len(w.origins.salts)), end)
	f.Add([]byte{}, uint32(0), uint32(0), uint32(HeaderSize))
	f.Add(make([]byte, RowSize+saltSize), uint32(1), uint32(1), uint32(HeaderSize))
	f.Fuzz(func(t *testing.T, plain []byte, rows, origs, end uint32) {
		foot := footer{rows: int(rows), origins: int(origs), table: int64(end)}
		if rows > MaxEntries || origs >= MaxOrigins || len(plain) != foot.tableSize()-TagSize {
			return // the footer's size says so before
		}
		entries, err := parseTable(plain, &foot, own)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Fatalf("refused with %v", err)
			}
			return
		}
		if err := refill(entries, plain, own, end); err != nil {
			t.Fatal(err)
		}
	})
}

// refill checks that rows which were read fill a pack up to end, and make the table anew.
func refill(entries []Entry, plain []byte, own log.Salt, end uint32) error {
	w := Writer{entries: entries, origins: origins{own: own}}
	at := uint64(HeaderSize)
	for i := range entries {
		e := &entries[i]
		if uint64(e.Offset) != at || int(e.Plain) > e.Kind.maxPlain() {
			return fmt.Errorf("row %d is %+v", i, *e)
		}
		at += uint64(e.Stored)
		w.origins.add(e.Salt)
	}
	if at != uint64(end) {
		return fmt.Errorf("rows end at %d, not at %d", at, end)
	}
	salts := map[log.Salt]bool{own: true}
	for s := plain[len(entries)*RowSize:]; len(s) > 0; s = s[saltSize:] {
		if salts[log.Salt(s)] {
			return nil // one origin stands there twice, which no writer does
		}
		salts[log.Salt(s)] = true
	}
	if !bytes.Equal(w.table(), plain) {
		return errors.New("rows make another table")
	}
	return nil
}

// FuzzPack: any bytes are a pack with a table that fits them, or ErrCorrupt; with seal, checksums
// and table are made right first, as one who has the key could.
func FuzzPack(f *testing.F) {
	s, p := small(f)
	whole := s.bytes(f, p)
	for _, seal := range []bool{false, true} {
		f.Add(whole, seal)
		f.Add(whole[:len(whole)-1], seal)
		f.Add(whole[HeaderSize:], seal)
		f.Add([]byte{}, seal)
	}
	f.Fuzz(func(t *testing.T, b []byte, seal bool) {
		if seal {
			reseal(t, b)
		}
		store := mem.New()
		o := log.Object{ID: testID(1), Kind: log.Pack}
		if err := blob.Put(context.Background(), store, o.Name(), b); err != nil {
			t.Fatal(err)
		}
		o, entries, err := testSecret.Look(context.Background(), store, testVault, o.ID)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Fatalf("refused with %v", err)
			}
			return
		}
		if _, err := testSecret.Table(context.Background(), store, testVault, o); err != nil {
			t.Fatalf("a look says %+v, and then: %v", o, err)
		}
		r := NewReader(testSecret, store)
		for i := range entries {
			e := &entries[i]
			sealed := make([]byte, e.Stored)
			if err := r.ReadSealed(context.Background(), o, sealed, int64(e.Offset)); err != nil {
				t.Fatalf("row %d of %d is not there: %v", i, len(entries), err)
			}
			if _, err := r.Unseal(e, sealed); err != nil && !errors.Is(err, ErrCorrupt) {
				t.Fatal(err)
			}
		}
	})
}

// reseal makes header, table's seal and checksum of b right, if there is a place for them: what
// lies where the sealed table must is taken for a plain one.
func reseal(t *testing.T, b []byte) {
	if len(b) < HeaderSize+TagSize+FooterSize {
		return
	}
	copy(b, header(testVault, testID(1), log.Salt(b[HeaderSize-saltSize:])))
	copy(b[len(b)-len(footMagic):], footMagic)
	foot, err := parseFooter(b[len(b)-FooterSize:], int64(len(b)))
	if err != nil {
		return
	}
	k, err := testSecret.derive(log.Salt(b[HeaderSize-saltSize:]))
	if err != nil {
		t.Fatal(err)
	}
	plain := bytes.Clone(b[foot.table:][:foot.tableSize()-TagSize])
	copy(b[foot.table:], foot.trailer(k, b[:HeaderSize], plain))
}

// FuzzMake: whatever a recipe says, Make reads no more than a pack can have, or refuses.
func FuzzMake(f *testing.F) {
	f.Add(uint64(0), uint64(64), uint64(64), uint64(100))
	f.Add(uint64(1)<<63, uint64(1)<<63, uint64(0), uint64(1)<<29)
	f.Add(uint64(1)<<29, uint64(1)<<29, uint64(1), uint64(1)<<30)
	f.Fuzz(func(t *testing.T, off1, len1, off2, len2 uint64) {
		r := log.Recipe{Makes: testID(1), Pieces: []log.Piece{{Kind: log.Part, Offset: off1, Length: len1},
			{Of: testID(2), Kind: log.Pack, Offset: off2, Length: len2}}}
		enough := errors.New("enough")
		var asked, wrote uint64
		read := func(_ context.Context, _ log.ObjectID, _ log.ObjectKind, p []byte, off int64) error {
			if asked += uint64(len(p)); off < 0 || off+int64(len(p)) > MaxSize || asked > MaxSize {
				t.Fatalf("%d bytes at %d", len(p), off)
			}
			if asked > 1<<22 {
				return enough
			}
			return nil
		}
		w := writerFunc(func(p []byte) (int, error) {
			wrote += uint64(len(p))
			return len(p), nil
		})
		err := Make(context.Background(), r, testID(3), read, w)
		if err == nil && wrote != len1+len2 || err != nil && !errors.Is(err, ErrCorrupt) && !errors.Is(err, enough) {
			t.Fatalf("%d bytes of %d and %d: %v", wrote, len1, len2, err)
		}
	})
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }
