package cli

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"

	"github.com/holdfast-vm/holdfast/internal/export"
	"github.com/holdfast-vm/holdfast/internal/nbd"
	"github.com/holdfast-vm/holdfast/internal/point"
	"github.com/holdfast-vm/holdfast/internal/vault"
)

type exportFlags struct {
	disk, writable         string
	socket, listen, tlsDir string
	cacheSize              string
	allowInsecure          bool
	recordBoot             bool
}

// Exported is what point export --json prints when it begins to serve.
type Exported struct {
	ID    point.ID       `json:"id"`
	VM    string         `json:"vm"`
	Disks []ExportedDisk `json:"disks"`
}

// ExportedDisk is one disk that is served.
type ExportedDisk struct {
	Disk     string `json:"disk"`
	Name     string `json:"name"` // of the NBD export
	URI      string `json:"uri"`
	Size     int64  `json:"size"` // bytes
	Writable bool   `json:"writable"`
	TLS      bool   `json:"tls"`
}

func (a *app) pointExport() *cobra.Command {
	var flags exportFlags
	cmd := command{
		use:   "export POINT [--disk NAME] [--writable DIR] [--socket S | --listen ADDR]",
		short: "Serve the disks of a recovery point over NBD",
		args:  cobra.ExactArgs(1),
		long: pointArgHelp + `

The disks can be read at once, by QEMU, qemu-img, nbdcopy or any other NBD client, until the
command is interrupted, which is how it ends. They are read-only, unless --writable names a
directory: writes go there, to a private layer over the point, which never changes. Served from
the same directory again, a disk is as it was left.

Without --socket and --listen a socket in the state directory is used. TCP needs --tls-dir with
ca-cert.pem, server-cert.pem and server-key.pem, the names that QEMU has for them; clients must
show a certificate of that authority. Without TLS only the loopback address is served, unless
--allow-insecure says that the network can be trusted: everybody on it can read the disks.`,
		examples: `
holdfast --vault /srv/vault point export web@latest
holdfast --vault /srv/vault point export 3fa9 --disk vda --writable /srv/try --socket /run/try.sock
holdfast --vault /srv/vault point export 3fa9 --listen :10809 --tls-dir /etc/pki/qemu`,
		statuses: vaultStatuses, reads: true,
		run: func(cmd *cobra.Command, args []string) error { return a.exportPoint(cmd.Context(), args[0], flags) },
	}.build()
	f := cmd.Flags()
	f.StringVar(&flags.disk, "disk", "",
		"`name` of the one disk to serve, or role of a file such as nvram (default: all disks)")
	f.StringVar(&flags.writable, "writable", "", "`directory` for a layer that takes writes")
	f.StringVar(&flags.socket, "socket", "", "`path` of the socket to listen on")
	f.StringVar(&flags.listen, "listen", "", "`address` HOST:PORT to listen on; no HOST means all addresses")
	f.StringVar(&flags.tlsDir, "tls-dir", "", "`directory` with the server's certificate and the authority of clients")
	f.StringVar(&flags.cacheSize, "cache-size", "256MiB", "`size` of the memory for what was read")
	f.BoolVar(&flags.allowInsecure, "allow-insecure", false, "serve other addresses than loopback without TLS")
	f.BoolVar(&flags.recordBoot, "record-boot", false,
		"keep with the point what a machine that boots now reads, to make later boots faster")
	cmd.ValidArgsFunction = a.completePoints
	return cmd
}

func (f *exportFlags) check() error {
	switch {
	case f.socket != "" && f.listen != "":
		return usagef("point export: give either --socket or --listen")
	case f.tlsDir != "" && f.listen == "":
		return usagef("point export: --tls-dir goes with --listen; the permissions of a socket say who may use it")
	case f.listen != "" && f.tlsDir == "" && !f.allowInsecure && !loopback(f.listen):
		return withHint(usagef("point export: --listen %s without TLS would let everybody who can reach it read the "+
			"disks", f.listen),
			"give --tls-dir DIR, listen on 127.0.0.1, or say --allow-insecure")
	}
	return nil
}

// loopback reports whether an address can only be reached from this machine.
func loopback(address string) bool {
	host, _, err := net.SplitHostPort(address)
	ip := net.ParseIP(host)
	return err == nil && (host == "localhost" || ip != nil && ip.IsLoopback())
}

func (a *app) exportPoint(ctx context.Context, ref string, flags exportFlags) error {
	if err := flags.check(); err != nil {
		return err
	}
	cache, err := parseSize(flags.cacheSize)
	if err != nil {
		return usagef("--cache-size: %v", err)
	}
	o := export.Options{CacheSize: max(cache, 1)}
	if flags.tlsDir != "" {
		if o.TLS, err = export.ServerTLS(flags.tlsDir); err != nil {
			return withHint(fmt.Errorf("read %s: %w", flags.tlsDir, err),
				"it must hold ca-cert.pem, server-cert.pem and server-key.pem")
		}
	}
	if a.env.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(leanMemory + o.CacheSize)
	}
	return a.withPoint(ctx, ref, func(v *vault.Vault, p *point.RecoveryPoint) error {
		if err := a.servePoint(ctx, v, p, o, flags); err != nil {
			return fmt.Errorf("export point %s of %s: %w", p.ID.Short(), p.VM, err)
		}
		return nil
	})
}

