package vault

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/holdfast-vm/holdfast/internal/point"
	"github.com/holdfast-vm/holdfast/internal/vault/index"
	"github.com/holdfast-vm/holdfast/internal/vault/tree"
)

// Usage says how much something takes. Sizes are in bytes.
type Usage struct {
	Size  int64 `json:"size"`  // of its disks, as their machines see them
	Used  int64 `json:"used"`  // that are not holes, in whole chunks: what a full copy has
	Held  int64 `json:"held"`  // stored in packs that it needs, each counted once
	Alone int64 `json:"alone"` // stored in packs that nothing else needs: what deleting it frees
}

// Group names some disks of some points.
type Group struct {
	By   string `json:"by"` // what it is a group by, such as "vm"
	Name string `json:"name"`
}

// UsageOptions tunes Usage.
type UsageOptions struct {
	// Groups returns the groups that a disk of p belongs to; d is nil for the files of a machine.
	// nil means GroupsOf.
	Groups   func(p *point.RecoveryPoint, d *point.Disk) []Group
	Progress func(done, total int) // points and groups; nil discards
}

// PointUsage is what one point takes.
type PointUsage struct {
	ID    point.ID   `json:"id"`
	Kind  point.Kind `json:"kind,omitempty"`
	Name  string     `json:"snapshot,omitempty"`
	VM    string     `json:"vm"`
	Time  time.Time  `json:"time"`
	Usage            // of all its disks and files
}

// GroupUsage is what a group takes. Size and Used are the sums over its points; what its points
// share is held once, and is its own alone.
type GroupUsage struct {
	Group
	Points int `json:"points"` // that have a disk in it
	Usage
}

// UsageReport says what takes how much.
type UsageReport struct {
	Stored int64        `json:"stored"` // bytes in packs that points need
	Points []PointUsage `json:"points"` // oldest first
	Groups []GroupUsage `json:"groups"` // by By and Name
}

// GroupsOf groups by machine ("vm"), by disk of a machine ("disk", as MACHINE:DISK) and by tag
// ("tag", as KEY=VALUE).
func GroupsOf(p *point.RecoveryPoint, d *point.Disk) []Group {
	out := []Group{{"vm", p.VM}}
	if d != nil {
		out = append(out, Group{"disk", p.VM + ":" + d.Name})
	}
	for k, v := range p.Tags {
		out = append(out, Group{"tag", k + "=" + v})
	}
	return out
}

// Usage accounts for every byte in packs that points need. Figures are exact: Alone of a point, or
// of a group of whole points, is what purging it frees, some of it only by a full collection.
// Points that were deleted and can be brought back are in no figure but Stored, and what they need
// is nobody's alone. Each unique tree node is read a few times, whatever the number of points;
// memory is 8 bytes for each stored chunk and 96 MiB at most besides. It returns ErrCorrupt when a
// point cannot be read whole.
func (v *Vault) Usage(ctx context.Context, o UsageOptions) (UsageReport, error) {
	if o.Groups == nil {
		o.Groups = GroupsOf
	}
	for try := 0; ; try++ {
		r, count, err := v.usageOnce(ctx, o)
		if err == nil {
			return r, nil
		}
		again := errors.Is(err, index.ErrStale)
		if isDamage(err) { // or purged meanwhile
			var lookErr error
			if again, lookErr = v.moved(ctx, count); lookErr != nil {
				err = lookErr
			}
		}
		if !again || try == maxStale {
			return UsageReport{}, fmt.Errorf("account for usage: %w", err)
		}
	}
}

func (v *Vault) usageOnce(ctx context.Context, o UsageOptions) (r UsageReport, count uint64, err error) {
	s := &surveyor{v: v, bad: func(name string, err error) error { return fmt.Errorf("%s: %w", name, err) }}
	points, count, err := s.survey(ctx) // before the index: what a point needs was there before the point was
	if err != nil {
		return r, count, err
	}
	damaged, err := v.damagedPacks(ctx)
	if err != nil {
		return r, count, err
	}
	snap, err := v.index.Snapshot(ctx)
	if err != nil {
		return r, count, err
	}
	defer snap.Close()
	u := &accountant{objects: newObjects(v, snap, damaged), owners: owners(points, o.Groups), progress: o.Progress}
	if err := u.hold(ctx); err != nil {
		return r, count, err
	}
	if err := u.claim(ctx); err != nil {
		return r, count, err
	}
	return u.report(), count, nil
}

// owner is a point or a group, with its trees.
type owner struct {
	point  *point.RecoveryPoint // nil for a group
	hidden bool                 // a point that was deleted
	group  Group
	order  string // owners that are likely to share much stand together
	trees  []ownedTree
	usage  Usage
	seen   map[point.ID]bool // points of a group
}

// ownedTree is a tree or a manifest of a point, with all that it belongs to.
type ownedTree struct {
	treeOf
	of     []int // owners, ascending
	single bool  // a manifest, under nothing
}

// owning gathers owners.
type owning struct {
	owners []*owner
	number map[Group]int
	groups func(*point.RecoveryPoint, *point.Disk) []Group
}

// owners returns the points, in the order given, and then the groups.
func owners(points []*surveyed, groups func(*point.RecoveryPoint, *point.Disk) []Group) []*owner {
	o := &owning{owners: make([]*owner, len(points)), number: make(map[Group]int), groups: groups}
	for i, p := range points {
		own := &owner{point: &p.row.Point, hidden: p.deleted, order: p.row.Point.VM}
		for _, d := range p.row.Point.Disks {
			own.order += "\x00" + d.Name
		}
		o.owners[i] = own
	}
	for i, p := range points {
		for j, t := range p.trees {
			var d *point.Disk
			if j < len(p.row.Point.Disks) {
				d = &p.row.Point.Disks[j]
			}
			o.add(i, ownedTree{treeOf: t}, d)
		}
		if !p.manifest.IsHole() {
			o.add(i, ownedTree{treeOf: treeOf{name: "manifest", root: p.manifest}, single: true}, nil)
		}
	}
	return o.owners
}

