package partition_test

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/filesystem"
	"github.com/holdfast-vm/holdfast/internal/filesystem/partition"
)

// makeDisk has sfdisk write a table into a new file of size bytes.
func makeDisk(t *testing.T, size int64, script string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "vda")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Truncate(size), f.Close()); err != nil {
		t.Fatal(err)
	}
	run(t, script, "sfdisk", "--quiet", "--no-reread", "--no-tell-kernel", path)
	return path
}

func run(t *testing.T, stdin, name string, args ...string) []byte {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Stdin = strings.NewReader(stdin)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, stderr.String())
	}
	return out
}

// fdisk makes a GPT of sectors of 4096 bytes, which sfdisk cannot.
func fdisk(t *testing.T, size int64) string {
	t.Helper()
	path := makeDisk(t, size, "label: dos\n")
	run(t, "g\nn\n\n\n+1M\nn\n\n\n+2M\nw\n", "fdisk", "-b", "4096", path)
	return path
}

// sfdisk returns what it says of a disk, extended partitions left out.
func sfdisk(t *testing.T, path string) (table partition.Table) {
	t.Helper()
	var doc struct {
		Table struct {
			Label, ID  string
			Partitions []struct {
				Node             string
				Start, Size      int64
				Type, UUID, Name string
			} `json:"partitions"`
		} `json:"partitiontable"`
	}
	if err := json.Unmarshal(run(t, "", "sfdisk", "--json", path), &doc); err != nil {
		t.Fatal(err)
	}
	table.Kind, table.UUID = partition.GPT, strings.ToLower(doc.Table.ID)
	if doc.Table.Label == "dos" {
		table.Kind, table.UUID = partition.MBR, strings.TrimPrefix(table.UUID, "0x")
	}
	for _, p := range doc.Table.Partitions {
		var n int
		if _, err := fmt.Sscanf(strings.TrimPrefix(p.Node, path), "%d", &n); err != nil {
			t.Fatal(err)
		}
		own := partition.Partition{Number: n, Offset: p.Start * 512, Size: p.Size * 512, Type: strings.ToLower(p.Type),
			Label: p.Name, UUID: strings.ToLower(p.UUID)}
		if table.Kind == partition.MBR {
			if p.Type == "5" || p.Type == "f" || p.Type == "85" {
				continue
			}
			own.Type, own.UUID = fmt.Sprintf("0x%02s", own.Type), fmt.Sprintf("%s-%02x", table.UUID, n)
		}
		table.Partitions = append(table.Partitions, own)
	}
	return table
}

func read(t *testing.T, path string) (*partition.Table, error) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return partition.Read(bytes.NewReader(data), int64(len(data)))
}

const mebi = 1 << 20

// Whatever sfdisk writes is read as sfdisk reads it.
func TestReadsWhatSfdiskWrites(t *testing.T) {
	for _, tt := range []struct{ name, script string }{
		{"gpt", "label: gpt\nsize=1M, type=U, name=\"EFI System\"\nsize=2M, type=L, name=\"größe\"\n, , L\n"},
		{"gpt with a gap", "label: gpt\n1: start=2048, size=2048\n7: start=8192, size=2048\n"},
		{"gpt of many", "label: gpt\n" + strings.Repeat(", 1M\n", 12)},
		{"mbr", "label: dos\n, 1M, L, *\n, 2M, 7\n"},
		{"mbr without an identifier", "label: dos\nlabel-id: 0x00000000\n, 1M, L\n"},
		{"logical", "label: dos\n, 1M\n, 10M, E\n, 1M\n, 1M, 83\n, 2M, 8e\n"},
		{"logical behind an empty slot",
			"label: dos\n2: start=2048, size=2048\n4: start=6144, size=16384, type=f\n5: start=8192, size=2048\n6: " +
				"start=12288, size=2048\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := makeDisk(t, 16*mebi, tt.script)
			got, err := read(t, path)
			if err != nil {
				t.Fatal(err)
			}
			want := sfdisk(t, path)
			if strings.Contains(tt.name, "without an identifier") {
				want.UUID, want.Partitions[0].UUID = "", ""
			}
			if got.Kind != want.Kind || got.UUID != want.UUID || got.SectorSize != 512 || len(got.Notes) != 0 ||
				!slices.Equal(got.Partitions, want.Partitions) {
				t.Errorf("got  %+v\nwant %+v", got, want)
			}
		})
	}
}

// change writes p at off into the disk.
func change(t *testing.T, path string, off int64, p []byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteAt(p, off)
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
}

