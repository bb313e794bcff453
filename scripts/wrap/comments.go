package main

import (
	"go/token"
	"regexp"
	"strings"
)

// item matches the mark of an item of a list, which what follows is indented by.
var item = regexp.MustCompile(`^ +(?:[-*•]|\d+[.)]) +`)

// wrapComments wraps the paragraphs of comments in which a line is too wide. Comments behind code
// that makes their line too wide are moved above it.
func wrapComments(src []byte) ([]byte, error) {
	all, err := pieces(src)
	if err != nil {
		return nil, err
	}
	lines := strings.Split(string(src), "\n")
	inside := dataLines(all)
	own := map[int]bool{} // lines that are a comment and nothing else
	for _, p := range all {
		if p.tok == token.COMMENT && strings.HasPrefix(p.text, "//") && p.onlyPiece(src) {
			own[p.line] = true
		}
	}
	for _, p := range all {
		if _, data := inside[p.line]; data || p.tok != token.COMMENT || own[p.line] || p.last != p.line {
			continue
		}
		if line := lines[p.line]; columns(line, len(line)) > codeWidth && strings.HasPrefix(p.text, "//") {
			indent := line[:len(line)-len(strings.TrimLeft(line, "\t"))]
			comment := fill(indent+"// ", "", strings.Fields(strings.TrimPrefix(p.text, "//")))
			lines[p.line] = comment + "\n" + strings.TrimRight(line[:p.col], " \t")
		}
	}
	var out []string
	for i := 0; i < len(lines); {
		n := paragraph(lines, own, i)
		if n == 0 {
			out = append(out, lines[i])
			i++
			continue
		}
		out = append(out, refill(lines[i:i+n])...)
		i += n
	}
	return []byte(strings.Join(out, "\n")), nil
}

// paragraph returns how many lines from i on are one paragraph of a comment.
func paragraph(lines []string, own map[int]bool, i int) int {
	n := 0
	indent, first := split(lines[i])
	for ; i+n < len(lines) && own[i+n]; n++ {
		at, text := split(lines[i+n])
		plain := len(text) > 1 && text[0] == ' ' && text[1] != ' ' && !strings.ContainsRune("|#", rune(text[1]))
		switch {
		case at != indent:
			return n
		case n == 0 && !plain && !item.MatchString(text):
			return 0
		case n > 0 && item.MatchString(text):
			return n
		case n > 0 && item.MatchString(first) && !strings.HasPrefix(text, hanging(first)):
			return n
		case n > 0 && !item.MatchString(first) && !plain:
			return n
		}
	}
	return n
}

// hanging returns what the second line of the item of a list begins with.
func hanging(first string) string { return strings.Repeat(" ", len(item.FindString(first))) }

// split returns what stands before the slashes of a comment, and what after.
func split(line string) (indent, text string) {
	before, after, _ := strings.Cut(line, "//")
	return before, after
}

// refill wraps a paragraph if one of its lines is too wide.
func refill(lines []string) []string {
	wide := false
	var words []string
	for _, l := range lines {
		wide = wide || columns(l, len(l)) > commentWidth
		_, text := split(l)
		words = append(words, strings.Fields(text)...)
	}
	if !wide {
		return lines
	}
	indent, text := split(lines[0])
	mark := item.FindString(text)
	if mark == "" {
		return []string{fill(indent+"// ", "", words)}
	}
	skip := len(strings.Fields(mark))
	return []string{fill(indent+"//"+mark, strings.Repeat(" ", len(mark)), words[skip:])}
}

// fill sets words in lines that begin with first, the later ones with its slashes and hang.
func fill(first, hang string, words []string) string {
	var b strings.Builder
	line := first
	next := first
	if hang != "" {
		next = first[:strings.Index(first, "//")+2] + hang
	}
	for i, w := range words {
		joined := line + w
		if i > 0 && line != next && line != first {
			joined = line + " " + w
		}
		if columns(joined, len(joined)) > commentWidth && line != first && line != next {
			b.WriteString(line + "\n")
			joined = next + w
		}
		line = joined
	}
	b.WriteString(line)
	return b.String()
}
