package isolation_test

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/holdfast-vm/holdfast/internal/hypervisor/isolation"
)

const holdEnv = "HOLDFAST_TEST_HOLD"

// TestMain is also the process that is looked at: it opens what it is told to, says so, and waits
// for the end of its input.
func TestMain(m *testing.M) {
	what, ok := os.LookupEnv(holdEnv)
	if !ok {
		os.Exit(m.Run())
	}
	keep, err := hold(what)
	fmt.Println(err)
	bufio.NewReader(os.Stdin).ReadString('\n')
	fmt.Fprint(os.Stderr, keep) // so that it is kept
}

func hold(what string) (keep any, err error) {
	kind, arg, _ := strings.Cut(what, " ")
	socket := func(family, kind, proto int) (any, error) { return unix.Socket(family, kind, proto) }
	switch kind {
	case "nothing":
		return nil, nil
	case "tcp", "udp":
		if kind == "udp" {
			return net.ListenPacket(kind, "127.0.0.1:0")
		}
		return net.Listen(kind, "127.0.0.1:0")
	case "dial":
		return net.Dial("tcp", arg)
	case "unbound":
		return socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	case "packet":
		return socket(unix.AF_PACKET, unix.SOCK_RAW, 0)
	case "raw":
		return socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP)
	case "vsock":
		return socket(unix.AF_VSOCK, unix.SOCK_STREAM, 0)
	case "netlink":
		return socket(unix.AF_NETLINK, unix.SOCK_RAW, 0)
	case "listen": // and never accept
		return net.Listen("unix", arg)
	case "serve":
		l, err := net.Listen("unix", arg)
		if err == nil {
			go acceptAll(l)
		}
		return l, err
	case "connect":
		return net.Dial("unix", arg)
	case "pair":
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
		return fds, err
	case "write":
		return os.OpenFile(arg, os.O_RDWR|os.O_CREATE, 0o600)
	case "read":
		return os.Open(arg)
	}
	return nil, fmt.Errorf("it cannot hold %q", what)
}

func acceptAll(l net.Listener) {
	for c, err := l.Accept(); err == nil; c, err = l.Accept() {
		defer c.Close()
	}
}

// start starts a process that holds something, and returns its ID.
func start(t *testing.T, what string) int {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", "-test.run=none")
	cmd.Env = append(os.Environ(), holdEnv+"="+what, "GORACE=atexit_sleep_ms=0")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		cmd.Wait()
	})
	if line, _ := bufio.NewReader(out).ReadString('\n'); line != "<nil>\n" {
		t.Fatalf("hold %s: %s", what, line)
	}
	return cmd.Process.Pid
}

// Every kind of way out is found, and what belongs to the machine is not one.
func TestInspect(t *testing.T) {
	dir, err := os.MkdirTemp("", "hf")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	own, other := filepath.Join(dir, "own"), filepath.Join(dir, "other")
	for _, d := range []string{own, other, filepath.Join(other, "domain-3-mine")} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	web, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer web.Close()
	for _, d := range []string{own, other} { // what waits to be accepted elsewhere is not taken for what is looked at
		start(t, "listen "+d+"/waiting")
		start(t, "connect "+d+"/waiting")
		start(t, "serve "+d+"/served")
	}
	if l, err := net.Listen("unix", other+"/ours"); err != nil { // as a server of disks does, in this process
		t.Fatal(err)
	} else {
		defer l.Close()
		go acceptAll(l)
	}
	for _, tt := range []struct{ what, found string }{
		{"nothing", ""}, {"pair", ""}, {"listen " + own + "/s", ""}, {"connect " + own + "/served", ""},
		{"connect " + own + "/waiting", ""}, {"write " + own + "/f", ""},
		{"read /etc/passwd", ""}, {"write /dev/null", ""}, {"connect " + other + "/ours", ""},
		{"listen " + other + "/domain-3-mine/s", ""},
		{"tcp", "TCP socket 127.0.0.1:"}, {"udp", "UDP socket"},
		{"dial " + web.Addr().String(), "to " + web.Addr().String()},
		{"unbound", "a socket of a family that the kernel does not tell"}, {"packet", "packet socket"},
		{"raw", "raw IP socket"},
		{"vsock", "a socket of a family that the kernel does not tell"},
		{"netlink", "a socket of a family that the kernel does not tell"},
		{"listen " + other + "/s", "unix socket " + other + "/s"},
		{"connect " + other + "/served", "connected to unix socket " + other + "/served"},
		{"connect " + other + "/waiting", "connected to unix socket " + other + "/waiting of process"},
		{"write " + other + "/f", other + "/f is open for writing"},
		{"listen " + own + "2", "unix socket " + own + "2"},
		{"read /dev/net/tun", "the host's device /dev/net/tun"}, {"read /dev/fuse", ""},
		{"write /dev/fuse", "/dev/fuse is open for writing"},
	} {
		t.Run(strings.ReplaceAll(tt.what, dir, ""), func(t *testing.T) {
			if _, path, _ := strings.Cut(tt.what, " "); strings.HasPrefix(path, "/dev/net/") {
				if _, err := os.Stat(path); err != nil {
					path = filepath.Dir(path) // what this host lacks cannot be held
					tt.what, tt.found = "read "+path, ""
					if _, err := os.Stat(path); err != nil {
						tt.what = "nothing"
					}
				}
			}
			pid := start(t, tt.what)
			r, err := isolation.Inspect(pid, []string{own, "mine"})
			if err != nil {
				t.Fatal(err)
			}
			switch {
			case tt.found == "" && !r.Isolated():
				t.Errorf("found %q", r.Found)
			case tt.found != "" && !slices.ContainsFunc(r.Found, func(f string) bool {
				return strings.Contains(f, tt.found)
			}):
				t.Errorf("found %q, want %q", r.Found, tt.found)
			}
			if r.Files == 0 {
				t.Error("no file was looked at")
			}
		})
	}
	if _, err := isolation.Inspect(1<<22+1, nil); err == nil {
		t.Error("a process that is not there was looked at")
	}
}

// What QEMU says of its networks is read; anything but a card on a hub of its own is a way out.
func TestBackends(t *testing.T) {
	for _, tt := range []struct{ name, info, want string }{
		{"none", "", ""},
		{"own hubs", "hub 6\n \\ n1: virtio-net-pci.0: " +
			"index=0,type=nic,model=virtio-net-pci,macaddr=52:54:00:12:34:57\nhub 5\n \\ n0: e1000.0: " +
			"index=0,type=nic,model=e1000,macaddr=52:54:00:12:34:56\n", ""},
		{"user", "e1000.1: index=0,type=nic,model=e1000,macaddr=52:54:00:12:34:57\n \\ n0: " +
			"index=0,type=user,net=10.0.2.0,restrict=off\n", "network n0 of type user"},
		{"user, link down", "net0: index=0,type=nic,model=e1000\r\n \\ hostnet0: " +
			"index=0,type=user,net=10.0.2.0,restrict=off\r\n", ""},
		{"shared hub", "hub 0\n \\ hub0port1: #net106: index=0,type=tap,ifname=x\n \\ hub0port0: e1000.0: " +
			"index=0,type=nic\n", "network hub0port1 of type tap, hub 0 has 2 ports"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := strings.Join(isolation.Backends(tt.info, "hostnet0"), ", "); got != tt.want {
				t.Errorf("found %q, want %q", got, tt.want)
			}
		})
	}
}
