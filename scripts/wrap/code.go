package main

import (
	"bytes"
	"go/ast"
	"go/format"
	"go/parser"
	"go/token"
	"strings"
)

// wrap returns a file with its lines wrapped as far as that can be done.
func wrap(src []byte) ([]byte, error) {
	src, err := wrapComments(src)
	if err != nil {
		return nil, err
	}
	if src, err = format.Source(src); err != nil {
		return nil, err
	}
	for range 500 {
		next, err := breakOne(src)
		if err != nil {
			return nil, err
		}
		if next == nil {
			return src, nil
		}
		if src, err = format.Source(next); err != nil {
			return nil, err
		}
	}
	return src, nil
}

// breakOne breaks the first line of code that is too wide and can be broken. It returns nil if
// there is none.
func breakOne(src []byte) ([]byte, error) {
	all, err := pieces(src)
	if err != nil {
		return nil, err
	}
	opens, texts, err := places(src)
	if err != nil {
		return nil, err
	}
	lines := strings.Split(string(src), "\n")
	data := dataLines(all)
	for first := 0; first < len(all); {
		last := first
		for last < len(all) && all[last].line == all[first].line {
			last++
		}
		l := lineOf{text: lines[all[first].line], pieces: all[first:last], opens: opens, texts: texts}
		if from, ok := data[all[first].line]; ok {
			l.text = l.text[:from]
		}
		if columns(l.text, len(l.text)) > codeWidth && all[first].tok != token.COMMENT {
			if at, insert := l.best(); at > 0 {
				return bytes.Join([][]byte{src[:at], []byte(insert), src[at:]}, nil), nil
			}
		}
		first = last
	}
	return nil, nil
}

// places returns the offsets behind which a block of one line opens, and those of the strings that
// may be cut in two.
func places(src []byte) (opens, texts map[int]bool, err error) {
	fset := token.NewFileSet()
	file, err := parser.ParseFile(fset, "", src, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return nil, nil, err
	}
	opens, texts = map[int]bool{}, map[int]bool{}
	at := func(p token.Pos) token.Position { return fset.Position(p) }
	open := func(from, to token.Pos) {
		if from.IsValid() && at(from).Line == at(to).Line && to > from+1 {
			opens[at(from).Offset] = true
		}
	}
	ast.Inspect(file, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.BlockStmt:
			open(n.Lbrace, n.Rbrace)
		case *ast.StructType:
			open(n.Fields.Opening, n.Fields.Closing)
		case *ast.InterfaceType:
			open(n.Methods.Opening, n.Methods.Closing)
		case *ast.ImportSpec:
			return false
		case *ast.BasicLit:
			if n.Kind == token.STRING && n.Value[0] == '"' {
				texts[at(n.Pos()).Offset] = true
			}
		}
		return true
	})
	return opens, texts, nil
}

// lineOf is a line of code that is too wide.
type lineOf struct {
	text   string
	pieces []piece
	opens  map[int]bool
	texts  map[int]bool
}

// best returns the offset at which the line is best broken, and what is to be put there; 0 if it
// cannot be broken. A break costs more the deeper it lies in brackets and the more room it leaves.
func (l lineOf) best() (at int, insert string) {
	depth, lowest := 0, 1<<30
	assigned := l.assignment()
	indent := columns(l.text, len(l.text)-len(strings.TrimLeft(l.text, "\t")))
	blocks := 0
	for i, p := range l.pieces {
		switch p.tok {
		case token.LPAREN, token.LBRACK, token.LBRACE:
			depth++
		case token.RPAREN, token.RBRACK, token.RBRACE:
			depth--
		}
		if p.col+len(p.text) > len(l.text) || i == len(l.pieces)-1 {
			break
		}
		end := columns(l.text, p.col+len(p.text))
		if l.opens[p.start] {
			// A block of one line is opened before anything else is tried, wherever it ends.
			if end <= codeWidth && blocks == 0 {
				blocks++
				if cost := depth*30 - 60; cost < lowest {
					lowest, at, insert = cost, p.end, "\n"
				}
			}
			continue
		}
		if end > codeWidth {
			break
		}
		cost := depth*45 + (codeWidth-end)*6/10
		switch p.tok {
		case token.COMMA:
			if i < assigned {
				continue
			}
			if depth == 0 && l.pieces[0].tok == token.RETURN {
				cost += 70
			}
		case token.LOR:
			cost += 5
		case token.LAND:
			cost += 30
		case token.ADD:
			cost += 12
		case token.OR:
			cost += 10
		default:
			continue
		}
		if end < indent+30 {
			cost += 60
		}
		if cost < lowest {
			lowest, at, insert = cost, p.end, "\n"
		}
	}
	if cutAt, text := l.cut(); cutAt > 0 && (at == 0 || lowest > 140) {
		return cutAt, text
	}
	return at, insert
}

// assignment returns the index of the piece that assigns, behind which the line may be broken; for
// a loop or a condition that of its last statement.
func (l lineOf) assignment() int {
	depth, found := 0, -1
	for i, p := range l.pieces {
		switch p.tok {
		case token.LPAREN, token.LBRACK, token.LBRACE:
			depth++
		case token.RPAREN, token.RBRACK, token.RBRACE:
			depth--
		case token.ASSIGN, token.DEFINE:
			if depth == 0 && found < 0 {
				found = i
			}
		}
	}
	return found
}

// cut returns where the string that crosses the last column is cut in two: at a space, at a comma,
// or before a byte that is written as a number.
func (l lineOf) cut() (at int, insert string) {
	for _, p := range l.pieces {
		if !l.texts[p.start] || p.col+len(p.text) > len(l.text) {
			continue
		}
		end := columns(l.text, p.col+len(p.text))
		if end <= codeWidth-2 {
			continue
		}
		// Two quotes and the plus sign need room too.
		for _, before := range []string{" ", ",", ""} {
			for n := len(p.text) - 2; n > 12; n-- {
				fits := columns(l.text, p.col+n) <= codeWidth-3
				if fits && strings.HasSuffix(p.text[:n], before) && (before != "" || p.text[n:n+2] == `\x`) {
					return p.start + n, "\" +\n\""
				}
			}
		}
		return 0, ""
	}
	return 0, ""
}