// Wherever the primary GPT is damaged, the backup shows the same partitions; with both damaged it
// is an error, and never half a table.
func TestBackupGPT(t *testing.T) {
	for sector, make := range map[int64]func(*testing.T) string{
		512: func(t *testing.T) string {
			return makeDisk(t, 16*mebi, "label: gpt\nsize=1M, type=U\nsize=2M, name=root\n")
		},
		4096: func(t *testing.T) string { return fdisk(t, 16*mebi) },
	} {
		for _, at := range []int64{0, 16, 24, 56, 72, 80, 88, sector, sector + 32, 3 * sector} {
			path := make(t)
			want, err := read(t, path)
			if err != nil || len(want.Partitions) != 2 || want.Partitions[0].Size != mebi ||
				want.Partitions[1].Size != 2*mebi {
				t.Fatalf("%+v, %v", want, err)
			}
			change(t, path, sector+at, []byte{0xa5})
			got, err := read(t, path)
			if err != nil {
				t.Fatalf("sector size %d, byte %d: %v", sector, at, err)
			}
			if !slices.Equal(got.Partitions, want.Partitions) || got.SectorSize != sector || len(got.Notes) != 1 {
				t.Errorf("sector size %d, byte %d: got %+v, want %+v", sector, at, got, want)
			}
			change(t, path, 16*mebi-sector+20, []byte{0xa5})
			if got, err := read(t, path); !errors.Is(err, filesystem.ErrCorrupt) {
				t.Errorf("sector size %d, byte %d: both are damaged: %+v, %v", sector, at, got, err)
			}
		}
	}
}

// A disk that was made larger has its backup in the middle; one that was made smaller has none, and
// partitions that are cut.
func TestResizedDisks(t *testing.T) {
	path := makeDisk(t, 16*mebi, "label: gpt\n, 1M\n, \n")
	if err := os.Truncate(path, 32*mebi); err != nil {
		t.Fatal(err)
	}
	want, err := read(t, path)
	if err != nil || len(want.Notes) != 0 {
		t.Fatalf("%+v, %v", want, err)
	}
	change(t, path, 512+90, []byte{0xa5})
	if got, err := read(t, path); err != nil || !slices.Equal(got.Partitions, want.Partitions) {
		t.Errorf("grown, with the primary damaged: %+v, %v", got, err)
	}

	path = makeDisk(t, 16*mebi, "label: gpt\n, 1M\n, 4M\n, 1M\n")
	if err := os.Truncate(path, 4*mebi); err != nil {
		t.Fatal(err)
	}
	got, err := read(t, path)
	if err != nil || len(got.Partitions) != 2 || got.Partitions[1].Offset+got.Partitions[1].Size != 4*mebi ||
		len(got.Notes) != 2 {
		t.Errorf("cut off: %+v, %v", got, err)
	}
}

// Linux takes the GPT of a disk whose MBR is a hybrid, or lost; and not the GPT of a disk whose MBR
// says nothing of it.
func TestWhichTableCounts(t *testing.T) {
	entry := func(kind byte, start, count uint32) []byte {
		e := append(make([]byte, 4), kind, 0, 0, 0)
		return binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint32(e, start), count)
	}
	disk := func() string { return makeDisk(t, 16*mebi, "label: gpt\n, 1M\n, 2M\n") }

	hybrid := disk()
	change(t, hybrid, 446+16, entry(0x83, 2048, 2048))
	if got, err := read(t, hybrid); err != nil || got.Kind != partition.GPT || len(got.Partitions) != 2 {
		t.Errorf("hybrid: %+v, %v", got, err)
	}
	lost := disk()
	change(t, lost, 0, make([]byte, 512))
	if got, err := read(t, lost); err != nil || got.Kind != partition.GPT || len(got.Partitions) != 2 ||
		len(got.Notes) != 1 {
		t.Errorf("lost MBR: %+v, %v", got, err)
	}
	plain := disk()
	change(t, plain, 446, entry(0x83, 2048, 2048))
	if got, err := read(t, plain); err != nil || got.Kind != partition.MBR || len(got.Partitions) != 1 {
		t.Errorf("MBR beside a GPT that it does not speak of: %+v, %v", got, err)
	}
}

// A whole disk may be a file system: its boot sector is not a table.
func TestFileSystemsAreNoTables(t *testing.T) {
	for _, cmd := range []string{"mkfs.vfat -C %s 8192", "mkfs.vfat --mbr=y -C %s 8192", "mkntfs -qFf %s",
		"mkfs.ext4 -qF %s", "mkswap -q %s"} {
		t.Run(cmd, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "vda")
			if !strings.Contains(cmd, "-C") {
				if err := os.WriteFile(path, make([]byte, 8*mebi), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			run(t, "", "sh", "-c", fmt.Sprintf(cmd, path)+" >&2")
			if got, err := read(t, path); !errors.Is(err, filesystem.ErrNotThis) {
				t.Errorf("%+v, %v", got, err)
			}
		})
	}
	for size := range 3 {
		if got, err := partition.Read(bytes.NewReader(make([]byte, size*400)), int64(size*400)); !errors.Is(err,
			filesystem.ErrNotThis) {
			t.Errorf("%d zeros: %+v, %v", size*400, got, err)
		}
	}
}

