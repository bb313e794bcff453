package qemu

import (
	"encoding/json"
	"fmt"
	"sort"
	"strings"
)

// impliedKey is what a first value without a key means.
var impliedKey = map[string]string{"chardev": "backend", "device": "driver", "netdev": "type", "nic": "type",
	"net":     "type",
	"machine": "type", "M": "type", "object": "qom-type", "name": "guest", "tpmdev": "type", "mon": "chardev",
	"vnc": "vnc",
	"smp": "cpus", "m": "size", "accel": "accel", "cpu": "model", "vga": "type", "audiodev": "driver",
	"fsdev":  "fsdriver",
	"virtfs": "fsdriver", "blockdev": "driver"}

// props are the properties of one option, key=value,… or JSON. Keys of nested JSON are written with
// dots, as QEMU does.
type props struct {
	object map[string]any // of JSON; nil for the other form
	list   []property
}

type property struct {
	key, value string
	bare       bool // written without "=": the implied key's value, or a switch
	implied    bool
}

// parseProps accepts anything.
func parseProps(s, implied string) *props {
	if strings.HasPrefix(s, "{") {
		d := json.NewDecoder(strings.NewReader(s))
		d.UseNumber()
		var object map[string]any
		if d.Decode(&object) == nil && object != nil {
			return &props{object: object}
		}
	}
	p := &props{}
	for i, part := range splitCommas(s) {
		key, value, ok := strings.Cut(part, "=")
		switch {
		case ok:
			p.list = append(p.list, property{key: key, value: value})
		case part == "": // means nothing, and would turn into an escaped comma
		case i == 0 && implied != "":
			p.list = append(p.list, property{key: implied, value: part, bare: true, implied: true})
		default:
			p.list = append(p.list, property{key: part, value: "on", bare: true})
		}
	}
	return p
}

// splitCommas splits at single commas; two commas stand for one.
func splitCommas(s string) []string {
	var parts []string
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != ',' {
			b.WriteByte(s[i])
			continue
		}
		if i+1 < len(s) && s[i+1] == ',' {
			b.WriteByte(',')
			i++
			continue
		}
		parts = append(parts, b.String())
		b.Reset()
	}
	return append(parts, b.String())
}

// String writes the properties in the form they came in.
func (p *props) String() string {
	if p.object != nil {
		out, err := json.Marshal(p.object)
		if err != nil {
			panic(fmt.Sprintf("what was decoded from JSON cannot be encoded: %v", err))
		}
		return string(out)
	}
	var parts []string
	for _, e := range p.list {
		s := e.key + "=" + e.value
		if e.implied {
			s = e.value
		} else if e.bare {
			s = e.key
		}
		parts = append(parts, strings.ReplaceAll(s, ",", ",,"))
	}
	return strings.Join(parts, ",")
}

// get returns the value of a key, "" if there is none or it has an object for its value.
func (p *props) get(key string) string {
	if p.object == nil {
		for _, e := range p.list {
			if e.key == key {
				return e.value
			}
		}
		return ""
	}
	object, last := p.parent(key, false)
	switch v := object[last].(type) {
	case nil, map[string]any, []any:
		return ""
	case bool:
		if v {
			return "on"
		}
		return "off"
	default:
		return fmt.Sprint(v)
	}
}

// parent returns the JSON object that a dotted key is in, nil if it is not there and make is false.
func (p *props) parent(key string, make bool) (map[string]any, string) {
	object := p.object
	for {
		head, tail, more := strings.Cut(key, ".")
		if !more {
			return object, key
		}
		next, ok := object[head].(map[string]any)
		if !ok {
			if !make {
				return nil, tail
			}
			next = map[string]any{}
			object[head] = next
		}
		object, key = next, tail
	}
}

// set changes the value of a key, or adds it.
func (p *props) set(key, value string) {
	if p.object != nil {
		object, last := p.parent(key, true)
		object[last] = value
		return
	}
	for i := range p.list {
		if e := &p.list[i]; e.key == key {
			e.value = value
			e.bare = e.implied
			return
		}
	}
	p.list = append(p.list, property{key: key, value: value})
}

// remove drops the keys that match, nested ones with their dotted names.
func (p *props) remove(match func(key string) bool) {
	if p.object != nil {
		removeJSON(p.object, "", match)
		return
	}
	var kept []property
	for _, e := range p.list {
		if !match(e.key) {
			kept = append(kept, e)
		}
	}
	p.list = kept
}

func removeJSON(object map[string]any, prefix string, match func(key string) bool) {
	for key, v := range object {
		inner, nested := v.(map[string]any)
		switch {
		case match(prefix + key):
			delete(object, key)
		case nested:
			if removeJSON(inner, prefix+key+".", match); len(inner) == 0 {
				delete(object, key)
			}
		}
	}
}

// keys returns all keys, dotted, in the order written; of JSON, sorted.
func (p *props) keys() []string {
	if p.object != nil {
		out := keysJSON(p.object, "")
		sort.Strings(out)
		return out
	}
	var out []string
	for _, e := range p.list {
		out = append(out, e.key)
	}
	return out
}

func keysJSON(object map[string]any, prefix string) []string {
	var out []string
	for key, v := range object {
		if inner, ok := v.(map[string]any); ok {
			out = append(out, keysJSON(inner, prefix+key+".")...)
			continue
		}
		out = append(out, prefix+key)
	}
	return out
}
