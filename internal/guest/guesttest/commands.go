package guesttest

import (
	"encoding/base64"
	"encoding/json"
	"slices"
	"time"
)

// allowedWhileHeld is what an agent executes while its guest is held.
var allowedWhileHeld = []string{
	"guest-ping", "guest-info", "guest-sync", "guest-sync-delimited", "guest-fsfreeze-status", "guest-fsfreeze-thaw",
}

func (g *Guest) commands() map[string]func(args json.RawMessage) []byte {
	return map[string]func(args json.RawMessage) []byte{
		"guest-sync-delimited": g.sync,
		"guest-ping":           func(json.RawMessage) []byte { return result(struct{}{}) },
		"guest-info":           g.info,
		"guest-get-osinfo":     g.osinfo,
		"guest-get-host-name": func(json.RawMessage) []byte {
			return result(map[string]string{"host-name": "guest1"})
		},
		"guest-get-fsinfo":             g.fsinfo,
		"guest-network-get-interfaces": g.interfaces,
		"guest-fsfreeze-status":        g.status,
		"guest-fsfreeze-freeze":        g.fsfreeze,
		"guest-fsfreeze-thaw":          g.fsthaw,
		"guest-file-open":              g.fileOpen,
		"guest-file-read":              g.fileRead,
		"guest-file-close":             func(json.RawMessage) []byte { return result(struct{}{}) },
		"guest-exec":                   g.exec,
		"guest-exec-status":            g.execStatus,
	}
}

func (g *Guest) execute(command string, args json.RawMessage) []byte {
	run, ok := g.commands()[command]
	g.mu.Lock()
	frozen := g.frozen
	g.mu.Unlock()
	switch {
	case !ok:
		return errorReply("CommandNotFound", "The command "+command+" has not been found")
	case slices.Contains(g.Disabled, command), command == "guest-get-osinfo" && g.NoOSInfo:
		return errorReply("CommandNotFound", "Command "+command+" has been disabled: the command is not allowed")
	case frozen && !slices.Contains(allowedWhileHeld, command):
		return errorReply("CommandNotFound", "Command "+command+" has been disabled: the agent is in frozen state")
	}
	return run(args)
}

func result(v any) []byte { return encode(map[string]any{"return": v}) }

func errorReply(class, desc string) []byte {
	return encode(map[string]any{"error": map[string]string{"class": class, "desc": desc}})
}

func encode(v any) []byte {
	data, err := json.Marshal(v)
	if err != nil {
		panic(err) // of our own making
	}
	return append(data, '\n')
}

func (g *Guest) sync(args json.RawMessage) []byte {
	var a struct {
		ID json.Number `json:"id"`
	}
	if err := json.Unmarshal(args, &a); err != nil {
		return errorReply("GenericError", err.Error())
	}
	return append([]byte{0xFF}, result(a.ID)...)
}

func (g *Guest) info(json.RawMessage) []byte {
	type command struct {
		Name    string `json:"name"`
		Enabled bool   `json:"enabled"`
		Success bool   `json:"success-response"`
	}
	var all []command
	for name := range g.commands() {
		all = append(all, command{name, !slices.Contains(g.Disabled, name), true})
	}
	return result(map[string]any{"version": "7.2.22", "supported_commands": all})
}

func (g *Guest) osinfo(json.RawMessage) []byte {
	if g.Windows {
		return result(map[string]string{"id": "mswindows", "name": "Microsoft Windows",
			"pretty-name": "Windows Server 2022 Standard"})
	}
	return result(map[string]string{"id": "debian", "name": "Debian GNU/Linux",
		"pretty-name": "Debian GNU/Linux 12 (bookworm)"})
}

func (g *Guest) fsinfo(json.RawMessage) []byte {
	return result([]map[string]any{{"name": "vda1", "mountpoint": "/", "type": "ext4", "disk": []any{}},
		{"name": "vdb1", "mountpoint": "/srv", "type": "xfs", "disk": []any{}}})
}

