package nbd_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	mathrand "math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-vm/holdfast/internal/nbd"
)

// authority makes certificates. Its directory has the files that QEMU and libnbd look for.
type authority struct {
	dir    string
	ca     *x509.Certificate
	key    *ecdsa.PrivateKey
	serial int64
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	a := &authority{dir: t.TempDir()}
	a.ca = &x509.Certificate{Subject: pkix.Name{CommonName: "authority"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign}
	key, der := a.issue(t, a.ca)
	a.key = key
	ca, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	a.ca = ca
	a.write(t, "ca-cert.pem", "CERTIFICATE", der)
	return a
}

// issue signs a certificate; the first is its own authority.
func (a *authority) issue(t testing.TB, c *x509.Certificate) (*ecdsa.PrivateKey, []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	a.serial++
	c.SerialNumber, c.NotBefore, c.NotAfter = big.NewInt(a.serial), time.Now().Add(-time.Hour),
		time.Now().Add(time.Hour)
	signer := a.key
	if signer == nil {
		signer = key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, a.ca, &key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	return key, der
}

func (a *authority) write(t testing.TB, name, kind string, der []byte) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(a.dir, name), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}),
		0o600); err != nil {
		t.Fatal(err)
	}
}

// pair writes and returns a certificate for the given use, with its key.
func (a *authority) pair(t testing.TB, name string, use x509.ExtKeyUsage) tls.Certificate {
	t.Helper()
	key, der := a.issue(t, &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, DNSNames: []string{"localhost"}, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{use},
	})
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	a.write(t, name+"-cert.pem", "CERTIFICATE", der)
	a.write(t, name+"-key.pem", "PRIVATE KEY", private)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// place is where the disk "disk" is served, and how each tool is told of it.
type place struct {
	uri    string
	nbdkit []string
	qemu   []string // options before the image
	image  string   // the disk as image options
	dial   nbd.Options
}

// everywhere runs a test over a unix socket in the clear and over TCP with TLS and client
// certificates.
func everywhere(t *testing.T, size int, test func(t *testing.T, p place, disk *memory)) {
	t.Run("unix", func(t *testing.T) {
		disk := newMemory(size)
		socket, _ := onSocket(t, only(quick{disk}))
		uri := "nbd+unix:///disk?socket=" + socket
		test(t, place{
			uri: uri, nbdkit: []string{"uri=" + uri},
			image: "driver=raw,file.driver=nbd,file.server.type=unix,file.server.path=" + socket + ",file.export=disk",
			dial:  nbd.Options{Network: "unix", Address: socket, Export: "disk"},
		}, disk)
	})
	t.Run("TLS", func(t *testing.T) {
		disk := newMemory(size)
		a := newAuthority(t)
		o := only(quick{disk})
		o.TLS = &tls.Config{
			Certificates: []tls.Certificate{a.pair(t, "server", x509.ExtKeyUsageServerAuth)},
			ClientAuth:   tls.RequireAndVerifyClientCert, ClientCAs: x509.NewCertPool(),
		}
		o.TLS.ClientCAs.AddCert(a.ca)
		client := &tls.Config{RootCAs: o.TLS.ClientCAs,
			Certificates: []tls.Certificate{a.pair(t, "client", x509.ExtKeyUsageClientAuth)}}
		l, err := net.Listen("tcp", "localhost:0")
		if err != nil {
			t.Fatal(err)
		}
		serve(t, l, o)
		port := l.Addr().(*net.TCPAddr).Port
		uri := fmt.Sprintf("nbds://localhost:%d/disk", port)
		test(t, place{
			uri: uri + "?tls-certificates=" + a.dir, nbdkit: []string{"uri=" + uri, "tls-certificates=" + a.dir},
			qemu: []string{"--object", "tls-creds-x509,id=t0,endpoint=client,dir=" + a.dir},
			image: fmt.Sprintf("driver=raw,file.driver=nbd,file.server.type=inet,file.server.host=localhost,"+
				"file.server.port=%d,file.export=disk,file.tls-creds=t0", port),
			dial: nbd.Options{Network: "tcp", Address: fmt.Sprintf("localhost:%d", port), Export: "disk", TLS: client},
		}, disk)
	})
}

