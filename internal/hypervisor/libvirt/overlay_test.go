package libvirt

import (
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
	} {
		uid, gid, err := ownerIn(strings.Replace(form, "%", tt.model, 1))
		if uid != tt.uid || gid != tt.gid || (err != nil) != tt.refused {
			t.Errorf("%s: %d, %d, %v", tt.model, uid, gid, err)
		}
	}
}

func FuzzOwner(f *testing.F) {
	f.Add("<capabilities><host><secmodel><model>dac</model><baselabel>+1:+2</baselabel>" +
		"</secmodel></host></capabilities>")
	f.Fuzz(func(t *testing.T, text string) {
		uid, gid, err := ownerIn(text)
		if err != nil && (uid != -1 || gid != -1) {
			t.Errorf("%d, %d, %v", uid, gid, err)
		}
	})
}
