package vault

import (
	"bytes"
	"encoding/hex"
	"errors"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-vm/holdfast/internal/point"
)

// fill gives every field below v a value that is unlikely to come about otherwise, so that one which is not coded is missed.
func fill(v reflect.Value, rng *rand.Rand) {
	switch v.Kind() {
	case reflect.String:
		v.SetString(strings.Repeat("x", rng.IntN(4)) + string(rune('a'+rng.IntN(26))))
	case reflect.Bool:
		v.SetBool(rng.IntN(2) == 0)
	case reflect.Int64:
		v.SetInt(rng.Int64() - rng.Int64())
	case reflect.Uint32:
		v.SetUint(uint64(rng.Uint32()))
	case reflect.Float64:
		v.SetFloat(rng.NormFloat64())
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem(), rng)
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), rng.IntN(4), 4))
		for i := range v.Len() {
			fill(v.Index(i), rng)
		}
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		for range rng.IntN(4) {
			k, e := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
			fill(k, rng)
			fill(e, rng)
			v.SetMapIndex(k, e)
		}
	case reflect.Struct:
		if v.Type() == reflect.TypeFor[time.Time]() {
			v.Set(reflect.ValueOf(time.Unix(rng.Int64N(1<<40)-1<<39, rng.Int64N(1e9)).UTC()))
			return
		}
		for i := range v.NumField() {
			fill(v.Field(i), rng)
		}
	default:
		panic("a point has fields that a list does not know: " + v.Kind().String())
	}
}

// Whatever fields a point has, a list gives them back, those of the definition apart.
func TestListsKeepEveryField(t *testing.T) {
	v := &Vault{}
	for seed := range uint64(200) {
		rng := rand.New(rand.NewPCG(seed, 77))
		var want []*summary
		for range rng.IntN(6) {
			p := &point.RecoveryPoint{}
			if rng.IntN(4) > 0 {
				fill(reflect.ValueOf(p).Elem(), rng)
			}
			p.Time = p.Time.UTC()
			want = append(want, summaryOf(p))
		}
		name, raw, err := v.sealList(want)
		if err != nil {
			t.Fatal(err)
		}
		l, err := v.openList(name, raw)
		if err != nil || len(l.rows) != len(want) {
			t.Fatalf("seed %d: %+v, %v; want %d points", seed, l, err, len(want))
		}
		slices.SortStableFunc(want, func(a, b *summary) int { return strings.Compare(string(a.ID), string(b.ID)) })
		var one summary // which has what the row before has left in it
		for i, got := range l.all() {
			if l.read(l.rows[i], &one); !reflect.DeepEqual(&one, want[i]) {
				t.Fatalf("seed %d: got\n%+v, want\n%+v", seed, one, want[i])
			}
			if !reflect.DeepEqual(got, want[i]) || !l.has(got.ID) || l.has(got.ID+"x") {
				t.Fatalf("seed %d: got\n%+v, want\n%+v", seed, got, want[i])
			}
		}
	}
}

// A summary is the whole point exactly when the point has nothing that a list does not have.
func TestSummariesKnowWhetherTheyAreWhole(t *testing.T) {
	encrypted := []point.Disk{{Name: "a"}, {Name: "b", Source: point.Source{Encryption: &point.Encryption{Format: "luks"}}}}
	for _, tt := range []struct {
		p    point.RecoveryPoint
		want bool
	}{
		{point.RecoveryPoint{}, true},
		{point.RecoveryPoint{Definition: point.Definition{Kind: "image"}, Disks: []point.Disk{{Name: "a"}}}, true},
		{point.RecoveryPoint{Definition: point.Definition{Kind: "qemu", Args: []string{"qemu"}}}, false},
		{point.RecoveryPoint{Definition: point.Definition{LiveXML: "<domain/>"}}, false},
		{point.RecoveryPoint{NotHeld: []point.Omission{{Kind: "pmem"}}}, false},
		{point.RecoveryPoint{Disks: encrypted}, false},
	} {
		s := summaryOf(&tt.p)
		if s.whole != tt.want || s.Definition.Kind != tt.p.Definition.Kind {
			t.Errorf("%+v: whole %v", tt.p, s.whole)
		}
	}
	if encrypted[1].Source.Encryption == nil {
		t.Error("the point itself was changed")
	}
}

// Any bytes open as a list or are ErrCorrupt; so do any that somebody with the key has sealed.
func FuzzList(f *testing.F) {
	v := &Vault{}
	rng := rand.New(rand.NewPCG(1, 2))
	p := &point.RecoveryPoint{}
	fill(reflect.ValueOf(p).Elem(), rng)
	for _, points := range [][]*summary{nil, {summaryOf(p)}, {summaryOf(p), summaryOf(&point.RecoveryPoint{})}} {
		_, raw, err := v.sealList(points)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw, false)
		f.Add(encodeList(points), true)
	}
	f.Add([]byte{1, 1, 'x', 0xff, 0xff, 0xff, 0xff, 0x0f}, true)
	f.Fuzz(func(t *testing.T, b []byte, sealed bool) {
		if sealed {
			l, err := parseList(b)
			if err != nil {
				return
			}
			points := l.all()
			again, err := parseList(encodeList(points))
			if err != nil || !bytes.Equal(encodeList(again.all()), encodeList(points)) {
				t.Fatalf("%d points are written and %+v read, %v", len(points), again, err)
			}
			return
		}
		name := listsPrefix + strings.Repeat("0", 32)
		if len(b) >= 24 {
			name = listsPrefix + hex.EncodeToString(b[8:24])
		}
		if _, err := v.openList(name, b); err != nil && !errors.Is(err, ErrCorrupt) {
			t.Fatal(err)
		}
		if l, err := v.openList(listsPrefix+"x", b); err == nil {
			t.Fatalf("opens under another name, with %d points", len(l.rows))
		}
	})
}
