package lvm

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/holdfast-vm/holdfast/internal/filesystem"
)

const (
	maxDepth = 16
	maxNodes = 1 << 20 // sections, keys and values of a text
)

// section is `{ … }` of LVM's configuration language. Values are int64, float64, string, []any of
// these, or *section.
type section struct {
	keys   []string // in their order
	values map[string]any
}

func (s *section) sub(key string) *section {
	v, _ := s.values[key].(*section)
	if v == nil {
		return &section{}
	}
	return v
}

// each visits the sections that s holds.
func (s *section) each(visit func(name string, sub *section) error) error {
	for _, k := range s.keys {
		if sub, ok := s.values[k].(*section); ok {
			if err := visit(k, sub); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *section) str(key string) string {
	v, _ := s.values[key].(string)
	return v
}

// number returns an integer of at least 0 that can be counted with, -1 where there is none.
func (s *section) number(key string) int64 {
	v, ok := s.values[key].(int64)
	if !ok || v < 0 || v > math.MaxInt64>>20 {
		return -1
	}
	return v
}

// list returns an array; a single value is one of length one.
func (s *section) list(key string) []any {
	switch v := s.values[key].(type) {
	case []any:
		return v
	case nil, *section:
		return nil
	default:
		return []any{v}
	}
}

func (s *section) has(key, flag string) bool {
	for _, v := range s.list(key) {
		if v == flag {
			return true
		}
	}
	return false
}

// parser reads the language; it is bounded in depth and in what it makes.
type parser struct {
	text  []byte
	at    int
	nodes int
}

// parseText parses metadata text.
func parseText(text []byte) (*section, error) {
	p := &parser{text: text}
	s, err := p.section(0)
	if err != nil {
		return nil, fmt.Errorf("%w: metadata text at byte %d: %w", filesystem.ErrCorrupt, p.at, err)
	}
	return s, nil
}

func (p *parser) skip() {
	for p.at < len(p.text) {
		switch c := p.text[p.at]; {
		case c == '#':
			for p.at < len(p.text) && p.text[p.at] != '\n' {
				p.at++
			}
		case c == ' ' || c == '\t' || c == '\n' || c == '\r' || c == 0:
			p.at++
		default:
			return
		}
	}
}

func (p *parser) peek() byte {
	p.skip()
	if p.at == len(p.text) {
		return 0
	}
	return p.text[p.at]
}

// section parses keys up to the closing brace, or at depth 0 to the end.
func (p *parser) section(depth int) (*section, error) {
	if depth > maxDepth {
		return nil, fmt.Errorf("sections are nested too deep")
	}
	s := &section{values: map[string]any{}}
	for {
		switch c := p.peek(); {
		case c == 0 && p.at == len(p.text):
			if depth > 0 {
				return nil, fmt.Errorf("it ends within a section")
			}
			return s, nil
		case c == '}' && depth > 0:
			p.at++
			return s, nil
		}
		if err := p.entry(s, depth); err != nil {
			return nil, err
		}
	}
}

func (p *parser) entry(s *section, depth int) error {
	key := p.word()
	if key == "" {
		return fmt.Errorf("a name was expected")
	}
	if p.nodes++; p.nodes > maxNodes {
		return fmt.Errorf("it holds too much")
	}
	if _, twice := s.values[key]; twice {
		return fmt.Errorf("%q stands twice", key)
	}
	var v any
	var err error
	switch p.peek() {
	case '{':
		p.at++
		v, err = p.section(depth + 1)
	case '=':
		p.at++
		v, err = p.value()
	default:
		err = fmt.Errorf("= or { was expected after %q", key)
	}
	if err != nil {
		return err
	}
	s.keys = append(s.keys, key)
	s.values[key] = v
	return nil
}

// word is a name or a number.
func (p *parser) word() string {
	p.skip()
	begin := p.at
	for p.at < len(p.text) && !strings.ContainsRune(" \t\r\n\x00={}[],\"#", rune(p.text[p.at])) {
		p.at++
	}
	return string(p.text[begin:p.at])
}

func (p *parser) value() (any, error) {
	if p.peek() != '[' {
		return p.scalar()
	}
	p.at++
	list := []any{}
	for {
		switch p.peek() {
		case ']':
			p.at++
			return list, nil
		case ',':
			p.at++
			continue
		}
		v, err := p.scalar()
		if err != nil {
			return nil, err
		}
		list = append(list, v)
	}
}

func (p *parser) scalar() (any, error) {
	if p.nodes++; p.nodes > maxNodes {
		return nil, fmt.Errorf("it holds too much")
	}
	if p.peek() == '"' {
		return p.quoted()
	}
	w := p.word()
	if n, err := strconv.ParseInt(w, 10, 64); err == nil {
		return n, nil
	}
	if f, err := strconv.ParseFloat(w, 64); err == nil {
		return f, nil
	}
	return nil, fmt.Errorf("%q is no value", w)
}

func (p *parser) quoted() (string, error) {
	var b strings.Builder
	for p.at++; p.at < len(p.text); p.at++ {
		switch c := p.text[p.at]; c {
		case '"':
			p.at++
			return b.String(), nil
		case '\\':
			if p.at+1 < len(p.text) {
				p.at++
			}
			b.WriteByte(p.text[p.at])
		default:
			b.WriteByte(c)
		}
	}
	return "", fmt.Errorf("it ends within a string")
}
