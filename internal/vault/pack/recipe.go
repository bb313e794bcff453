package pack

import (
	"context"
	"fmt"
	"io"

	"github.com/holdfast-vm/holdfast/internal/vault/log"
)

// maxLiteral is how many bytes of rows that were not moved a recipe may have, header and trailer
// apart.
const maxLiteral = 1 << 20

// provenance is where the rows of a pack came from. Of a pack to which nothing is moved, as nearly
// all are, nothing is kept.
type provenance struct {
	on      bool        // something was moved
	tooMuch bool        // what was not moved exceeds maxLiteral
	runs    []log.Piece // of all bytes after the header; literal ones are of kind Part
	literal []byte
	trailer []byte // once the pack was committed
}

// add notes that the next bytes of the pack are a piece.
func (p *provenance) add(next log.Piece) {
	if n := len(p.runs); n > 0 {
		last := &p.runs[n-1]
		if last.Of == next.Of && last.Kind == next.Kind && last.Offset+last.Length == next.Offset {
			last.Length += next.Length
			return
		}
	}
	p.runs = append(p.runs, next)
}

// addLiteral notes that the next bytes of the pack are ones that it does not have from elsewhere.
func (p *provenance) addLiteral(b []byte) {
	if p.tooMuch || len(p.literal)+len(b) > maxLiteral {
		p.giveUp()
		return
	}
	p.add(log.Piece{Kind: log.Part, Offset: uint64(HeaderSize + len(p.literal)), Length: uint64(len(b))})
	p.literal = append(p.literal, b...)
}

func (p *provenance) giveUp() { p.tooMuch, p.literal, p.runs = true, nil, nil }

// own notes a row that was sealed here.
func (p *provenance) own(sealed []byte) {
	if p.on {
		p.addLiteral(sealed)
	}
}

// moved notes a row that is to be moved here from the pack of.
func (p *provenance) moved(w *Writer, of log.ObjectID, e *Entry) {
	p.begin(w)
	if !p.tooMuch {
		p.add(log.Piece{Of: of, Kind: log.Pack, Offset: uint64(e.Offset), Length: uint64(e.Stored)})
	}
}

// begin notes all that is in the writer, none of which was moved.
func (p *provenance) begin(w *Writer) {
	if p.on {
		return
	}
	p.on = true
	if w.Size()-HeaderSize > maxLiteral || !w.spool.inMemory() {
		p.tooMuch = true
		return
	}
	_ = w.spool.copyTo(HeaderSize, func(b []byte) error {
		p.addLiteral(b)
		return nil
	})
}

// joined notes the rows that are to be taken over from another writer.
func (p *provenance) joined(w, other *Writer) {
	if !p.on && !other.from.on {
		return
	}
	p.begin(w)
	other.from.begin(other)
	if other.from.tooMuch {
		p.giveUp()
	}
	for _, r := range other.from.runs {
		switch {
		case p.tooMuch:
			return
		case r.Kind == log.Part:
			at := r.Offset - HeaderSize
			p.addLiteral(other.from.literal[at : at+r.Length])
		default:
			p.add(r)
		}
	}
}

func (p *provenance) committed(trailer []byte) {
	if p.on && !p.tooMuch {
		p.trailer = trailer
	}
}

// Recipe returns, after Commit, how one can make the pack who has those from which its rows were
// moved: ranges of them, neighbouring ones as one, and literal bytes, which are the header, rows
// that were not moved, and the trailer. The literal bytes are for an object of kind log.Part. The
// pieces of that have no name in the recipe yet (Of is zero): NameLiteral gives it to them once the
// bytes are stored, or Make is told. There is no recipe, and ok is false, of a pack to which
// nothing was moved, or more than a MiB was not.
func (w *Writer) Recipe() (r log.Recipe, literal []byte, ok bool) {
	p := &w.from
	if p.trailer == nil {
		return log.Recipe{}, nil, false
	}
	all := provenance{runs: []log.Piece{{Kind: log.Part, Length: HeaderSize}}}
	for _, run := range p.runs {
		all.add(run)
	}
	all.add(log.Piece{Kind: log.Part, Offset: uint64(HeaderSize + len(p.literal)), Length: uint64(len(p.trailer))})
	literal = append(append(append(literal, w.header...), p.literal...), p.trailer...)
	return log.Recipe{Makes: w.id, Pieces: all.runs}, literal, true
}

// NameLiteral names the literal bytes of a recipe.
func NameLiteral(r *log.Recipe, literal log.ObjectID) {
	for i := range r.Pieces {
		if p := &r.Pieces[i]; p.Kind == log.Part && p.Of == (log.ObjectID{}) {
			p.Of = literal
		}
	}
}

// makeSize is how much Make reads at once.
const makeSize = 1 << 20

// Make writes the pack of a recipe to w, bit for bit, without any key. What read fills p with are
// the bytes of an object from offset off; of literal bytes that have no name in the recipe, literal
// is the name. Whether the result is what an entry of the log tells of, Check says.
func Make(ctx context.Context, recipe log.Recipe, literal log.ObjectID,
	read func(ctx context.Context, of log.ObjectID, kind log.ObjectKind, p []byte, off int64) error,
	w io.Writer) error {
	if err := checkRecipe(&recipe); err != nil {
		return fmt.Errorf("make pack %s: %w", recipe.Makes, err)
	}
	buf := make([]byte, 0, makeSize)
	for _, p := range recipe.Pieces {
		if p.Kind == log.Part && p.Of == (log.ObjectID{}) {
			p.Of = literal
		}
		for at, end := p.Offset, p.Offset+p.Length; at < end; at += uint64(len(buf)) {
			buf = buf[:min(end-at, makeSize)]
			if err := read(ctx, p.Of, p.Kind, buf, int64(at)); err != nil {
				return fmt.Errorf("make pack %s: read %d bytes of %s at %d: %w", recipe.Makes, len(buf), p.Of, at, err)
			}
			if _, err := w.Write(buf); err != nil {
				return fmt.Errorf("make pack %s: %w", recipe.Makes, err)
			}
		}
	}
	return nil
}

// checkRecipe refuses what cannot make a pack, before anything is read.
func checkRecipe(r *log.Recipe) error {
	var total uint64
	for _, p := range r.Pieces {
		if p.Length > MaxSize || p.Offset > MaxSize || p.Offset+p.Length > MaxSize {
			return fmt.Errorf("%w: its recipe wants %d bytes at %d of %s", ErrCorrupt, p.Length, p.Offset, p.Of)
		}
		if total += p.Length; total > MaxSize {
			return fmt.Errorf("%w: its recipe makes more than %d bytes", ErrCorrupt, MaxSize)
		}
	}
	return nil
}
