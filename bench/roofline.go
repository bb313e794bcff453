package main

import (
	"bufio"
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-vm/holdfast/internal/vault/chunk"
)

// roofline is the share that backup and restore reach of what this machine allows. R is the time of
// a program that does what cannot be done without and nothing else, on all processors, with every
// system call and the sync at the end, measured in turns with holdfast. Beside it stands what the
// processors would allow if system calls cost nothing and the disk had no limits: the rates of one
// core, stage by stage.
func (b *bench) roofline() error {
	base, after, err := b.sources()
	if err != nil {
		return err
	}
	want, err := sum(filepath.Join(after, "disk.raw"))
	if err != nil {
		return err
	}
	image := filepath.Join(base, "disk.raw")
	var h, real series
	for range b.rounds {
		if err := b.one(b.holdfastTool("holdfast", nil), &h, base, after, want); err != nil {
			return err
		}
		if err := b.realRound(image, &real); err != nil {
			return err
		}
	}
	fmt.Printf("goal 1  full, share of R: %s (R = %.2f s, all processors, system calls and sync included)   "+
		"wanted 0.80\n", ratio(real.full, h.full), median(real.full))
	fmt.Printf("goal 4  restore, share of R: %s (R = %.2f s)   wanted 0.85\n", ratio(real.restore, h.restore),
		median(real.restore))
	r := &roof{pack: filepath.Join(b.dir, "roof.pack"), disk: filepath.Join(b.dir, "roof.raw")}
	defer func() { _, _ = os.Remove(r.pack), os.Remove(r.disk) }()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := errors.Join(r.backup(image), r.restore()); err != nil {
		return err
	}
	r.down.print("stages  full", r.bytes, median(h.full))
	r.up.print("stages  restore", r.bytes, median(h.restore))
	fmt.Println()
	return nil
}

// realRound measures R once.
func (b *bench) realRound(image string, s *series) error {
	if err := warm(image); err != nil {
		return err
	}
	r, err := newRealRoof(b.dir)
	if err != nil {
		return err
	}
	defer r.close()
	full, err := r.backup(image)
	if err != nil {
		return err
	}
	restore, err := r.restore(image)
	s.full, s.restore = append(s.full, full), append(s.restore, restore)
	return err
}

// realBackup measures the R of a backup once.
func (b *bench) realBackup(image string, s *series) error {
	if err := warm(image); err != nil {
		return err
	}
	r, err := newRealRoof(b.dir)
	if err != nil {
		return err
	}
	defer r.close()
	full, err := r.backup(image)
	s.full = append(s.full, full)
	return err
}

// roof does on one core what a backup and a restore must do at least.
type roof struct {
	pack, disk string // files written
	bytes      int64  // of the image that are not holes
	down, up   stages
	chunks     []roofChunk // in the order of the pack
	gcm        cipher.AEAD
}

type roofChunk struct {
	stored int // bytes in the pack, the tag included
	plain  int // bytes in the image
	enc    chunk.Encoding
	at     []int64 // offsets in the image
}

// stages adds up how long each stage took.
type stages struct {
	names []string
	spent []time.Duration
	from  time.Time
}

func newStages(names ...string) stages {
	return stages{names: names, spent: make([]time.Duration, len(names))}
}

func (s *stages) begin() { s.from = time.Now() }

// end adds the time since the last begin or end to stage i.
func (s *stages) end(i int) {
	now := time.Now()
	s.spent[i] += now.Sub(s.from)
	s.from = now
}

func (s *stages) print(what string, bytes int64, took float64) {
	var total time.Duration
	var rates []string
	for i, d := range s.spent {
		total += d
		rates = append(rates, fmt.Sprintf("%s %.0f", s.names[i], float64(bytes)/1e6/d.Seconds()))
	}
	best := total.Seconds() / float64(runtime.NumCPU())
	fmt.Printf("%s: %.2f of %.2f s (%.0f MB/s), were nothing to be done but them; one core, MB/s of image: %s\n", what,
		best/took, best, float64(bytes)/1e6/best, strings.Join(rates, ", "))
}

var roofAAD [44]byte // as long as the associated data of a pack

func (r *roof) nonce(i int) []byte {
	var n [12]byte
	binary.LittleEndian.PutUint64(n[:], uint64(i))
	return n[:]
}

// Stages of a backup.
const (
	downRead = iota
	downZero
	downHash
	downCompress
	downSeal
	downWrite
)