func (g *Guest) interfaces(json.RawMessage) []byte {
	addr := func(ip string) map[string]any { return map[string]any{"ip-address": ip, "prefix": 24} }
	return result([]map[string]any{
		{"name": "lo", "ip-addresses": []any{addr("127.0.0.1"), addr("::1")}},
		{"name": "eth0", "hardware-address": "52:54:00:00:00:01",
			"ip-addresses": []any{addr("192.0.2.7"), addr("fe80::1")}},
		{"name": "eth1"},
	})
}

func (g *Guest) status(json.RawMessage) []byte {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.frozen {
		return result("frozen")
	}
	return result("thawed")
}

func (g *Guest) fsfreeze(json.RawMessage) []byte {
	time.Sleep(g.FreezeTakes)
	if g.FreezeFails != "" {
		return errorReply("GenericError", g.FreezeFails)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.freeze()
	return result(g.held)
}

func (g *Guest) freeze() {
	g.held = g.Volumes
	if g.Volumes == 0 {
		g.held = 3
	}
	g.held = max(g.held, 0)
	g.frozen, g.since = g.held > 0, time.Now()
}

func (g *Guest) fsthaw(json.RawMessage) []byte {
	g.mu.Lock()
	defer g.mu.Unlock()
	limit := g.HoldLimit
	if g.Windows && limit == 0 {
		limit = 10 * time.Second
	}
	count := max(g.held-g.Slips, 0)
	expired := g.held > 0 && limit > 0 && time.Since(g.since) > limit
	g.held, g.frozen, g.undone = 0, false, true
	switch {
	case expired:
		return errorReply("GenericError",
			"couldn't hold writes: fsfreeze is limited up to 10 seconds: (error: 80042314)")
	case g.ThawFails != "":
		return errorReply("GenericError", g.ThawFails)
	}
	return result(count)
}

func (g *Guest) fileOpen(args json.RawMessage) []byte {
	var a struct{ Path, Mode string }
	if err := json.Unmarshal(args, &a); err != nil {
		return errorReply("GenericError", err.Error())
	}
	text, ok := g.Files[a.Path]
	if !ok {
		return errorReply("GenericError", "failed to open file '"+a.Path+"' (mode: 'r'): No such file or directory")
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.next++
	g.files[g.next] = text
	return result(g.next)
}

func (g *Guest) fileRead(args json.RawMessage) []byte {
	var a struct{ Handle, Count int64 }
	if err := json.Unmarshal(args, &a); err != nil {
		return errorReply("GenericError", err.Error())
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	text := g.files[a.Handle]
	n := min(len(text), int(a.Count), 100) // short reads are allowed
	g.files[a.Handle] = text[n:]
	return result(map[string]any{"count": n, "buf-b64": base64.StdEncoding.EncodeToString([]byte(text[:n])),
		"eof": n == len(text)})
}

func (g *Guest) exec(args json.RawMessage) []byte {
	var a struct {
		Path  string
		Arg   []string
		Input []byte `json:"input-data"`
	}
	if err := json.Unmarshal(args, &a); err != nil {
		return errorReply("GenericError", err.Error())
	}
	out, code := "", 127
	status := map[string]any{"exited": true}
	if g.Exec != nil {
		errs := ""
		out, errs, code = g.Exec(a.Path, a.Arg, a.Input)
		status["err-data"] = base64.StdEncoding.EncodeToString([]byte(errs))
	} else if g.Programs != nil {
		out, code = g.Programs(a.Path, a.Arg)
	}
	status["exitcode"], status["out-data"] = code, base64.StdEncoding.EncodeToString([]byte(out))
	g.mu.Lock()
	defer g.mu.Unlock()
	g.next++
	g.files[g.next] = string(result(status))
	return result(map[string]int64{"pid": g.next})
}

func (g *Guest) execStatus(args json.RawMessage) []byte {
	var a struct{ PID int64 }
	if err := json.Unmarshal(args, &a); err != nil {
		return errorReply("GenericError", err.Error())
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	return []byte(g.files[a.PID])
}
