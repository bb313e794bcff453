package export

import (
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// ErrSocketInUse reports that a living process serves on a socket.
var ErrSocketInUse = errors.New("another process is serving on the socket")

// maxSocketPath is how long the path of a socket may be that clients connect to.
const maxSocketPath = 107

// ListenUnix listens on a socket of the given permissions. A socket that a dead process left is
// replaced; one of a living process is ErrSocketInUse, and anything else of that name is
// fs.ErrExist. The socket has its permissions before it has its name, and is removed when the
// listener is closed.
func ListenUnix(path string, mode fs.FileMode) (net.Listener, error) {
	l, err := listenUnix(path, mode)
	if err != nil {
		return nil, fmt.Errorf("listen on socket %s: %w", path, err)
	}
	return l, nil
}

func listenUnix(path string, mode fs.FileMode) (net.Listener, error) {
	if len(path) > maxSocketPath {
		return nil, fmt.Errorf("the path has %d bytes, %d are the most", len(path), maxSocketPath)
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	// One at a time: of two that find a dead socket, the second must see the first one's.
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX); err != nil {
		return nil, fmt.Errorf("lock its directory: %w", err)
	}
	if err := checkSocket(path); err != nil {
		return nil, err
	}
	var random [6]byte
	rand.Read(random[:])
	temp := ".hf-" + hex.EncodeToString(random[:])
	// short, whatever the directory's path
	l, err := net.Listen("unix", fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), temp))
	if err != nil {
		return nil, err
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	temp = filepath.Join(filepath.Dir(path), temp)
	if err = os.Chmod(temp, mode); err == nil {
		err = os.Rename(temp, path)
	}
	if err != nil {
		return nil, errors.Join(err, l.Close(), os.Remove(temp))
	}
	info, err := os.Lstat(path)
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return &unixListener{l, path, info}, nil
}

// checkSocket reports why nobody may listen at path, or nil.
func checkSocket(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode()&fs.ModeSocket == 0 {
		return fmt.Errorf("%w, and it is no socket", fs.ErrExist)
	}
	conn, err := net.Dial("unix", path)
	if err == nil {
		conn.Close()
		return ErrSocketInUse
	}
	if errors.Is(err, unix.ECONNREFUSED) { // nobody listens
		return nil
	}
	return err
}

// unixListener removes its socket when it is closed, unless another one has taken its name.
type unixListener struct {
	net.Listener
	path string
	mine fs.FileInfo
}

// Addr returns the path that clients connect to.
func (l *unixListener) Addr() net.Addr { return &net.UnixAddr{Name: l.path, Net: "unix"} }

func (l *unixListener) Close() error {
	if now, err := os.Lstat(l.path); err == nil && os.SameFile(now, l.mine) {
		_ = os.Remove(l.path) // one that stays is found dead
	}
	return l.Listener.Close()
}

// ServerTLS reads what a server needs from a directory, under the names that QEMU's tls-creds-x509
// has for them: ca-cert.pem, server-cert.pem and server-key.pem. Clients must show a certificate of
// that authority.
func ServerTLS(dir string) (*tls.Config, error) {
	cert, err := tls.LoadX509KeyPair(filepath.Join(dir, "server-cert.pem"), filepath.Join(dir, "server-key.pem"))
	if err != nil {
		return nil, fmt.Errorf("read the server's certificate: %w", err)
	}
	pem, err := os.ReadFile(filepath.Join(dir, "ca-cert.pem"))
	if err != nil {
		return nil, fmt.Errorf("read the authority of clients: %w", err)
	}
	authority := x509.NewCertPool()
	if !authority.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("read the authority of clients: %s holds no certificate",
			filepath.Join(dir, "ca-cert.pem"))
	}
	return &tls.Config{
		Certificates: []tls.Certificate{cert}, ClientCAs: authority, ClientAuth: tls.RequireAndVerifyClientCert,
		MinVersion: tls.VersionTLS12,
	}, nil
}
