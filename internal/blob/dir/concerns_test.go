package dir

import (
	"strings"
	"testing"
)

const local = "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw,errors=remount-ro\n"

// What endangers a store is said, with what to do, and nothing else is.
func TestConcerns(t *testing.T) {
	for _, tt := range []struct {
		name, mount string
		want        []string // what the sentences say, in order
	}{
		{"on a disk", "30 22 8:2 / /srv rw - xfs /dev/sdb1 rw,attr2", nil},
		{"NFS 4 as it comes", "30 22 0:50 / /srv rw,relatime shared:9 - nfs4 nas:/vault rw,vers=4.2,rsize=1048576," +
			"hard,proto=tcp,timeo=600,retrans=2,sec=sys,local_lock=none", nil},
		{"NFS 4, soft", "30 22 0:50 / /srv rw - nfs4 nas:/vault rw,vers=4.1,soft", []string{"with hard"}},
		{"NFS 4, nocto", "30 22 0:50 / /srv rw - nfs4 nas:/vault rw,vers=4.1,hard,nocto", []string{"without nocto"}},
		{"NFS 3 as it comes", "30 22 0:50 / /srv rw - nfs nas:/vault rw,vers=3,hard,local_lock=none",
			[]string{"lookupcache=positive"}},
		{"NFS 3 as it should be", "30 22 0:50 / /srv rw - nfs nas:/vault rw,vers=3,hard,lookupcache=pos", nil},
		{"NFS 3, all wrong", "30 22 0:50 / /srv rw - nfs nas:/vault rw,vers=3,softerr,nocto,local_lock=all",
			[]string{"with hard", "without nocto", "without nolock", "lookupcache=positive"}},
		{"SMB as it comes", "30 22 0:51 / /srv rw - cifs //nas/vault rw,vers=3.1.1,cache=strict,soft", nil},
		{"SMB, loose", "30 22 0:51 / /srv rw - cifs //nas/vault rw,cache=loose,nobrl",
			[]string{"cache=strict", "without nobrl"}},
		{"sshfs", "30 22 0:52 / /srv rw - fuse.sshfs me@nas:/ rw,user_id=0", []string{"one host at a time"}},
		{"what lies on top counts", "30 22 0:50 / /srv rw - nfs4 nas:/vault rw,soft\n" +
			"31 30 8:2 / /srv rw - xfs /dev/sdb1 rw", nil},
		{"a neighbour of like name", "30 22 0:50 / /srv/vau rw - nfs4 nas:/vault rw,soft", nil},
		{"a space in its name", "30 22 0:50 / /srv/vault\\040a rw - nfs4 nas:/v\\040a rw,soft", nil},
		{"not a line of it", "- -\n\n30 22 - nfs\n", nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m, ok := findMount(local+tt.mount+"\n", "/srv/vault")
			if !ok {
				t.Fatal("no mount was found")
			}
			got := m.concerns()
			if len(got) != len(tt.want) {
				t.Fatalf("%q, want %q", got, tt.want)
			}
			for i, want := range tt.want {
				if !strings.Contains(got[i], want) || !strings.Contains(got[i], "/srv") {
					t.Errorf("%q, want %q", got[i], want)
				}
			}
		})
	}
}

func TestNamesOfMountsAreRead(t *testing.T) {
	m, ok := findMount(local+"30 22 0:50 / /srv/vault\\040a rw - nfs4 nas:/v\\134a rw,vers=4.2\n", "/srv/vault a/x")
	if !ok || m.point != "/srv/vault a" || m.source != `nas:/v\a` || !m.version4() {
		t.Errorf("%+v, %v", m, ok)
	}
}

// A store on the file system of this test says nothing, or a sentence of what it is.
func TestConcernsOfThisMachine(t *testing.T) {
	s, err := Create(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for _, c := range s.Concerns() {
		if !strings.Contains(c, "mount") {
			t.Errorf("%q says nothing of a mount", c)
		}
	}
}

func FuzzMountinfo(f *testing.F) {
	f.Add(local, "/srv")
	f.Fuzz(func(t *testing.T, table, path string) {
		if m, ok := findMount(table, path); ok {
			m.concerns()
		}
	})
}