// run runs a tool and returns what it prints.
func (p place) run(t testing.TB, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	var log bytes.Buffer
	cmd.Stderr = &log
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s%s", name, strings.Join(args, " "), err, out, &log)
	}
	return string(out)
}

// qemuTool runs a tool with the options that name the disk's credentials.
func (p place) qemuTool(t testing.TB, tool []string, args ...string) string {
	t.Helper()
	return p.run(t, tool[0], slices.Concat(tool[1:], p.qemu, args)...)
}

// fill gives a disk random data with holes between.
func fill(disk *memory) {
	src := mathrand.NewChaCha8([32]byte{3})
	for off := 0; off < len(disk.data); off += 256 << 10 {
		if off/(256<<10)%3 == 1 {
			continue
		}
		p := make([]byte, min(256<<10, len(disk.data)-off))
		src.Read(p)
		disk.WriteAt(context.Background(), p, int64(off))
	}
}

func (m *memory) bytes() []byte {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return bytes.Clone(m.data)
}

func requireFile(t *testing.T, name string, want []byte) {
	t.Helper()
	got, err := os.ReadFile(name)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%s has %d bytes that are not the disk's %d: %v", filepath.Base(name), len(got), len(want), err)
	}
}

func TestQemuImg(t *testing.T) {
	everywhere(t, 8*mib+512, func(t *testing.T, p place, disk *memory) {
		fill(disk)
		want := disk.bytes()
		dir := t.TempDir()
		copied := filepath.Join(dir, "copied")
		for _, flags := range [][]string{{}, {"-W", "-m", "16"}} {
			p.qemuTool(t, []string{"qemu-img", "convert"},
				slices.Concat(flags, []string{"--image-opts", "-O", "raw", p.image, copied})...)
			requireFile(t, copied, want)
		}
		if out := p.qemuTool(t, []string{"qemu-img", "info"}, "--image-opts", p.image); !strings.Contains(out,
			fmt.Sprint(len(want))) {
			t.Errorf("qemu-img info: %s", out)
		}
		requireMap(t, p.qemuTool(t, []string{"qemu-img", "map"}, "--output=json", "--image-opts", p.image), disk)

		fresh := slices.Repeat([]byte{5}, len(want)) // what was there before is of no matter
		disk.WriteAt(t.Context(), fresh, 0)
		p.qemuTool(t, []string{"qemu-img", "convert"}, "-n", "-W", "-m", "16", "--target-image-opts", "-f", "raw",
			copied, p.image)
		if !bytes.Equal(disk.bytes(), want) {
			t.Error("qemu-img convert to the disk: bytes differ")
		}
		if p.qemu == nil { // it knows no credentials
			p.run(t, "qemu-img", "bench", "-c", "200", "-d", "16", "-s", "4096", "--image-opts", p.image)
		}
	})
}

// requireMap requires that qemu-img sees holes where the disk has them.
func requireMap(t *testing.T, out string, disk *memory) {
	t.Helper()
	var extents []struct {
		Start, Length int64
		Zero, Data    bool
	}
	if err := json.Unmarshal([]byte(out), &extents); err != nil {
		t.Fatal(err)
	}
	end := int64(0)
	for _, e := range extents {
		if e.Start != end {
			t.Errorf("extent at %d, the last one ended at %d", e.Start, end)
		}
		for end = e.Start; end < e.Start+e.Length; end += page {
			if hole := disk.holes[end/page]; hole != e.Zero || hole == e.Data {
				t.Fatalf("%+v is said of byte %d, which is in a hole: %v", e, end, hole)
			}
		}
		end = e.Start + e.Length
	}
	if end != disk.Size() {
		t.Errorf("the map ends at %d of %d", end, disk.Size())
	}
}