func (r *roof) backup(image string) error {
	block, err := aes.NewCipher(make([]byte, 32))
	if err != nil {
		return err
	}
	if r.gcm, err = cipher.NewGCM(block); err != nil {
		return err
	}
	in, err := os.Open(image)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(r.pack)
	if err != nil {
		return err
	}
	r.down = newStages("read", "zero test", "keyed BLAKE3", "zstd 2", "seal", "write")
	err = r.pour(in, out)
	return errors.Join(err, out.Close())
}

// pour takes the data of in through all stages to out.
func (r *roof) pour(in, out *os.File) error {
	const readSize = 1 << 20
	hash, codec := chunk.NewHasher([32]byte{1}), chunk.NewCodec(chunk.Fast)
	seen := map[chunk.ID]int{}
	buf, sealed := make([]byte, readSize), make([]byte, 0, readSize+2*chunk.MaxSize)
	flush := func() error {
		r.down.begin()
		_, err := out.Write(sealed)
		r.down.end(downWrite)
		sealed = sealed[:0]
		return err
	}
	err := eachData(in, readSize, func(off, n int64) error {
		r.bytes += n
		r.down.begin()
		if m, err := in.ReadAt(buf[:n], off); int64(m) < n {
			return fmt.Errorf("read %d bytes at offset %d: %w", n, off, err)
		}
		r.down.end(downRead)
		for at := int64(0); at < n; at += chunk.DefaultSize {
			p := buf[at:min(at+chunk.DefaultSize, n)]
			r.down.begin()
			zero := chunk.IsZero(p)
			r.down.end(downZero)
			if zero {
				continue
			}
			id := hash.ID(p)
			r.down.end(downHash)
			if i, ok := seen[id]; ok {
				r.chunks[i].at = append(r.chunks[i].at, off+at)
				continue
			}
			seen[id] = len(r.chunks)
			r.down.begin()
			encoded, enc, err := codec.Encode(p)
			if err != nil {
				return err
			}
			r.down.end(downCompress)
			before := len(sealed)
			sealed = r.gcm.Seal(sealed, r.nonce(len(r.chunks)), encoded, roofAAD[:])
			r.down.end(downSeal)
			r.chunks = append(r.chunks, roofChunk{len(sealed) - before, len(p), enc, []int64{off + at}})
			if len(sealed) >= readSize {
				if err := flush(); err != nil {
					return err
				}
			}
		}
		return nil
	})
	return errors.Join(err, flush())
}

// eachData calls visit for the parts of f that are not holes, in whole chunks and parts of at most
// most bytes.
func eachData(f *os.File, most int64, visit func(off, n int64) error) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	for end := int64(0); end < info.Size(); {
		start, err := unix.Seek(int(f.Fd()), end, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("find data of %s: %w", f.Name(), err)
		}
		hole, err := unix.Seek(int(f.Fd()), start, unix.SEEK_HOLE)
		if err != nil {
			return fmt.Errorf("find a hole of %s: %w", f.Name(), err)
		}
		start = max(end, start/chunk.DefaultSize*chunk.DefaultSize)
		end = min(info.Size(), (hole+chunk.DefaultSize-1)/chunk.DefaultSize*chunk.DefaultSize)
		for off := start; off < end; off += most {
			if err := visit(off, min(most, end-off)); err != nil {
				return err
			}
		}
	}
	return nil
}

// Stages of a restore.
const (
	upRead = iota
	upOpen
	upDecode
	upWrite
)

func (r *roof) restore() error {
	in, err := os.Open(r.pack)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(r.disk)
	if err != nil {
		return err
	}
	r.up = newStages("read", "open", "decode", "write")
	err = r.pourBack(bufio.NewReaderSize(in, 1<<20), out)
	return errors.Join(err, out.Close())
}

func (r *roof) pourBack(in io.Reader, out *os.File) error {
	codec := chunk.NewCodec(chunk.Fast)
	stored, buf := make([]byte, 2*chunk.DefaultSize), make([]byte, chunk.DefaultSize)
	for i, c := range r.chunks {
		r.up.begin()
		if _, err := io.ReadFull(in, stored[:c.stored]); err != nil {
			return err
		}
		r.up.end(upRead)
		encoded, err := r.gcm.Open(stored[:0], r.nonce(i), stored[:c.stored], roofAAD[:])
		if err != nil {
			return err
		}
		r.up.end(upOpen)
		plain := buf[:c.plain]
		if err := codec.Decode(plain, encoded, c.enc); err != nil {
			return err
		}
		r.up.end(upDecode)
		for _, at := range c.at {
			if _, err := out.WriteAt(plain, at); err != nil {
				return err
			}
		}
		r.up.end(upWrite)
	}
	return nil
}
