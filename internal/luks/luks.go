package luks

import (
	"crypto/aes"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"golang.org/x/crypto/xts"
)

const (
	// Sector is what is encrypted at once, in bytes.
	Sector = 512
	// HeaderSize is how long a header with all its key slots is, in bytes.
	HeaderSize = 8*slotBytes + 4096

	keyBytes     = 64 // two AES-256 keys
	stripes      = 4000
	slotBytes    = (keyBytes*stripes + 4095) &^ 4095
	digestBytes  = 20
	saltBytes    = 32
	slotsAt      = 208
	slotEnabled  = 0x00ac71f3
	slotDisabled = 0x0000dead

	// Fewest is what a secret that nobody can guess is worth, in iterations.
	Fewest = 1000
	// guessTime is what each guess of a secret costs, on this machine.
	guessTime = time.Second
)

// Cipher encrypts and decrypts sectors with the key of one volume.
type Cipher struct{ xts *xts.Cipher }

// Encrypt encrypts whole sectors in place, of which the first has that number.
func (c *Cipher) Encrypt(p []byte, sector uint64) {
	for ; len(p) > 0; p, sector = p[Sector:], sector+1 {
		c.xts.Encrypt(p[:Sector], p[:Sector], sector)
	}
}

// Decrypt is the reverse of Encrypt.
func (c *Cipher) Decrypt(p []byte, sector uint64) {
	for ; len(p) > 0; p, sector = p[Sector:], sector+1 {
		c.xts.Decrypt(p[:Sector], p[:Sector], sector)
	}
}

func newCipher(key []byte) (*Cipher, error) {
	c, err := xts.NewCipher(aes.NewCipher, key)
	if err != nil {
		return nil, err
	}
	return &Cipher{c}, nil
}

// Volume is a new encrypted volume.
type Volume struct {
	Header []byte // HeaderSize bytes
	Cipher *Cipher
}

// New makes a volume that is opened with the secret. Each guess of the secret costs that many
// iterations of a hash; with 0 as many as take about a second here, and so does this.
func New(secret []byte, iterations int) (*Volume, error) {
	if iterations == 0 {
		iterations = calibrate()
	}
	return create(secret, iterations)
}

// NewEphemeral makes a volume with a random secret of its own, which it returns.
func NewEphemeral() (v *Volume, secret []byte, err error) {
	secret = []byte(rand.Text() + rand.Text()) // QEMU wants text
	v, err = create(secret, Fewest)
	return v, secret, err
}

// calibrate returns how many iterations take about guessTime.
func calibrate() int {
	const sample = 50_000
	begun := time.Now()
	if _, err := pbkdf2.Key(sha256.New, "sample", make([]byte, saltBytes), sample, keyBytes); err != nil {
		return 100 * Fewest
	}
	took := max(time.Since(begun), time.Microsecond)
	return max(int(sample*guessTime/took), 100*Fewest)
}

func create(secret []byte, iterations int) (*Volume, error) {
	if len(secret) == 0 {
		return nil, errors.New("make an encrypted volume: the secret is empty")
	}
	key := make([]byte, keyBytes)
	rand.Read(key)
	cipher, err := newCipher(key)
	if err != nil {
		return nil, fmt.Errorf("make an encrypted volume: %w", err)
	}
	h := make([]byte, HeaderSize)
	if err := describe(h, key); err != nil {
		return nil, fmt.Errorf("make an encrypted volume: %w", err)
	}
	if err := lockKey(h, key, secret, iterations); err != nil {
		return nil, fmt.Errorf("make an encrypted volume: %w", err)
	}
	return &Volume{Header: h, Cipher: cipher}, nil
}

// describe fills in all but the key slot that is used.
func describe(h, key []byte) error {
	be := binary.BigEndian
	copy(h, "LUKS\xba\xbe\x00\x01")
	copy(h[8:], "aes")
	copy(h[40:], "xts-plain64")
	copy(h[72:], "sha256")
	be.PutUint32(h[104:], HeaderSize/Sector)
	be.PutUint32(h[108:], keyBytes)
	rand.Read(h[132 : 132+saltBytes])
	be.PutUint32(h[164:], Fewest) // the key is random: nobody guesses it
	digest, err := pbkdf2.Key(sha256.New, string(key), h[132:132+saltBytes], Fewest, digestBytes)
	if err != nil {
		return err
	}
	copy(h[112:], digest)
	copy(h[168:], uuid())
	for i := range 8 {
		slot := h[slotsAt+i*48:]
		be.PutUint32(slot, slotDisabled)
		be.PutUint32(slot[40:], uint32(4096+i*slotBytes)/Sector)
		be.PutUint32(slot[44:], stripes)
	}
	return nil
}

// lockKey puts the volume's key into the first slot, for whoever has the secret.
func lockKey(h, key, secret []byte, iterations int) error {
	slot := h[slotsAt:]
	binary.BigEndian.PutUint32(slot, slotEnabled)
	binary.BigEndian.PutUint32(slot[4:], uint32(iterations))
	salt := slot[8 : 8+saltBytes]
	rand.Read(salt)
	derived, err := pbkdf2.Key(sha256.New, string(secret), salt, iterations, keyBytes)
	if err != nil {
		return err
	}
	c, err := newCipher(derived)
	if err != nil {
		return err
	}
	material := h[4096 : 4096+keyBytes*stripes]
	split(material, key)
	c.Encrypt(material, 0)
	return nil
}

// split spreads key over dst, so that losing any part of dst loses it: the specification's AFsplit.
func split(dst, key []byte) {
	sum := make([]byte, len(key))
	last := len(dst) - len(key)
	rand.Read(dst[:last])
	for at := 0; at < last; at += len(key) {
		subtle.XORBytes(sum, sum, dst[at:at+len(key)])
		diffuse(sum)
	}
	subtle.XORBytes(dst[last:], sum, key)
}

// diffuse hashes each piece of p with its number.
func diffuse(p []byte) {
	for i := 0; i*sha256.Size < len(p); i++ {
		piece := p[i*sha256.Size : min((i+1)*sha256.Size, len(p))]
		sum := sha256.Sum256(append(binary.BigEndian.AppendUint32(nil, uint32(i)), piece...))
		copy(piece, sum[:])
	}
}

func uuid() string {
	var b [16]byte
	rand.Read(b[:])
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}
