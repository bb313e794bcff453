package main

import (
	"go/scanner"
	"go/token"
	"strings"
	"unicode/utf8"
)

// A piece is a token of a Go file with its place: lines and byte columns begin at 0.
type piece struct {
	tok        token.Token
	text       string
	line, col  int
	last       int // line in which it ends
	start, end int // offsets of bytes
}

// pieces returns all tokens of a file, comments among them.
func pieces(src []byte) ([]piece, error) {
	var errs scanner.ErrorList
	fset := token.NewFileSet()
	file := fset.AddFile("", fset.Base(), len(src))
	var s scanner.Scanner
	s.Init(file, src, errs.Add, scanner.ScanComments)
	var all []piece
	for {
		pos, tok, lit := s.Scan()
		if tok == token.EOF {
			return all, errs.Err()
		}
		if tok == token.SEMICOLON && lit == "\n" {
			continue
		}
		if lit == "" || tok.IsOperator() {
			lit = tok.String()
		}
		at := file.Position(pos)
		p := piece{tok: tok, text: lit, line: at.Line - 1, col: at.Column - 1, start: at.Offset}
		p.end = p.start + len(lit)
		p.last = p.line + strings.Count(lit, "\n")
		all = append(all, p)
	}
}

// columns returns the width of the first n bytes of a line.
func columns(line string, n int) int {
	width := 0
	for _, r := range line[:n] {
		if r == '\t' {
			width += tabWidth - width%tabWidth
		} else {
			width++
		}
	}
	return width
}

type wideLine struct {
	number       int // from 1
	width, limit int
}

// tooWide returns the lines that are wider than they may be.
func tooWide(src []byte) ([]wideLine, error) {
	all, err := pieces(src)
	if err != nil {
		return nil, err
	}
	data := dataLines(all)
	commented := map[int]bool{}
	for _, p := range all {
		if p.tok == token.COMMENT && p.onlyPiece(src) {
			for l := p.line; l <= p.last; l++ {
				commented[l] = true
			}
		}
	}
	var wide []wideLine
	for i, line := range strings.Split(string(src), "\n") {
		if from, ok := data[i]; ok {
			line = line[:from]
		}
		limit := codeWidth
		if commented[i] {
			limit = commentWidth
		}
		width := columns(line, len(line))
		if width > limit && !(commented[i] && unbreakable(line)) {
			wide = append(wide, wideLine{number: i + 1, width: width, limit: limit})
		}
	}
	return wide, nil
}

// onlyPiece reports whether nothing stands before p on its line.
func (p piece) onlyPiece(src []byte) bool {
	return strings.TrimLeft(string(src[p.start-p.col:p.start]), " \t") == ""
}

// dataLines maps each line that holds a part of a string between back quotes to the byte column
// from which it is data.
func dataLines(all []piece) map[int]int {
	lines := map[int]int{}
	for _, p := range all {
		if p.tok != token.STRING || p.text[0] != '`' {
			continue
		}
		if from, ok := lines[p.line]; !ok || p.col < from {
			lines[p.line] = p.col
		}
		for l := p.line + 1; l <= p.last; l++ {
			lines[l] = 0
		}
	}
	return lines
}

// unbreakable reports whether a comment is one long word, such as an address, or a directive.
func unbreakable(line string) bool {
	text := strings.TrimSpace(line)
	return strings.HasPrefix(text, "//go:") || len(strings.Fields(strings.TrimPrefix(text, "//"))) < 2 ||
		utf8.RuneCountInString(strings.Fields(strings.TrimPrefix(text, "//"))[0]) > commentWidth/2
}
