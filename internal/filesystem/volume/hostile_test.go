package volume

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"strings"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/filesystem"
)

// crowded is a disk of 64 KiB whose GPT says 256 times that there is a partition of all of it.
func crowded() []byte {
	const count, start = 256, 2
	disk := make([]byte, 64<<10)
	le := binary.LittleEndian
	disk[446+4], disk[510], disk[511] = 0xee, 0x55, 0xaa
	le.PutUint32(disk[446+8:], 1)
	le.PutUint32(disk[446+12:], 127)
	h, entries := disk[512:1024], disk[1024:1024+count*128]
	for i := range count {
		entries[i*128] = 1
		le.PutUint64(entries[i*128+32:], 100)
		le.PutUint64(entries[i*128+40:], 120)
	}
	copy(h, "EFI PART")
	le.PutUint32(h[12:], 92)
	le.PutUint64(h[24:], 1)
	le.PutUint64(h[72:], start)
	le.PutUint32(h[80:], count)
	le.PutUint32(h[84:], 128)
	le.PutUint32(h[88:], crc32.ChecksumIEEE(entries))
	le.PutUint32(h[16:], crc32.ChecksumIEEE(h[:92]))
	return disk
}

// There are as many volumes as a guest likes. Those beyond a limit are counted.
func TestTooManyVolumes(t *testing.T) {
	var disks []Disk
	data := crowded()
	for i := range 20 {
		disks = append(disks, disk(fmt.Sprintf("vd%c", 'a'+i), data))
	}
	v := Scan(t.Context(), disks)
	if len(v.List) != maxVolumes || len(v.Notes) != 1 ||
		v.Notes[0] != "there are more than 4096 volumes: 1024 are left out" {
		t.Errorf("%d volumes, %q", len(v.List), v.Notes)
	}
}

// An fstab of thousands of lines is looked at as far as a machine has file systems.
func TestTooManyMounts(t *testing.T) {
	var lines strings.Builder
	lines.WriteString("UUID=1111-aa / ext4\n")
	for i := range 3000 {
		fmt.Fprintf(&lines, "LABEL=none%d /srv ext4 nofail\n", i)
	}
	g, err := machine(lines.String()).Guest()
	if err != nil {
		t.Fatal(err)
	}
	if len(g.Notes) != 1+maxMounts || !strings.Contains(g.Notes[0], "3000 file systems") {
		t.Errorf("%d notes: %.200q", len(g.Notes), g.Notes)
	}
}

// Where the caller has no more time, the way of a path ends, whatever its links are.
func TestResolveEnds(t *testing.T) {
	v := machine(fstab)
	ctx, cancel := context.WithCancelCause(context.Background())
	v.ctx = ctx
	g, err := v.Guest()
	if err != nil {
		t.Fatal(err)
	}
	late := errors.New("too late")
	cancel(late)
	if _, err := g.Resolve("/etc/fstab", true); !errors.Is(err, late) {
		t.Errorf("%v", err)
	}
}

// A file system is open as long as somebody wants it to be, and is the same one so long.
func TestOpenAndClose(t *testing.T) {
	opened := 0
	v := &Volume{Name: "vda1", open: func(io.ReaderAt, int64) (filesystem.FS, error) {
		opened++
		return ext("1", "one"), nil
	}}
	if info, err := v.Info(); err != nil || info.Label != "one" || opened != 1 {
		t.Errorf("%+v, %v, opened %d times", info, err, opened)
	}
	first, err := v.Open()
	if err != nil || opened != 2 {
		t.Errorf("after Info: %v, opened %d times", err, opened)
	}
	_, err = v.Info()
	if again, err2 := v.Open(); err != nil || err2 != nil || again != first || opened != 2 {
		t.Errorf("%v, %v, opened %d times", err, err2, opened)
	}
	v.Close()
	if again, err := v.Open(); err != nil || again == first || opened != 3 {
		t.Errorf("after Close: %v, opened %d times", err, opened)
	}
}