func TestQemuIO(t *testing.T) {
	everywhere(t, 4*mib, func(t *testing.T, p place, disk *memory) {
		var args []string
		for _, c := range []string{
			"write -P 7 0 1M", "write -P 8 -f 4095 3", "write -z 64k 64k", "write -z -u 256k 256k", "discard 1M 64k",
			"flush",
			"read -P 7 0 4095", "read -P 8 4095 3", "read -P 0 64k 64k", "read -P 0 256k 256k", "read -P 7 128k 128k",
			"aio_write -P 9 2M 64k", "aio_write -P 10 3M 64k", "aio_flush", "read -P 9 2M 64k", "read -P 10 3M 64k",
			"read -v 4M 512",
		} {
			args = append(args, "-c", c)
		}
		cmd := exec.Command("qemu-io", slices.Concat(p.qemu, args, []string{"--image-opts", p.image})...)
		out, _ := cmd.CombinedOutput() // the last read is refused, for it is outside
		if n := strings.Count(string(out), "verification failed"); n > 0 || strings.Count(string(out), "ops;") != 14 {
			t.Errorf("%s", out)
		}
		want := bytes.Repeat([]byte{7}, mib)
		copy(want[4095:], []byte{8, 8, 8})
		clear(want[64<<10 : 128<<10])
		clear(want[256<<10 : 512<<10])
		if got := disk.bytes(); !bytes.Equal(got[:mib], want) || got[2*mib] != 9 || got[3*mib] != 10 {
			t.Error("what qemu-io wrote is not what the disk has")
		}
		if disk.holes[64<<10/page] || !disk.holes[256<<10/page] {
			t.Error("zeros that may be a hole are one, others are not")
		}
	})
}

func TestLibnbdTools(t *testing.T) {
	everywhere(t, 8*mib+512, func(t *testing.T, p place, disk *memory) {
		fill(disk)
		want := disk.bytes()
		copied := filepath.Join(t.TempDir(), "copied")
		p.run(t, "nbdcopy", "--connections=4", "--requests=16", p.uri, copied)
		requireFile(t, copied, want)
		p.run(t, "nbdcopy", "--synchronous", p.uri, copied)
		requireFile(t, copied, want)

		var list struct {
			TLS     bool
			Exports []map[string]any
		}
		if err := json.Unmarshal([]byte(p.run(t, "nbdinfo", "--json", "--list", p.uri)), &list); err != nil ||
			len(list.Exports) != 1 {
			t.Fatalf("nbdinfo: %v, %+v", err, list)
		}
		for key, want := range map[string]any{
			"export-name": "disk", "description": "the only one", "export-size": float64(len(want)),
			"is_read_only": false, "can_multi_conn": true,
			"can_fua": true, "can_flush": true, "can_trim": true, "can_zero": true, "can_fast_zero": true,
			"can_df": true, "can_cache": true,
			"block_size_minimum": 1.0, "block_size_preferred": 4096.0, "block_size_maximum": 33554432.0,
		} {
			if got := list.Exports[0][key]; got != want {
				t.Errorf("nbdinfo: %s is %v, want %v", key, got, want)
			}
		}
		var extents []struct{ Offset, Length, Type int64 }
		if err := json.Unmarshal([]byte(p.run(t, "nbdinfo", "--json", "--map", p.uri)), &extents); err != nil ||
			len(extents) < 20 {
			t.Fatalf("nbdinfo --map: %v, %d extents", err, len(extents))
		}
		for _, e := range extents {
			if hole := disk.holes[e.Offset/page]; hole != (e.Type == 3) {
				t.Errorf("nbdinfo --map: %+v, hole: %v", e, hole)
			}
		}

		disk.WriteAt(t.Context(), slices.Repeat([]byte{5}, len(want)), 0)
		p.run(t, "nbdcopy", "--connections=4", "--flush", copied, p.uri)
		if !bytes.Equal(disk.bytes(), want) {
			t.Error("nbdcopy to the disk: bytes differ")
		}
	})
}

