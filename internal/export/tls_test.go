package export_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-vm/holdfast/internal/export"
	"github.com/holdfast-vm/holdfast/internal/nbd"
)

// authority signs certificates for a test.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"},
		NotAfter: time.Now().Add(time.Hour), IsCA: true,
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	raw, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(raw)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{cert, key, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: raw})}
}

// sign writes NAME-cert.pem and NAME-key.pem, and the authority as ca-cert.pem, to dir.
func (a *authority) sign(t *testing.T, dir, name string, usage x509.ExtKeyUsage) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(2), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage: []x509.ExtKeyUsage{usage}}
	raw, err := x509.CreateCertificate(rand.Reader, template, a.cert, &key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for file, data := range map[string][]byte{
		"ca-cert.pem":      a.pem,
		name + "-cert.pem": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: raw}),
		name + "-key.pem":  pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret}),
	} {
		if err := os.WriteFile(filepath.Join(dir, file), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// Only clients that show a certificate of the authority are served over TLS.
func TestTLSWantsACertificateOfTheClient(t *testing.T) {
	dir, other := t.TempDir(), t.TempDir()
	ca := newAuthority(t)
	ca.sign(t, dir, "server", x509.ExtKeyUsageServerAuth)
	ca.sign(t, dir, "client", x509.ExtKeyUsageClientAuth)
	newAuthority(t).sign(t, other, "client", x509.ExtKeyUsageClientAuth)
	config, err := export.ServerTLS(dir)
	if err != nil {
		t.Fatal(err)
	}
	l := newLab(t, someData(2, 20))
	s := openServer(t, l, export.Options{TLS: config})
	e, err := s.Add(t.Context(), export.Request{Point: l.point, Disk: "vda"})
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	serveOn(t, s, listener)
	if uri := nbd.URI(listener.Addr(), e.Name, true); !strings.HasPrefix(uri, "nbds://127.0.0.1:") ||
		!strings.HasSuffix(uri, "/"+e.Name) {
		t.Errorf("the URI is %s", uri)
	}
	roots := x509.NewCertPool()
	roots.AddCert(ca.cert)
	for _, tt := range []struct {
		name, dir string
		served    bool
	}{{"a certificate", dir, true}, {"another authority's", other, false}, {"none", "", false}} {
		c := &tls.Config{RootCAs: roots}
		if tt.dir != "" {
			cert, err := tls.LoadX509KeyPair(filepath.Join(tt.dir, "client-cert.pem"),
				filepath.Join(tt.dir, "client-key.pem"))
			if err != nil {
				t.Fatal(err)
			}
			// Sent whatever authorities the server names.
			c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &cert, nil }
		}
		client, err := nbd.Dial(t.Context(),
			nbd.Options{Network: "tcp", Address: listener.Addr().String(), Export: e.Name, TLS: c})
		if err == nil {
			client.Close()
		}
		if (err == nil) != tt.served {
			t.Errorf("%s: served %v, want %v: %v", tt.name, err == nil, tt.served, err)
		}
	}
	if _, err := nbd.Dial(t.Context(),
		nbd.Options{Network: "tcp", Address: listener.Addr().String(), Export: e.Name}); err == nil {
		t.Error("a client was served without TLS")
	}
}

// A directory that lacks a file, or holds another thing in it, is an error that names it.
func TestServerTLSRefuses(t *testing.T) {
	for _, name := range []string{"ca-cert.pem", "server-cert.pem", "server-key.pem"} {
		dir := t.TempDir()
		newAuthority(t).sign(t, dir, "server", x509.ExtKeyUsageServerAuth)
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte("nothing"), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := export.ServerTLS(dir); err == nil {
			t.Errorf("%s that holds nothing was taken", name)
		}
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
		if _, err := export.ServerTLS(dir); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("without %s: %v", name, err)
		}
	}
}
