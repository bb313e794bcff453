package main

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"filippo.io/age"
	"github.com/zeebo/blake3"
	"golang.org/x/crypto/argon2"
)

// vaultDir is an open vault: docs/formats/vault.md.
type vaultDir struct {
	dir       string
	id        []byte
	chunkSize int64
	keys      map[string][]byte // derived, by purpose
	log       *logDir
	state     *logState
	places    map[string][]place // of chunks, nodes and manifests, by ID
}

var (
	hex32   = regexp.MustCompile(`^[0-9a-f]{32}$`)
	keyName = regexp.MustCompile(`^[a-z0-9._-]{1,64}$`)
)

type config struct {
	Format    string
	ID        string
	ChunkSize int64 `json:"chunk_size"`
	Created   string
	MAC       string
}

func open(dir string, keyFile []byte) (*vaultDir, error) {
	raw, err := os.ReadFile(filepath.Join(dir, "vault.json"))
	if err != nil {
		return nil, fmt.Errorf("no vault: %w", err)
	}
	var c config
	if err := json.Unmarshal(raw, &c); err != nil {
		return nil, fmt.Errorf("vault.json: %w", err)
	}
	if c.Format != "holdfast-vault-2" {
		return nil, fmt.Errorf("vault.json: format %q is unknown", c.Format)
	}
	if !hex32.MatchString(c.ID) {
		return nil, fmt.Errorf("vault.json: id %q", c.ID)
	}
	if c.ChunkSize < 16384 || c.ChunkSize > 1048576 || c.ChunkSize&(c.ChunkSize-1) != 0 {
		return nil, fmt.Errorf("vault.json: chunk size %d", c.ChunkSize)
	}
	v := &vaultDir{dir: dir, chunkSize: c.ChunkSize, keys: map[string][]byte{}}
	if v.id, err = hex.DecodeString(c.ID); err != nil {
		return nil, err
	}
	dataKey, err := unlock(dir, c.ID[:8], keyFile)
	if err != nil {
		return nil, err
	}
	for _, purpose := range []string{"chunk id", "node id", "pack", "index", "point", "config"} {
		if v.keys[purpose], err = hkdf.Key(sha256.New, dataKey, v.id, "holdfast vault v1 "+purpose, 32); err != nil {
			return nil, err
		}
	}
	text := fmt.Sprintf("%s\n%s\n%d\n%s\n", c.Format, c.ID, c.ChunkSize, c.Created)
	if hex.EncodeToString(keyedHash(v.keys["config"], []byte(text))) != c.MAC {
		return nil, errors.New("vault.json: its MAC differs")
	}
	if v.log, err = openLog(dir, dataKey, v.id); err != nil {
		return nil, err
	}
	if v.state, err = v.log.state(); err != nil {
		return nil, err
	}
	v.readTables()
	return v, nil
}

func keyedHash(key []byte, parts ...[]byte) []byte {
	h, err := blake3.NewKeyed(key)
	if err != nil {
		panic(err)
	}
	for _, p := range parts {
		h.Write(p)
	}
	return h.Sum(nil)
}

func gcm(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

type slot struct {
	Format, Name, Kind string
	Wrapped            []byte
	Passphrase         *struct {
		Salt, Nonce  []byte
		Time, Memory uint32
		Threads      uint32
	}
}

// unlock tries the key in keyFile on every slot of a vault, the beginning of whose ID is given, and
// returns the data key.
func unlock(dir, vault string, keyFile []byte) ([]byte, error) {
	files, err := os.ReadDir(filepath.Join(dir, "keys"))
	if err != nil {
		return nil, err
	}
	for _, f := range files {
		name, ours := strings.CutPrefix(f.Name(), vault+"-")
		if !ours {
			continue
		}
		raw, err := os.ReadFile(filepath.Join(dir, "keys", f.Name()))
		if err != nil {
			return nil, err
		}
		var s slot
		if json.Unmarshal(raw, &s) != nil || s.Format != "holdfast-key-1" || s.Name != name ||
			!keyName.MatchString(s.Name) {
			continue
		}
		if key := s.open(keyFile); len(key) == 32 {
			return key, nil
		}
	}
	return nil, errors.New("the key opens no slot")
}

func (s *slot) open(keyFile []byte) []byte {
	identity := identityIn(keyFile)
	switch {
	case s.Kind == "age" && identity != "":
		return s.openAge(identity)
	case s.Kind == "passphrase" && identity == "" && s.Passphrase != nil:
		phrase := bytes.TrimSuffix(bytes.TrimSuffix(keyFile, []byte("\n")), []byte("\r"))
		return s.openPassphrase(phrase)
	}
	return nil
}

// identityIn returns the line of a key file that is an age identity, or "".
func identityIn(keyFile []byte) string {
	for line := range strings.Lines(string(keyFile)) {
		if line = strings.TrimSpace(line); strings.HasPrefix(line, "AGE-SECRET-KEY-") {
			return line
		}
	}
	return ""
}

func (s *slot) openAge(identity string) []byte {
	ids, err := age.ParseIdentities(strings.NewReader(identity))
	if err != nil {
		return nil
	}
	r, err := age.Decrypt(bytes.NewReader(s.Wrapped), ids...)
	if err != nil {
		return nil
	}
	key, err := io.ReadAll(r)
	if err != nil {
		return nil
	}
	return key
}

func (s *slot) openPassphrase(phrase []byte) []byte {
	p := s.Passphrase
	if p.Time == 0 || p.Time > 64 || p.Threads == 0 || p.Threads > 255 || p.Memory < 8*p.Threads ||
		p.Memory > 1048576 || len(p.Nonce) != 12 {
		return nil
	}
	aead, err := gcm(argon2.IDKey(phrase, p.Salt, p.Time, p.Memory, uint8(p.Threads), 32))
	if err != nil {
		return nil
	}
	key, err := aead.Open(nil, p.Nonce, s.Wrapped, []byte(s.Name))
	if err != nil {
		return nil
	}
	return key
}

// objects returns the names of the objects below a folder of the store.
func (v *vaultDir) objects(folder string) (names []string, err error) {
	err = filepath.WalkDir(filepath.Join(v.dir, folder), func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil && d.Type().IsRegular() {
			names = append(names, strings.TrimPrefix(filepath.ToSlash(strings.TrimPrefix(path, v.dir)), "/"))
		}
		return err
	})
	return names, err
}

func (v *vaultDir) read(name string) ([]byte, error) { return os.ReadFile(filepath.Join(v.dir, name)) }