// A chain of logical partitions that comes back to itself ends.
func TestLoopOfLogicalPartitions(t *testing.T) {
	path := makeDisk(t, 16*mebi, "label: dos\n, 1M\n, 10M, E\n, 1M\n, 1M\n")
	want, err := read(t, path)
	if err != nil || len(want.Partitions) != 3 {
		t.Fatalf("%+v, %v", want, err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	ext := int64(binary.LittleEndian.Uint32(data[446+16+8:]))
	// of the link in the first: itself, nothing, the second, beyond the end
	for _, target := range []uint32{0, 1, 2048, 1 << 30} {
		bad := bytes.Clone(data)
		binary.LittleEndian.PutUint32(bad[ext*512+446+16+8:], target)
		got, err := partition.Read(bytes.NewReader(bad), int64(len(bad)))
		if err != nil || len(got.Partitions) > 128 || len(got.Partitions) < 2 {
			t.Errorf("link to %d: %+v, %v", target, got, err)
		}
	}
}

func TestName(t *testing.T) {
	for _, tt := range []struct {
		disk, want string
	}{{"vda", "vda5"}, {"nvme0n1", "nvme0n1p5"}, {"disk-0", "disk-0p5"}, {"", "5"}} {
		if got := partition.Name(tt.disk, 5); got != tt.want {
			t.Errorf("partition 5 of %q is %q, want %q", tt.disk, got, tt.want)
		}
	}
}

// gptSeed is a GPT with one partition, of a disk of 64 sectors.
func gptSeed() []byte {
	disk := make([]byte, 64*512)
	le := binary.LittleEndian
	disk[446+4], disk[510], disk[511] = 0xee, 0x55, 0xaa
	le.PutUint32(disk[446+8:], 1)
	le.PutUint32(disk[446+12:], 63)
	h, entries := disk[512:1024], disk[1024:1024+4*128]
	entries[0] = 1
	le.PutUint64(entries[32:], 34)
	le.PutUint64(entries[40:], 40)
	copy(h, "EFI PART")
	le.PutUint32(h[12:], 92)
	le.PutUint64(h[24:], 1)
	le.PutUint64(h[32:], 63)
	le.PutUint64(h[72:], 2)
	le.PutUint32(h[80:], 4)
	le.PutUint32(h[84:], 128)
	le.PutUint32(h[88:], crc32.ChecksumIEEE(entries))
	le.PutUint32(h[16:], crc32.ChecksumIEEE(h[:92]))
	return disk
}

// Whatever a disk says, what is returned lies inside it.
func FuzzRead(f *testing.F) {
	f.Add(gptSeed(), false)
	f.Add(gptSeed(), true)
	mbr := make([]byte, 4096)
	mbr[446+4], mbr[446+8], mbr[446+12], mbr[510], mbr[511] = 0x05, 2, 4, 0x55, 0xaa
	copy(mbr[1024:], mbr[:512])
	mbr[1024+446+4], mbr[1024+446+16+4], mbr[1024+446+16+12] = 0x83, 5, 1
	f.Add(mbr, false)
	f.Fuzz(func(t *testing.T, disk []byte, seal bool) {
		if seal && len(disk) >= 1024 { // let what was changed have the checksums that it needs
			le := binary.LittleEndian
			h := disk[512:1024]
			if n, size := int(le.Uint32(h[80:])), int(le.Uint32(h[84:])); n < 64 && size < 1024 && 1024+
				n*size <= len(disk) {
				le.PutUint32(h[88:], crc32.ChecksumIEEE(disk[1024:1024+n*size]))
			}
			le.PutUint32(h[16:], 0)
			le.PutUint32(h[16:], crc32.ChecksumIEEE(h[:min(512, max(92, int(le.Uint32(h[12:]))))]))
		}
		size := int64(len(disk))
		table, err := partition.Read(bytes.NewReader(disk), size)
		if err != nil {
			if !errors.Is(err, filesystem.ErrNotThis) && !errors.Is(err, filesystem.ErrCorrupt) {
				t.Fatalf("%v", err)
			}
			return
		}
		for _, p := range table.Partitions {
			if p.Offset < 0 || p.Size <= 0 || p.Offset+p.Size > size || p.Number < 1 {
				t.Fatalf("a disk of %d bytes has partition %+v", size, p)
			}
		}
	})
}

// A table may say that there are thousands of partitions, all in one place. As many count as Linux
// has names for.
func TestTableOfThousands(t *testing.T) {
	const count = 32 << 10
	disk := append(gptSeed(), make([]byte, count*128)...)
	h, entries := disk[512:1024], disk[1024:1024+count*128]
	le := binary.LittleEndian
	for i := range count {
		copy(entries[i*128:], entries[:128])
	}
	le.PutUint32(h[80:], count)
	le.PutUint32(h[88:], crc32.ChecksumIEEE(entries))
	le.PutUint32(h[16:], 0)
	le.PutUint32(h[16:], crc32.ChecksumIEEE(h[:92]))
	table, err := partition.Read(bytes.NewReader(disk), int64(len(disk)))
	if err != nil || len(table.Partitions) != 256 || table.Partitions[255].Number != 256 {
		t.Fatalf("%+v, %v", table, err)
	}
	if n := len(table.Notes); n == 0 || n > 64 || !strings.Contains(table.Notes[0], "partition 257 is left out") {
		t.Errorf("%d notes: %.300q", n, table.Notes)
	}
}
