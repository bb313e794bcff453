package qemu

import (
	"fmt"
	"strings"
)

// moveSockets gives the machine's monitor and agent their new paths, and everything else that has a
// name on the host one of its own, so that the machine and its original do not meet.
func (w *rewriter) moveSockets() {
	monitors := w.monitorChardevs()
	agent := ""
	if p := w.cl.agentChardev(); p != nil {
		agent = p.get("id")
	}
	w.cl.edit("chardev", func(_ *option, p *props) { w.moveChardev(p, monitors, agent) })
	w.moveMonitors(len(monitors) > 0)
	for i := range w.cl.options {
		w.moveOption(i)
	}
}

// monitorChardevs returns the IDs of the character devices of QMP monitors, of which the first
// becomes the new machine's.
func (w *rewriter) monitorChardevs() []string {
	var ids []string
	for _, v := range w.cl.values("mon") {
		if p := parseProps(v, "chardev"); p.get("mode") == "control" {
			ids = append(ids, p.get("chardev"))
		}
	}
	return ids
}

func (w *rewriter) moveChardev(p *props, monitors []string, agent string) {
	id := p.get("id")
	switch backend := p.get("backend"); {
	case id == "" || w.tpm != nil && p.get("path") == w.tpm.socket:
	case backend == "socket" && len(monitors) > 0 && id == monitors[0]:
		listen(p, w.socket)
	case backend == "socket" && id == agent:
		listen(p, w.agent)
	case backend == "socket" && serves(p):
		if p.get("path") == "" {
			w.warn("character device %s listened on a port: it now listens on the socket %s", id, w.own(id+".sock"))
		}
		listen(p, w.own(id+".sock"))
	case backend == "file" || backend == "pipe":
		p.set("path", w.own(id+".log"))
	}
	if p.get("logfile") != "" {
		p.set("logfile", w.own(id+".log"))
	}
}

func serves(p *props) bool { return p.get("server") == "on" || p.get("server") == "yes" }

// listen makes a socket character device listen on a unix socket without waiting for a client.
func listen(p *props, path string) {
	p.remove(func(key string) bool {
		switch key {
		case "path", "host", "port", "to", "ipv4", "ipv6", "fd", "telnet", "tn3270", "websocket", "tls-creds",
			"tls-authz", "nodelay",
			"server", "wait", "nowait", "noserver", "reconnect", "delay":
			return true
		}
		return false
	})
	p.set("path", path)
	p.set("server", "on")
	p.set("wait", "off")
}

// moveMonitors sets the path of the first -qmp, unless a -mon has it, and adds one where there is
// none.
func (w *rewriter) moveMonitors(have bool) {
	for i := range w.cl.options {
		o := &w.cl.options[i]
		if o.name != "qmp" && o.name != "qmp-pretty" || o.value == "none" {
			continue
		}
		path := w.own(fmt.Sprintf("qmp%d.sock", i))
		if !have {
			path, have = w.socket, true
		}
		o.value = unixServer(path)
	}
	if !have {
		w.cl.options = append(w.cl.options, option{name: "qmp", value: unixServer(w.socket), hasValue: true})
	}
}

func unixServer(path string) string {
	return "unix:" + strings.ReplaceAll(path, ",", ",,") + ",server=on,wait=off"
}

// moveOption moves what a single option names on the host.
func (w *rewriter) moveOption(i int) {
	o := &w.cl.options[i]
	switch o.name {
	case "serial", "parallel", "monitor", "debugcon":
		o.value = w.moveLegacy(o.value, fmt.Sprintf("%s%d", o.name, i))
	case "pidfile":
		o.value = w.own("pid")
	case "D":
		o.value = w.own("qemu.log")
	case "vnc":
		if o.value != "none" {
			w.warn("the VNC display is now on the socket %s", w.own("vnc"))
			o.value = "unix:" + w.own("vnc")
		}
	case "spice":
		p := parseProps(o.value, "")
		dropKeys(p, "", "port", "tls-port", "addr", "unix", "ipv4", "ipv6")
		p.set("unix", "on")
		p.set("addr", w.own("spice"))
		p.set("disable-ticketing", "on")
		w.warn("the SPICE display is now on the socket %s", w.own("spice"))
		o.value = p.String()
	}
}

// moveLegacy moves a character device in the short form of -serial and its like.
func (w *rewriter) moveLegacy(value, name string) string {
	kind, rest, _ := strings.Cut(value, ":")
	prefix := ""
	if kind == "mon" {
		prefix = "mon:"
		kind, rest, _ = strings.Cut(rest, ":")
	}
	server := strings.Contains(rest, "server")
	switch {
	case kind == "file" || kind == "pipe":
		return prefix + "file:" + strings.ReplaceAll(w.own(name+".log"), ",", ",,")
	case (kind == "unix" || kind == "tcp" || kind == "telnet" || kind == "websocket") && (server || kind == "telnet"):
		return prefix + unixServer(w.own(name+".sock"))
	}
	return value
}
