package files

import (
	"context"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/holdfast-vm/holdfast/internal/filesystem"
	"github.com/holdfast-vm/holdfast/internal/filesystem/volume"
)

// FindRequest says what to look for.
type FindRequest struct {
	// Pattern is of a name (*.conf), of the end of a path (nginx/*.conf) or of a whole path
	// (/etc/**/*.conf). * and ? are within a name, ** stands for any number of directories. With
	// VOLUME: before it, as paths are written, it is looked for in that volume.
	Pattern string
	// Volume to look through; "" means the machine's tree and all volumes that are not in it.
	Volume string
	Found  func(Entry) error // called with each, in order; an error ends the search and is returned
}

// Find goes through what there is. With an error that is an [Incomplete] some of it could not be
// read.
func (p *Point) Find(ctx context.Context, req FindRequest) error {
	if vol, pattern, ok := strings.Cut(req.Pattern, ":"); ok && req.Volume == "" && p.volumes.Find(vol) != nil {
		req.Volume, req.Pattern = vol, pattern
	}
	g, err := compile(req.Pattern)
	if err != nil {
		return err
	}
	places, failed, err := p.places(req.Volume)
	if err != nil {
		return err
	}
	for _, at := range places {
		fail := func(path string, err error) { failed = append(failed, Failure{Join(at.Volume, path), err}) }
		if err := findIn(ctx, at, g, req.Found, fail); err != nil {
			return err
		}
	}
	return incomplete("searched", failed)
}

// places returns the trees to look through, and the volumes that should hold files and can not be
// read.
func (p *Point) places(vol string) (out []Place, failed []Failure, err error) {
	if vol != "" {
		t, err := p.Tree(vol)
		if err != nil {
			return nil, nil, fmt.Errorf("look through %s: %w", vol, err)
		}
		return []Place{{Tree: t, Node: t.Root(), Volume: vol, Path: "/"}}, nil, nil
	}
	mounted := map[*volume.Volume]bool{}
	if g, err := p.volumes.Guest(); err == nil {
		out = append(out, Place{Tree: g.Tree, Node: g.Root(), Path: "/"})
		for _, m := range g.Mounts {
			mounted[m.Volume] = true // if it can not be read, that is found out on the way
		}
	}
	for _, v := range p.volumes.List {
		if mounted[v] {
			continue
		}
		t, err := v.Tree()
		if err != nil {
			if state := stateOf(err); state != NoFiles {
				failed = append(failed, Failure{v.Name, err})
			}
			continue
		}
		out = append(out, Place{Tree: t, Node: t.Root(), Volume: v.Name, Path: "/"})
	}
	return out, failed, nil
}

func findIn(ctx context.Context, at Place, g *glob, found func(Entry) error, fail func(string, error)) error {
	w := &walker{tree: at.Tree, fail: fail, visit: func(path string, n volume.Node, attr filesystem.Attr) error {
		if path == "/" || !g.match(path, foldsCase(n)) {
			return nil
		}
		e, err := describe(at.Volume, path, n, attr)
		if err != nil {
			fail(path, err)
			return nil
		}
		return found(e)
	}}
	return w.walk(ctx, at.Path, at.Node)
}

func foldsCase(n volume.Node) bool { return n.Volume.Type == "ntfs" || n.Volume.Type == "vfat" }

// glob is a pattern of a path, name by name.
type glob struct {
	parts []string // "**" stands for any number of names
	lower []string
}

func compile(pattern string) (*glob, error) {
	g := &glob{}
	for part := range strings.SplitSeq(pattern, "/") {
		if part == "" || part == "**" && len(g.parts) > 0 && g.parts[len(g.parts)-1] == "**" {
			continue
		}
		if _, err := path.Match(part, ""); err != nil {
			return nil, fmt.Errorf("pattern %q: %w", pattern, err)
		}
		g.parts = append(g.parts, part)
	}
	if len(g.parts) == 0 {
		return nil, fmt.Errorf("pattern %q is empty: %w", pattern, path.ErrBadPattern)
	}
	if !strings.HasPrefix(pattern, "/") && g.parts[0] != "**" {
		g.parts = slices.Insert(g.parts, 0, "**")
	}
	for _, part := range g.parts {
		g.lower = append(g.lower, strings.ToLower(part))
	}
	return g, nil
}

// match goes on from the last ** where it comes to nothing: which names an earlier one stood for
// never matters.
func (g *glob) match(name string, fold bool) bool {
	parts := g.parts
	if fold {
		parts, name = g.lower, strings.ToLower(name)
	}
	names := strings.Split(strings.Trim(name, "/"), "/")
	p, n, star, from := 0, 0, -1, 0
	for n < len(names) {
		if p < len(parts) && parts[p] == "**" {
			star, from = p, n
			p++
			continue
		}
		if p < len(parts) {
			if ok, _ := path.Match(parts[p], names[n]); ok {
				p, n = p+1, n+1
				continue
			}
		}
		if star < 0 {
			return false
		}
		from++
		p, n = star+1, from
	}
	for p < len(parts) && parts[p] == "**" {
		p++
	}
	return p == len(parts)
}
