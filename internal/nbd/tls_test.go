package nbd_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/holdfast-vm/holdfast/internal/nbd"
)

// certify writes a certificate for server.example that is its own authority, as nbdkit wants its
// files, and returns who trusts it.
func certify(t *testing.T, dir string) *x509.CertPool {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, DNSNames: []string{"server.example"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	public := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert})
	for name, b := range map[string][]byte{
		"ca-cert.pem": public, "server-cert.pem": public,
		"server-key.pem": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(public)
	return pool
}

func TestTLS(t *testing.T) {
	dir := t.TempDir()
	trusted := certify(t, dir)
	s := nbdkit(t, "--tls=require", "--tls-certificates="+dir, "memory", "1M")
	c := s.dial(t, nbd.Options{TLS: &tls.Config{RootCAs: trusted, ServerName: "server.example"}})
	if _, err := c.WriteAt([]byte("secret"), 0); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 6)
	if _, err := c.ReadAt(got, 0); err != nil || string(got) != "secret" {
		t.Errorf("read %q, %v", got, err)
	}
	o := nbd.Options{Network: "unix", Address: s.socket}
	if _, err := nbd.Dial(t.Context(), o); !errors.Is(err, nbd.ErrTLSRequired) {
		t.Errorf("in the clear: %v, want %v", err, nbd.ErrTLSRequired)
	}
	o.TLS = &tls.Config{RootCAs: trusted, ServerName: "other.example"}
	if _, err := nbd.Dial(t.Context(), o); !errors.As(err, new(x509.HostnameError)) {
		t.Errorf("another name: %v", err)
	}
	plain := nbdkit(t, "--tls=off", "memory", "1M")
	o.Address = plain.socket
	if _, err := nbd.Dial(t.Context(), o); err == nil {
		t.Error("TLS was asked for, the server has none, and the client went on in the clear")
	}
}