// Other servers that stand on ours give the same bytes and take the same writes.
func TestBehindOtherServers(t *testing.T) {
	everywhere(t, 4*mib, func(t *testing.T, p place, disk *memory) {
		for name, s := range map[string]*server{
			"nbdkit": nbdkit(t, append([]string{"nbd"}, p.nbdkit...)...),
			"qemu-nbd": start(t, "qemu-nbd",
				slices.Concat([]string{"-t", "-e", "0", "--discard=unmap"}, p.qemu,
					[]string{"--image-opts", p.image})...),
		} {
			t.Run(name, func(t *testing.T) {
				fill(disk)
				c := s.dial(t, nbd.Options{MetaContexts: []string{"base:allocation"}})
				got := make([]byte, 4*mib)
				if err := c.Read(t.Context(), got, 0); err != nil || !bytes.Equal(got, disk.bytes()) {
					t.Errorf("read: %v, or bytes differ", err)
				}
				var want []nbd.Range
				for i, hole := range disk.holes {
					want = append(want, nbd.Range{Off: int64(i) * page, Len: page,
						Flags: map[bool]uint64{true: 3}[hole]})
				}
				if got := ranges(t, c, "base:allocation"); !slices.Equal(got, merged(want)) {
					t.Errorf("extents %v, want %v", got, merged(want))
				}
				_, err := c.WriteAt(bytes.Repeat([]byte(name), 1000), 512)
				for _, e := range []error{err, c.WriteZeroes(t.Context(), mib, 64<<10, false),
					c.Trim(t.Context(), 2*mib, 64<<10), c.Flush(t.Context())} {
					if e != nil {
						t.Error(e)
					}
				}
				if got := disk.bytes(); !bytes.HasPrefix(got[512:], []byte(name+name)) || !disk.holes[mib/page] ||
					got[2*mib] != 0 {
					t.Error("what was written through it is not there")
				}
			})
		}
	})
}

func merged(list []nbd.Range) (out []nbd.Range) {
	for _, r := range list {
		if n := len(out); n > 0 && out[n-1].Flags == r.Flags {
			out[n-1].Len += r.Len
			continue
		}
		out = append(out, r)
	}
	return out
}

// fio writes blocks of all sizes in any order, many at once, and finds each again as it was. It
// cannot be told of certificates.
func TestFio(t *testing.T) {
	socket, _ := onSocket(t, only(quick{newMemory(8 * mib)}))
	out := place{}.run(t, "fio", "--name=x", "--ioengine=nbd", "--uri=nbd+unix:///disk?socket="+socket,
		"--rw=randwrite", "--bsrange=4k-256k",
		"--iodepth=16", "--size=8m", "--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0", "--randseed=5",
		"--output-format=json")
	var result struct {
		Jobs []struct {
			Error int
			Read  struct {
				Bytes int `json:"io_bytes"`
			}
		}
	}
	if err := json.Unmarshal([]byte(out[strings.Index(out, "{"):]), &result); err != nil || len(result.Jobs) != 1 {
		t.Fatalf("%v: %s", err, out)
	}
	if j := result.Jobs[0]; j.Error != 0 || j.Read.Bytes != 8*mib {
		t.Errorf("error %d, %d bytes verified", j.Error, j.Read.Bytes)
	}
}

// Nobody comes in without TLS, without a certificate, or with that of somebody else.
func TestOnlyTrustedClients(t *testing.T) {
	everywhere(t, mib, func(t *testing.T, p place, _ *memory) {
		c, err := nbd.Dial(t.Context(), p.dial)
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
		if p.dial.TLS == nil {
			return
		}
		other := newAuthority(t).pair(t, "client", x509.ExtKeyUsageClientAuth)
		for name, config := range map[string]*tls.Config{
			"in the clear":          nil,
			"no certificate":        {RootCAs: p.dial.TLS.RootCAs},
			"another's certificate": {RootCAs: p.dial.TLS.RootCAs, Certificates: []tls.Certificate{other}},
			"TLS 1.1": {RootCAs: p.dial.TLS.RootCAs, Certificates: p.dial.TLS.Certificates,
				MaxVersion: tls.VersionTLS11, MinVersion: tls.VersionTLS10},
		} {
			o := p.dial
			o.TLS = config
			if c, err := nbd.Dial(t.Context(), o); err == nil {
				c.Close()
				t.Errorf("%s: let in", name)
			}
			if list, err := nbd.List(t.Context(), o); err == nil {
				t.Errorf("%s: told of %v", name, list)
			}
		}
	})
}