func (a *app) servePoint(ctx context.Context, v *vault.Vault, p *point.RecoveryPoint, o export.Options,
	flags exportFlags) (err error) {
	if err := p.RequireDisks(); err != nil {
		return err
	}
	server, err := export.Open(ctx, v, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, server.Close()) }()
	disks := []string{flags.disk}
	if flags.disk == "" {
		disks = nil
		for _, d := range p.Disks {
			disks = append(disks, d.Name)
		}
	}
	for _, d := range disks {
		r := export.Request{Point: p, Disk: d, WritableDir: flags.writable, RecordBoot: flags.recordBoot}
		if _, err := server.Add(ctx, r); err != nil {
			return err
		}
	}
	l, err := a.exportListener(p, flags)
	if err != nil {
		return err
	}
	if err := a.printExports(p, l.Addr(), server.Exports(), flags); err != nil {
		return errors.Join(err, l.Close())
	}
	if err := server.Serve(ctx, l); err != nil {
		return err
	}
	s := server.Stats()
	a.remark("served %s, of which %s were fetched from the vault", humanSize(s.ReadBytes), humanSize(s.FetchedBytes))
	return nil
}

func (a *app) exportListener(p *point.RecoveryPoint, flags exportFlags) (net.Listener, error) {
	if flags.listen != "" {
		return net.Listen("tcp", flags.listen)
	}
	socket := flags.socket
	if socket == "" {
		dir, err := a.stateDir()
		if err != nil {
			return nil, err
		}
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, err
		}
		socket = filepath.Join(dir, "export-"+p.ID.Short()+".sock")
	}
	socket, err := filepath.Abs(socket)
	if err != nil {
		return nil, err
	}
	return export.ListenUnix(socket, 0o600)
}

func (a *app) printExports(p *point.RecoveryPoint, addr net.Addr, exports []export.Export, flags exportFlags) error {
	out := Exported{ID: p.ID, VM: p.VM}
	for _, e := range exports {
		out.Disks = append(out.Disks, ExportedDisk{
			Disk: e.Disk, Name: e.Name, URI: nbd.URI(addr, e.Name, flags.tlsDir != ""), Size: e.Size,
			Writable: e.Writable, TLS: flags.tlsDir != "",
		})
	}
	if a.json {
		return a.printJSON(out)
	}
	var rows [][]string
	for _, d := range out.Disks {
		access := "read-only"
		if d.Writable {
			access = "writable"
		}
		rows = append(rows, []string{d.Disk, humanSize(d.Size), access, d.URI})
	}
	if err := a.printTable([]string{"disk", ">size", "access", "uri"}, rows); err != nil {
		return err
	}
	if len(out.Disks) > 0 {
		for _, line := range clientLines(out.Disks[0], addr) {
			a.remark("%s", line)
		}
	}
	a.remark("serving until interrupted")
	return nil
}

// clientLines are commands to copy: how the usual clients use a disk.
func clientLines(d ExportedDisk, addr net.Addr) []string {
	file := d.Disk + ".qcow2"
	if d.TLS {
		host, port, _ := net.SplitHostPort(addr.String())
		image := fmt.Sprintf("driver=nbd,host=%s,port=%s,export=%s,tls-creds=tls0", host, port, d.Name)
		return []string{
			"copy it:  qemu-img convert --object tls-creds-x509,id=tls0,endpoint=client,dir=CERTIFICATES " +
				"--image-opts " + shellWord(image) + " -O qcow2 " + file,
			"          nbdcopy " + shellWord(d.URI+"?tls-certificates=CERTIFICATES") + " " + d.Disk + ".raw",
			"boot it:  qemu-system-x86_64 -object tls-creds-x509,id=tls0,endpoint=client,dir=CERTIFICATES -drive " +
				shellWord("format=raw,if=virtio,"+"file."+strings.ReplaceAll(image, ",", ",file.")+snapshot(d)),
		}
	}
	return []string{
		"copy it:  qemu-img convert -f raw -O qcow2 " + shellWord(d.URI) + " " + file,
		"          nbdcopy " + shellWord(d.URI) + " " + d.Disk + ".raw",
		"boot it:  qemu-system-x86_64 -m 2G -drive " + shellWord("file="+d.URI+",format=raw,if=virtio"+snapshot(d)),
	}
}

// snapshot lets QEMU keep a guest's writes to itself where the export takes none.
func snapshot(d ExportedDisk) string {
	if d.Writable {
		return ""
	}
	return ",snapshot=on"
}

// shellWord writes s as one word of a shell.
func shellWord(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