// add gives a tree of point i to all that it belongs to. Groups that none but deleted points are in
// are none.
func (o *owning) add(i int, t ownedTree, d *point.Disk) {
	own := o.owners[i]
	t.of = []int{i}
	if !own.hidden {
		for _, g := range o.groups(own.point, d) {
			t.of = append(t.of, o.group(g))
		}
	}
	slices.Sort(t.of)
	t.of = slices.Compact(t.of)
	for _, n := range t.of {
		o.owners[n].add(t, own.point, d)
	}
}

func (o *owning) group(g Group) int {
	n, ok := o.number[g]
	if !ok {
		n = len(o.owners)
		o.number[g] = n
		o.owners = append(o.owners, &owner{group: g, order: g.Name, seen: make(map[point.ID]bool)})
	}
	return n
}

func (o *owner) add(t ownedTree, p *point.RecoveryPoint, d *point.Disk) {
	o.trees = append(o.trees, t)
	if d != nil {
		o.usage.Size += d.Size
		o.usage.Used += d.Used
	}
	if o.seen != nil {
		o.seen[p.ID] = true
	}
}

// accountant works out what owners hold, and what they hold alone.
type accountant struct {
	*objects
	owners   []*owner
	progress func(done, total int)
	stored   int64
}

// hold goes from owner to owner: what the next one needs is counted in, then what only the last one
// needed is counted out. So the cost of an owner is what it does not share with the one before.
func (u *accountant) hold(ctx context.Context) error {
	order := slices.Clone(u.owners)
	slices.SortStableFunc(order, func(a, b *owner) int {
		return cmp.Or(cmp.Compare(a.group.By, b.group.By), cmp.Compare(a.order, b.order))
	})
	var last []ownedTree
	var held int64
	for i, o := range order {
		for _, t := range o.trees {
			if err := u.count(ctx, t, +1, &held); err != nil {
				return err
			}
		}
		for _, t := range last {
			if err := u.count(ctx, t, -1, &held); err != nil {
				return err
			}
		}
		o.usage.Held, last = held, o.trees
		if u.progress != nil {
			u.progress(i+1, len(order))
		}
	}
	u.reset()
	return nil
}

// count adds a tree to what is held, or takes it out. The state of an object is by how many objects
// and trees that are held it is named.
func (u *accountant) count(ctx context.Context, t ownedTree, by int, held *int64) error {
	return u.walkTree(ctx, t, func(n uint32) bool {
		before := u.state[n]
		u.state[n] += uint32(by)
		switch {
		case by > 0 && before == 0:
			*held += int64(u.size[n])
			return true
		case by < 0 && before == 1:
			*held -= int64(u.size[n])
			return true
		}
		return false
	})
}

// claim works out what each owner holds alone: that is every object all of whose trees it owns. The
// state of an object is the set of those who own all trees that were found to need it; it only
// shrinks, a few times at most.
func (u *accountant) claim(ctx context.Context) error {
	sets := newOwnerSets()
	alone := map[uint32]int64{} // bytes by set
	for _, o := range u.owners {
		if o.point == nil {
			break
		}
		for _, t := range o.trees {
			set := sets.intern(t.of)
			err := u.walkTree(ctx, t, func(n uint32) bool {
				before := u.state[n]
				after := sets.meet(before, set)
				if after == before {
					return false
				}
				alone[before] -= int64(u.size[n])
				alone[after] += int64(u.size[n])
				u.state[n] = after
				return true
			})
			if err != nil {
				return err
			}
		}
	}
	delete(alone, anySet)
	for set, n := range alone {
		u.stored += n
		for _, i := range sets.all[set] {
			u.owners[i].usage.Alone += n
		}
	}
	return nil
}

func (u *accountant) report() UsageReport {
	r := UsageReport{Stored: u.stored, Points: []PointUsage{}, Groups: []GroupUsage{}}
	for _, o := range u.owners {
		switch p := o.point; {
		case o.hidden:
		case p != nil:
			r.Points = append(r.Points, PointUsage{ID: p.ID, Kind: p.Kind, Name: p.Name, VM: p.VM, Time: p.Time,
				Usage: o.usage})
		default:
			r.Groups = append(r.Groups, GroupUsage{Group: o.group, Points: len(o.seen), Usage: o.usage})
		}
	}
	slices.SortFunc(r.Groups, func(a, b GroupUsage) int {
		return cmp.Or(cmp.Compare(a.By, b.By), cmp.Compare(a.Name, b.Name))
	})
	return r
}

// walkTree calls visit with the root of a tree, and with what an object names whenever visit
// returned true for it.
func (u *accountant) walkTree(ctx context.Context, t ownedTree, visit func(n uint32) bool) error {
	if t.root.IsHole() {
		return nil
	}
	var err error
	if t.single {
		var n uint32
		if n, err = u.number(ctx, t.root); err == nil {
			visit(n)
		}
	} else {
		err = u.walk(ctx, t.root, tree.Levels(t.chunks)-1, visit)
	}
	if err != nil {
		return fmt.Errorf("%s: %w; run vault check", t.name, err)
	}
	return nil
}
