package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// cold is goal 7 where nothing is in memory but what the kernel has of the repository's files: each
// round is a fresh process. The peers keep larger pieces: borg blocks of 4 MiB, which is what the
// goal speaks of, and restic blobs of 0.5 to 8 MiB, 1 MiB on average, both through their FUSE
// mounts; and qcow2 clusters of 2 MiB, zstd, the largest there are, through qemu-nbd.
func (e *exportBench) cold() error {
	base, _, err := e.sources()
	if err != nil {
		return err
	}
	image := filepath.Join(base, "disk.raw")
	repo, err := e.backedUp(image)
	if err != nil {
		return err
	}
	restic, borg := e.tools()[1], e.tools()[2]
	borg.backup = func(string) []string {
		return []string{"borg", "create", "-C", "zstd,1", "--chunker-params", "fixed,4194304", "::4m", "disk.raw"}
	}
	resticRepo, borgRepo := filepath.Join(e.dir, "restic"), filepath.Join(e.dir, "borg")
	for repo, t := range map[string]tool{resticRepo: restic, borgRepo: borg} {
		for _, argv := range [][]string{t.init(repo), t.backup(repo)} {
			if _, err := t.do(base, repo, e.dir, argv); err != nil {
				return err
			}
		}
	}
	squashed := filepath.Join(e.dir, "disk.qcow2")
	if err := sh(`qemu-img convert -O qcow2 -c -o compression_type=zstd,cluster_size=2M "$1" "$2"`, image, squashed); err != nil {
		return err
	}
	dir := filepath.Join(e.dir, "mnt")
	var h, b, rs, q []float64
	for range e.rounds {
		for _, s := range []struct {
			name string
			got  *[]float64
			run  func() (float64, error)
		}{
			{"holdfast", &h, func() (float64, error) { return e.coldHoldfast(repo) }},
			{"borg mount", &b, func() (float64, error) {
				return e.coldMount(borg.env(borgRepo), filepath.Join(dir, "4m", "disk.raw"), image, "borg", "mount",
					"--foreground", "::", dir)
			}},
			{"restic mount", &rs, func() (float64, error) {
				return e.coldMount(restic.env(resticRepo), filepath.Join(dir, "snapshots", "latest", "disk.raw"), image,
					"restic", "-q", "mount", dir)
			}},
			{"qemu-nbd", &q, func() (float64, error) { return e.coldQcow2(squashed) }},
		} {
			iops, err := s.run()
			if err != nil {
				return fmt.Errorf("%s: %w", s.name, err)
			}
			*s.got = append(*s.got, iops)
		}
	}
	fmt.Printf("goal 7  cold random 4 KiB reads: holdfast %.0f/s; borg mount, chunks of 4 MiB %.0f/s: %s   wanted "+
		"20x\n", median(h), median(b), ratio(h, b))
	fmt.Printf("        beside it: restic mount, 1 MiB on average %.0f/s: %s; qcow2 zstd, clusters of 2 MiB %.0f/s: "+
		"%s\n", median(rs), ratio(h, rs), median(q), ratio(h, q))
	return nil
}

func (e *exportBench) coldHoldfast(repo string) (float64, error) {
	s, _, err := e.startExport(repo, "bench@latest")
	if err != nil {
		return 0, err
	}
	iops, err := fio(coldReads, e.size, "--ioengine=nbd", "--uri="+s.uri, "--iodepth=1")
	return iops, errors.Join(err, s.stop())
}

func (e *exportBench) coldQcow2(image string) (float64, error) {
	s, err := serveRaw(image, "qcow2", filepath.Join(e.dir, "cold.sock"))
	if err != nil {
		return 0, err
	}
	iops, err := fio(coldReads/5, e.size, "--ioengine=nbd", "--uri="+s.uri, "--iodepth=1")
	return iops, errors.Join(err, s.stop())
}

// coldMount reads file, which is the image, as long as a tool mounts its repository.
func (e *exportBench) coldMount(env []string, file, image string, argv ...string) (iops float64, err error) {
	dir := filepath.Join(e.dir, "mnt")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return 0, err
	}
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	defer func() {
		err = errors.Join(err, sh(`fusermount3 -u "$1" || umount "$1"`, dir), cmd.Wait())
	}()
	for deadline := time.Now().Add(time.Minute); ; {
		if info, err := os.Stat(file); err == nil && info.Size() == e.size {
			break
		}
		if time.Now().After(deadline) {
			return 0, fmt.Errorf("%s mounted nothing in a minute", argv[0])
		}
		time.Sleep(20 * time.Millisecond)
	}
	if err := samePlace(file, image, e.size/3); err != nil {
		return 0, err
	}
	return fio(coldReads/5, e.size, "--ioengine=psync", "--fadvise_hint=random", "--readonly", "--filename="+file)
}

// samePlace compares 64 KiB of two files.
func samePlace(a, b string, off int64) error {
	var got [2][]byte
	for i, name := range []string{a, b} {
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		got[i] = make([]byte, 64<<10)
		_, err = f.ReadAt(got[i], off)
		f.Close()
		if err != nil && err != io.EOF {
			return err
		}
	}
	if string(got[0]) != string(got[1]) {
		return fmt.Errorf("%s and %s differ at %d", a, b, off)
	}
	return nil
}
