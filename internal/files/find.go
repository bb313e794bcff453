package files

import (
	"context"
	"errors"
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
	Limits Limits
}

// Find goes through what there is. With an error that is an [Incomplete] some of it could not be
// read; with one that is [ErrLimit] it was given up. What was found until then was found.
func (p *Point) Find(ctx context.Context, req FindRequest) error {
	if vol, pattern, ok := strings.Cut(req.Pattern, ":"); ok && req.Volume == "" && p.volumes.Find(vol) != nil {
		req.Volume, req.Pattern = vol, pattern
	}
	g, err := compile(req.Pattern)
	if err != nil {
		return err
	}
	f := finder{req: req, glob: g, trail: &trail{limits: req.Limits.WithDefaults(p.size)}}
	if req.Volume != "" {
		t, err := p.Tree(req.Volume)
		if err != nil {
			return fmt.Errorf("look through %s: %w", req.Volume, err)
		}
		err = f.in(ctx, t, req.Volume)
		return errors.Join(err, f.failed.incomplete("searched"))
	}
	return errors.Join(f.everywhere(ctx, p), f.failed.incomplete("searched"))
}

// finder looks through one tree after the other.
type finder struct {
	req    FindRequest
	glob   *glob
	trail  *trail
	failed failures
}

// everywhere looks through the machine's tree, and all volumes that are not in it.
func (f *finder) everywhere(ctx context.Context, p *Point) error {
	mounted := map[*volume.Volume]bool{}
	if g, err := p.volumes.Guest(); err == nil {
		for _, m := range g.Mounts {
			mounted[m.Volume] = true // if it cannot be read, that is found out on the way
		}
		if err := f.in(ctx, g.Tree, ""); err != nil {
			return err
		}
	}
	for _, v := range p.volumes.List {
		if err := ended(ctx); err != nil {
			return err
		}
		if mounted[v] {
			continue
		}
		if err := f.volume(ctx, v); err != nil {
			return err
		}
	}
	return nil
}

func (f *finder) volume(ctx context.Context, v *volume.Volume) error {
	defer v.Close()
	t, err := v.Tree()
	if err != nil {
		if state := stateOf(err); state != NoFiles {
			f.failed.add(v.Name, err)
		}
		return nil
	}
	return f.in(ctx, t, v.Name)
}

func (f *finder) in(ctx context.Context, t *volume.Tree, vol string) error {
	f.trail.begin()
	fail := func(path string, err error) { f.failed.add(Join(vol, path), err) }
	w := &walker{trail: f.trail, tree: t, fail: fail,
		visit: func(path string, n volume.Node, attr filesystem.Attr) error {
			if path == "/" || !f.glob.match(path, foldsCase(n)) {
				return nil
			}
			e, err := describe(vol, path, n, attr)
			if err != nil {
				fail(path, err)
				return nil
			}
			return f.req.Found(e)
		}}
	return w.walk(ctx, "/", t.Root())
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
