// Package pstest reads PowerShell as far as tests need it: which words, strings and variables a
// script is made of, and whether its quotes and brackets are whole.
//
// It is for tests of what writes scripts, and of what plays a Windows that gets them. What it does
// not know is an error: here-strings, braces around the names of variables, quotes within words.
package pstest

import (
	"fmt"
	"slices"
	"strings"
	"unicode"
)

// Kind is a kind of token.
type Kind string

// The kinds of tokens.
const (
	Word     Kind = "word"     // of a command, parameter, operator or number
	String   Kind = "string"   // in single quotes: the text that it is
	Template Kind = "template" // in double quotes: as it is written
	Variable Kind = "variable" // without its $
	Bracket  Kind = "bracket"
	Sign     Kind = "sign" // any other character
)

// Token is a piece of a script.
type Token struct {
	Kind Kind
	Text string
}

const (
	singles = "'‘’‚‛"
	doubles = "\"“”„"
)

var closing = map[rune]rune{'(': ')', '{': '}', '[': ']'}

// Read returns the tokens of a script, those within the strings in double quotes too. It returns an
// error where PowerShell would not read it.
func Read(script string) ([]Token, error) {
	r := &reader{text: []rune(script)}
	for r.at < len(r.text) {
		if err := r.next(); err != nil {
			return nil, fmt.Errorf("at character %d, %.40q: %w", r.at, string(r.text[min(r.at, len(r.text)):]), err)
		}
	}
	if len(r.open) > 0 {
		return nil, fmt.Errorf("%q is not closed", string(r.open))
	}
	return r.tokens, nil
}

type reader struct {
	text   []rune
	at     int
	open   []rune
	tokens []Token
}

func (r *reader) add(kind Kind, text string) { r.tokens = append(r.tokens, Token{kind, text}) }

func (r *reader) next() error {
	c := r.text[r.at]
	switch {
	case c == '`':
		return fmt.Errorf("an escape outside of quotes")
	case c == '#':
		for r.at < len(r.text) && r.text[r.at] != '\n' {
			r.at++
		}
	case unicode.IsSpace(c):
		r.at++
	case strings.ContainsRune(singles, c):
		return r.single()
	case strings.ContainsRune(doubles, c):
		return r.double()
	case c == '$' && (r.at+1 == len(r.text) || r.text[r.at+1] != '('):
		return r.variable()
	case strings.ContainsRune("({[)}]", c):
		return r.bracket(c)
	case isWord(c):
		begin := r.at
		for r.at < len(r.text) && isWord(r.text[r.at]) {
			r.at++
		}
		r.add(Word, string(r.text[begin:r.at]))
	default:
		r.add(Sign, string(c))
		r.at++
	}
	return nil
}

func isWord(c rune) bool {
	return unicode.IsLetter(c) || unicode.IsDigit(c) || strings.ContainsRune(`-_.\:*/%`, c)
}

func (r *reader) bracket(c rune) error {
	r.add(Bracket, string(c))
	r.at++
	if _, opens := closing[c]; opens {
		r.open = append(r.open, c)
		return nil
	}
	if len(r.open) == 0 || closing[r.open[len(r.open)-1]] != c {
		return fmt.Errorf("%q closes nothing", string(c))
	}
	r.open = r.open[:len(r.open)-1]
	return nil
}

// single reads a string in which only quotes, twice, mean something else.
func (r *reader) single() error {
	var text []rune
	for r.at++; r.at < len(r.text); r.at++ {
		c := r.text[r.at]
		if strings.ContainsRune(singles, c) {
			if r.at+1 == len(r.text) || !strings.ContainsRune(singles, r.text[r.at+1]) {
				r.at++
				r.add(String, string(text))
				return nil
			}
			r.at++
			c = r.text[r.at]
		}
		text = append(text, c)
	}
	return fmt.Errorf("a string does not end")
}

// double reads a string in which variables, expressions and escapes mean something.
func (r *reader) double() error {
	begin := r.at
	var within []Token
	for r.at++; r.at < len(r.text); r.at++ {
		switch c := r.text[r.at]; {
		case c == '`':
			r.at++
		case c == '$' && r.at+1 < len(r.text) && r.text[r.at+1] == '(':
			inner, err := r.expression()
			if err != nil {
				return err
			}
			within = append(within, inner...)
		case c == '$' && r.at+1 < len(r.text) && isName(r.text[r.at+1]):
			from := len(r.tokens)
			if err := r.variable(); err != nil {
				return err
			}
			within = append(within, r.tokens[from:]...)
			r.tokens, r.at = r.tokens[:from], r.at-1
		case strings.ContainsRune(doubles, c):
			if r.at+1 < len(r.text) && strings.ContainsRune(doubles, r.text[r.at+1]) {
				r.at++
				continue
			}
			r.at++
			r.add(Template, string(r.text[begin:r.at]))
			r.tokens = append(r.tokens, within...)
			return nil
		}
	}
	return fmt.Errorf("a string does not end")
}

// expression reads $( … ) within a string, and leaves the reader on its last bracket.
func (r *reader) expression() ([]Token, error) {
	inner := &reader{text: r.text, at: r.at + 1}
	for first := true; first || len(inner.open) > 0; first = false {
		if inner.at >= len(inner.text) {
			return nil, fmt.Errorf("an expression does not end")
		}
		if err := inner.next(); err != nil {
			return nil, err
		}
	}
	r.at = inner.at - 1
	return inner.tokens, nil
}

func isName(c rune) bool { return unicode.IsLetter(c) || unicode.IsDigit(c) || c == '_' }

func (r *reader) variable() error {
	r.at++
	begin := r.at
	for r.at < len(r.text) && (isName(r.text[r.at]) || r.text[r.at] == ':' && r.at+
		1 < len(r.text) && isName(r.text[r.at+1])) {
		r.at++
	}
	if r.at == begin {
		return fmt.Errorf("a variable without a name")
	}
	r.add(Variable, string(r.text[begin:r.at]))
	return nil
}

// Has reports whether a script has a word, whatever its case.
func Has(tokens []Token, word string) bool {
	return slices.ContainsFunc(tokens, func(t Token) bool { return t.Kind == Word && strings.EqualFold(t.Text, word) })
}

// Assigned returns the string that is assigned to a variable by itself.
func Assigned(tokens []Token, variable string) (text string, found bool) {
	for i := 0; i+2 < len(tokens); i++ {
		if tokens[i] == (Token{Variable, variable}) && tokens[i+1] == (Token{Sign, "="}) && tokens[i+2].Kind == String {
			return tokens[i+2].Text, true
		}
	}
	return "", false
}
