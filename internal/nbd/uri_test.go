package nbd_test

import (
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/holdfast-vm/holdfast/internal/nbd"
)

func unixAddr(path string) net.Addr { return &net.UnixAddr{Name: path, Net: "unix"} }

func TestURI(t *testing.T) {
	tcp := &net.TCPAddr{IP: net.IPv6loopback, Port: 10809}
	for _, tt := range []struct {
		addr      net.Addr
		export    string
		encrypted bool
		want      string
	}{
		{unixAddr("/run/s"), "", false, "nbd+unix:///?socket=/run/s"},
		{unixAddr("/run/a b+c"), "p/vda 1", true, "nbds+unix:///p/vda%201?socket=/run/a%20b%2Bc"},
		{tcp, "ü&?#%,;'\"", false, "nbd://[::1]:10809/%C3%BC%26%3F%23%25%2C%3B%27%22"},
		{tcp, "vda", true, "nbds://[::1]:10809/vda"},
	} {
		if got := nbd.URI(tt.addr, tt.export, tt.encrypted); got != tt.want {
			t.Errorf("URI(%v, %q) = %s, want %s", tt.addr, tt.export, got, tt.want)
		}
	}
}

// awkward are names that URIs, queries, forms and lists of options would each read in another way.
var awkward = []string{"with space", "a+b 100%", "%20%2B+", "größe-磁盘", `a,b;c&d=e?x#y it's "so"\`, "p/vda"}

// The tools that people use find an export under the URI that we print, whatever the export and its
// socket are called.
func TestToolsTakeURI(t *testing.T) {
	for _, name := range awkward {
		t.Run(name, func(t *testing.T) {
			dir, err := os.MkdirTemp("", "hf")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { os.RemoveAll(dir) })
			socket := filepath.Join(dir, strings.ReplaceAll(name, "/", " "))
			l, err := net.Listen("unix", socket)
			if err != nil {
				t.Fatal(err)
			}
			disk := newMemory(mib)
			fill(disk)
			serve(t, l, nbd.ServerOptions{Exports: nbd.ExportList{{Name: name, Backend: disk},
				{Name: "with", Backend: newMemory(4096)}}})
			uri := nbd.URI(l.Addr(), name, false)
			var listed struct {
				Exports []struct {
					Name string `json:"export-name"`
					Size int64  `json:"export-size"`
				}
			}
			if err := json.Unmarshal([]byte(place{}.run(t, "nbdinfo", "--json", uri)), &listed); err != nil {
				t.Fatal(err)
			}
			if len(listed.Exports) != 1 || listed.Exports[0].Name != name || listed.Exports[0].Size != mib {
				t.Errorf("nbdinfo finds %+v", listed.Exports)
			}
			image := filepath.Join(dir, "copy")
			place{}.run(t, "qemu-img", "convert", "-f", "raw", "-O", "raw", uri, image)
			requireFile(t, image, disk.bytes())
			overlay := filepath.Join(dir, "overlay")
			place{}.run(t, "qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", uri, overlay)
			place{}.run(t, "qemu-img", "compare", overlay, image)
			if export, path, err := nbd.ParseUnixURI(uri); export != name || path != socket || err != nil {
				t.Errorf("ParseUnixURI(%s) = %q, %q, %v", uri, export, path, err)
			}
		})
	}
}

func TestParseUnixURI(t *testing.T) {
	for _, uri := range []string{"", "nbd+unix:///vda", "nbd+unix:///vda?socket=", "nbd://h/vda?socket=/s",
		"nbd+unix://h/vda?socket=/s", "nbd+unix:///vda?socket=%zz", "nbd+unix:///%zz?socket=/s", "/vda"} {
		if export, socket, err := nbd.ParseUnixURI(uri); err == nil {
			t.Errorf("ParseUnixURI(%q) = %q, %q", uri, export, socket)
		}
	}
	if export, socket, err := nbd.ParseUnixURI("nbd+unix:///a+b?x=1&socket=/n+%2Fs"); export != "a+b" ||
		socket != "/n+/s" || err != nil {
		t.Errorf("%q, %q, %v", export, socket, err)
	}
}

func FuzzParseUnixURI(f *testing.F) {
	f.Add("nbd+unix:///vda?socket=/run/s")
	for _, name := range awkward {
		f.Add(nbd.URI(unixAddr("/"+name), name, false))
	}
	f.Fuzz(func(t *testing.T, uri string) {
		export, socket, err := nbd.ParseUnixURI(uri)
		if err != nil {
			return
		}
		if socket == "" {
			t.Error("an export without a socket")
		}
		again, path, err := nbd.ParseUnixURI(nbd.URI(unixAddr(socket), export, false))
		if again != export || path != socket || err != nil {
			t.Errorf("%q, %q becomes %q, %q, %v", export, socket, again, path, err)
		}
	})
}
