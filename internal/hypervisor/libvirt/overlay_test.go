package libvirt

import (
	"encoding/xml"
	"math"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/beevik/etree"

	"github.com/holdfast-vm/holdfast/internal/hypervisor"
)

func xmlOf(t *testing.T, el *etree.Element) string {
	t.Helper()
	doc := etree.NewDocument()
	doc.SetRoot(el)
	text, err := doc.WriteToString()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// A definition on overlays becomes, disk by disk, the one that it would have been on the targets.
func TestSettleDisks(t *testing.T) {
	const head = `<domain type="qemu"><name>a</name><devices>`
	disk := func(driver, file string) string {
		return `<disk type="file" device="disk"><driver name="qemu" type="` + driver + `/><target dev="vda" bus="virtio"/><source file="` + file + `"/></disk>`
	}
	for _, before := range []string{`qcow2"`, `qcow2" error_policy="report" discard="ignore"`, `qcow2" rerror_policy="ignore"`} {
		want, err := parse(head + disk(before, "/n/vda") + `</devices></domain>`)
		if err != nil {
			t.Fatal(err)
		}
		on := want.Copy()
		target := hypervisor.HydrationTarget{Disk: "vda", File: "/n/vda", Format: "qcow2"}
		b := &builder{dom: on, libVersion: reconnectSince,
			rebuild: hypervisor.Rebuild{Backing: map[string]string{"vda": "nbd+unix:///vda?socket=%2Fn%2Fs"}}}
		el := diskElement(on, "vda")
		el.SelectElement("source").CreateAttr("file", target.Overlay())
		if err := b.stackDisk(el, "vda"); err != nil {
			t.Fatal(err)
		}
		for _, part := range []string{`socket="/n/s"`, `name="vda"`, `rerror_policy="stop"`, `reconnect delay="10"`} {
			if !strings.Contains(xmlOf(t, on.Copy()), part) {
				t.Errorf("on its overlay the definition lacks %s:\n%s", part, xmlOf(t, on.Copy()))
			}
		}
		for _, changes := range []bool{true, false} {
			if changed, err := settleDisks(on, []hypervisor.HydrationTarget{target}); err != nil || changed != changes {
				t.Errorf("settled: %v, %v", changed, err)
			}
		}
		if noteOf(on) != nil || len(el.SelectElements("backingStore")) > 0 || sourceOf(el) != target.File {
			t.Errorf("settled, it is\n%s", xmlOf(t, on.Copy()))
		}
		for _, key := range append(policies, "discard", "type") {
			if got, was := attr(el, "driver", key), attr(diskElement(want, "vda"), "driver", key); got != was {
				t.Errorf("%s is %q, was %q", key, got, was)
			}
		}
	}
	edited, err := parse(head + disk(`raw"`, "/other") + `</devices></domain>`)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := settleDisks(edited, []hypervisor.HydrationTarget{{Disk: "vda", File: "/n/vda"}}); err == nil {
		t.Error("a disk that somebody has changed was changed again")
	}
}

func TestMachineOwner(t *testing.T) {
	const form = `<capabilities><host><secmodel><model>apparmor</model></secmodel>%</host></capabilities>`
	for _, tt := range []struct {
		model    string
		uid, gid int
		refused  bool
	}{
		{"<secmodel><model>dac</model><baselabel type='kvm'>+64055:+109</baselabel></secmodel>", 64055, 109, false},
		{"", -1, -1, false},
		{"<secmodel><model>dac</model><baselabel type='kvm'>qemu</baselabel></secmodel>", -1, -1, true},
		{"<secmodel><model>dac</model><baselabel>+0:+0</baselabel></secmodel>", 0, 0, false},
		{"<secmodel><model>dac</model><baselabel>+1:-1</baselabel></secmodel>", -1, -1, true},
		{"<secmodel><model>dac</model><baselabel>+4294967295:+1</baselabel></secmodel>", -1, -1, true},
		{"<secmodel><model>dac</model></secmodel>", -1, -1, true},
	} {
		uid, gid, err := ownerIn(strings.Replace(form, "%", tt.model, 1))
		if uid != tt.uid || gid != tt.gid || (err != nil) != tt.refused {
			t.Errorf("%s: %d, %d, %v", tt.model, uid, gid, err)
		}
	}
}

// Files are given to a user and a group that libvirt names as numbers, and to nobody else: whatever
// the label is, it is these two or refused. What is no document of capabilities is refused, or
// names nobody.
func FuzzOwner(f *testing.F) {
	const form = "<capabilities><host><secmodel><model>selinux</model><baselabel>+7:+7</baselabel></secmodel>" +
		"<secmodel><model>dac</model><baselabel>%</baselabel></secmodel></host></capabilities>"
	for _, label := range []string{"+1:+2", "1:2", "+0:+0", "-1:-1", "+4294967294:+4294967295", "qemu:kvm", "+1",
		"++1:+1", "0x1:1", ""} {
		f.Add("<capabilities><host/></capabilities>", label)
	}
	owners := regexp.MustCompile(`^\+?([0-9]+):\+?([0-9]+)$`)
	id := func(digits string) int {
		n, err := strconv.ParseUint(digits, 10, 32)
		if err != nil || n == math.MaxUint32 { // which says "leave it as it is" to the kernel
			return -1
		}
		return int(n)
	}
	f.Fuzz(func(t *testing.T, text, label string) {
		if uid, gid, err := ownerIn(text); err != nil && (uid != -1 || gid != -1) || (uid == -1) != (gid == -1) ||
			min(uid, gid) < -1 || max(uid, gid) >= math.MaxUint32 {
			t.Errorf("%q: %d, %d, %v", text, uid, gid, err)
		}
		var escaped strings.Builder
		if err := xml.EscapeText(&escaped, []byte(label)); err != nil {
			t.Fatal(err)
		}
		uid, gid, err := ownerIn(strings.Replace(form, "%", escaped.String(), 1))
		wantUID, wantGID := -1, -1
		if parts := owners.FindStringSubmatch(strings.TrimSpace(label)); parts != nil {
			if wantUID, wantGID = id(parts[1]), id(parts[2]); wantUID == -1 || wantGID == -1 {
				wantUID, wantGID = -1, -1
			}
		}
		if uid != wantUID || gid != wantGID || (err != nil) != (wantUID == -1) {
			t.Errorf("%q: %d, %d, %v; want %d, %d", label, uid, gid, err, wantUID, wantGID)
		}
	})
}
