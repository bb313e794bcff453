package main

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// imageFiles is how many bytes of real files the image holds at least, and randomFiles how many of
// random bytes in addition.
const (
	imageFiles  = 2600 << 20
	randomFiles = 400 << 20
)

// sources returns base/disk.raw, an ext4 image of real files, and after/disk.raw, the same after
// 400 random 64 KiB writes.
func (b *bench) sources() (base, after string, err error) {
	base, after = filepath.Join(b.dir, "base"), filepath.Join(b.dir, "after")
	if _, err := os.Stat(filepath.Join(after, "disk.raw")); err == nil {
		return base, after, nil
	}
	fmt.Println("making the image of real files …")
	for _, d := range []string{base, after} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return "", "", err
		}
	}
	stage := filepath.Join(b.dir, "stage")
	defer os.RemoveAll(stage)
	if err := b.stage(stage); err != nil {
		return "", "", err
	}
	image := filepath.Join(base, "disk.raw")
	if err := sh(`rm -f "$1" && truncate -s "$2" "$1" && mke2fs -q -F -t ext4 -d "$3" "$1"`, image, fmt.Sprint(b.size), stage); err != nil {
		return "", "", err
	}
	tmp := filepath.Join(after, "tmp.raw")
	if err := sh(`cp --sparse=always "$1" "$2"`, image, tmp); err != nil {
		return "", "", err
	}
	if err := scribble(tmp, b.size, 400, 1); err != nil {
		return "", "", err
	}
	return base, after, os.Rename(tmp, filepath.Join(after, "disk.raw"))
}

// stage gathers files of this machine: its system, Go's tree and module cache, until there are
// enough.
func (b *bench) stage(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	goroot, _ := exec.Command("go", "env", "GOROOT").Output()
	modcache, _ := exec.Command("go", "env", "GOMODCACHE").Output()
	var have int64
	for i, src := range []string{"/usr/lib", strings.TrimSpace(string(goroot)), "/usr/share", "/usr/bin",
		strings.TrimSpace(string(modcache)), "/var/lib", "/opt"} {
		if have >= imageFiles {
			break
		}
		left := imageFiles - have
		// tar stops at head's end: a part of the last folder is enough.
		_ = sh(`mkdir -p "$2" && tar -C "$1" --exclude='.cache' -cf - . 2>/dev/null | head -c "$3" | tar -C "$2" -xf - 2>/dev/null`, src, filepath.Join(dir, fmt.Sprint(i)), fmt.Sprint(left+left/20))
		n, err := stored(dir)
		if err != nil {
			return err
		}
		have = n
	}
	if have < imageFiles*9/10 {
		return fmt.Errorf("this machine has only %d bytes of files to make an image of", have)
	}
	return randomFile(filepath.Join(dir, "random"), randomFiles, 7)
}

func randomFile(name string, n int64, seed uint64) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	var key [32]byte
	key[0] = byte(seed)
	if _, err := io.CopyN(f, rand.NewChaCha8(key), n); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}

// scribble overwrites count random aligned blocks of 64 KiB with random bytes.
func scribble(name string, size int64, count int, seed uint64) error {
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	var key [32]byte
	key[0] = byte(seed)
	src := rand.NewChaCha8(key)
	rng := rand.New(src)
	p := make([]byte, 64<<10)
	for range count {
		src.Read(p)
		if _, err := f.WriteAt(p, rng.Int64N(size/int64(len(p)))*int64(len(p))); err != nil {
			f.Close()
			return err
		}
	}
	return f.Close()
}

func sh(script string, args ...string) error {
	out, err := exec.Command("sh", append([]string{"-c", script, "sh"}, args...)...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w\n%s", script, err, out)
	}
	return nil
}

// warm reads a file, or all below a directory, so that it is in the page cache.
func warm(name string) error { return sh(`find "$1" -type f -exec cat {} + >/dev/null`, name) }

func sum(name string) (string, error) {
	f, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}
