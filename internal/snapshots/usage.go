package snapshots

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-vm/holdfast/internal/point"
	"github.com/holdfast-vm/holdfast/internal/vault"
)

// By says what usage is summed up by.
type By struct {
	kind string // "snapshot", "disk", "vm" or "tag"
	tag  string // key
}

// ParseBy reads snapshot, disk, vm or tag=KEY.
func ParseBy(s string) (By, error) {
	kind, tag, _ := strings.Cut(s, "=")
	switch {
	case kind == "tag" && tag != "":
		return By{kind, tag}, nil
	case s == "snapshot" || s == "disk" || s == "vm":
		return By{kind: s}, nil
	}
	return By{}, fmt.Errorf("%q is none of snapshot, disk, vm and tag=KEY", s)
}

// String returns what ParseBy read.
func (b By) String() string {
	if b.kind == "tag" {
		return "tag=" + b.tag
	}
	return b.kind
}

// names of groups of snapshots without what is summed up by.
const (
	noMachine = "(no machine)"
	noTag     = "(none)"
)

// group returns the name of the group that a disk of a snapshot counts in.
func (b By) group(id point.ID, name, vm string, tags map[string]string, d LifetimeDisk) string {
	switch b.kind {
	case "vm":
		if vm == "" {
			return noMachine
		}
		return vm
	case "disk":
		if d.ManagedID != "" {
			return d.Managed + "#" + d.ManagedID[:min(len(d.ManagedID), 8)]
		}
		return vm + ":" + d.Name
	case "tag":
		if v, ok := tags[b.tag]; ok {
			return v
		}
		return noTag
	}
	return name + "#" + id.Short()
}

// Row is what one group of snapshots takes. Sizes are in bytes.
type Row struct {
	Name      string   `json:"name"`
	ID        point.ID `json:"id,omitempty"` // of the snapshot, where each is a group
	Snapshots int      `json:"snapshots"`
	vault.Usage
}

// Current accounts for the snapshots that are in the vault now. What a group alone holds is exactly
// what deleting all of it frees, but for the snapshots' manifests of some hundred bytes each.
func Current(ctx context.Context, v *vault.Vault, by By) ([]Row, error) {
	ids := map[string]point.ID{}
	report, err := v.Usage(ctx, vault.UsageOptions{Groups: func(p *point.RecoveryPoint, d *point.Disk) []vault.Group {
		if !p.IsSnapshot() || d == nil {
			return nil
		}
		name := by.group(p.ID, p.Name, p.VM, p.Tags,
			LifetimeDisk{Name: d.Name, Managed: d.Managed, ManagedID: d.ManagedID})
		if by.kind == "snapshot" {
			ids[name] = p.ID
		}
		return []vault.Group{{By: by.kind, Name: name}}
	}})
	if err != nil {
		return nil, err
	}
	rows := []Row{}
	for _, g := range report.Groups {
		name, id := g.Name, ids[g.Name]
		if id != "" {
			name = strings.TrimSuffix(name, "#"+id.Short())
		}
		rows = append(rows, Row{Name: name, ID: id, Snapshots: g.Points, Usage: g.Usage})
	}
	return rows, nil
}

// Prices says what used space costs.
type Prices struct {
	Currency string     `json:"currency"`  // a label
	GiBMonth float64    `json:"gib_month"` // for a GiB of used size that is there for a whole month
	Tags     []TagPrice `json:"tags"`      // the first that matches a snapshot counts instead
}

// TagPrice is another price for snapshots with a tag.
type TagPrice struct {
	Tag      string  `json:"tag"` // KEY=VALUE
	GiBMonth float64 `json:"gib_month"`
}

// Check returns an error for a table that cannot be meant.
func (p Prices) Check() error {
	all := []float64{p.GiBMonth}
	for _, t := range p.Tags {
		if k, _, ok := strings.Cut(t.Tag, "="); !ok || k == "" {
			return fmt.Errorf("the tag %q is not KEY=VALUE", t.Tag)
		}
		all = append(all, t.GiBMonth)
	}
	if slices.ContainsFunc(all, func(x float64) bool { return !(x >= 0) }) {
		return errors.New("a price is negative")
	}
	return nil
}

func (p Prices) of(tags map[string]string) float64 {
	for _, t := range p.Tags {
		if k, want, _ := strings.Cut(t.Tag, "="); tags[k] == want {
			if _, ok := tags[k]; ok {
				return t.GiBMonth
			}
		}
	}
	return p.GiBMonth
}

// Month is a calendar month in UTC.
type Month struct{ first time.Time }

// ParseMonth reads YYYY-MM.
func ParseMonth(s string) (Month, error) {
	t, err := time.Parse("2006-01", s)
	if err != nil {
		return Month{}, fmt.Errorf("%q is no month such as 2026-11", s)
	}
	return Month{t}, nil
}

// String returns YYYY-MM.
func (m Month) String() string { return m.first.Format("2006-01") }

func (m Month) end() time.Time { return m.first.AddDate(0, 1, 0) }

// hours returns how long the month is.
func (m Month) hours() float64 { return m.end().Sub(m.first).Hours() }

// Bill is the usage of a month.
type Bill struct {
	Month    string     `json:"month"`
	By       string     `json:"by"`
	Until    time.Time  `json:"until"` // of what was counted: the month's end, or now
	Currency string     `json:"currency,omitempty"`
	Rows     []BillLine `json:"rows"`
	Total    BillLine   `json:"total"`
}

// BillLine is the usage of a group in a month: used size times the time that it was there. A disk
// of 64 GB of which 10 GB are used counts as 10 GB.
type BillLine struct {
	Name      string   `json:"name"`
	ID        point.ID `json:"id,omitempty"`
	Snapshots int      `json:"snapshots"`
	ByteHours int64    `json:"byte_hours"`
	GiBMonths float64  `json:"gib_months"` // a GiB for the whole month is 1, however long the month
	Cost      float64  `json:"cost"`
}

// NewBill sums up the lifetimes in a month, up to now, without rounding before the end.
func NewBill(lifetimes []Lifetime, m Month, by By, prices Prices, now time.Time) Bill {
	until := m.end()
	if now.Before(until) {
		until = now.UTC()
	}
	lines := map[string]*BillLine{}
	seen := map[string]map[point.ID]bool{}
	total := BillLine{Name: "total"}
	all := map[point.ID]bool{}
	for _, l := range lifetimes {
		d := l.within(m.first, until)
		if d <= 0 {
			continue
		}
		for _, disk := range l.Disks {
			name := by.group(l.ID, l.Name, l.VM, l.Tags, disk)
			line := lines[name]
			if line == nil {
				line = &BillLine{Name: name}
				if by.kind == "snapshot" {
					line.ID, line.Name = l.ID, l.Name
				}
				lines[name], seen[name] = line, map[point.ID]bool{}
			}
			hours := byteHours(disk.Used, d)
			share := float64(hours) / m.hours() / (1 << 30)
			for _, sum := range []*BillLine{line, &total} {
				sum.ByteHours += hours
				sum.GiBMonths += share
				sum.Cost += share * prices.of(l.Tags)
			}
			seen[name][l.ID], all[l.ID] = true, true
			line.Snapshots = len(seen[name])
		}
	}
	total.Snapshots = len(all)
	b := Bill{Month: m.String(), By: by.String(), Until: until, Currency: prices.Currency, Rows: []BillLine{},
		Total: total}
	for _, name := range slices.Sorted(maps.Keys(lines)) {
		b.Rows = append(b.Rows, *lines[name])
	}
	return b
}

// within returns how much of the lifetime lies between two times.
func (l Lifetime) within(from, to time.Time) time.Duration {
	if l.From.After(from) {
		from = l.From
	}
	if !l.To.IsZero() && l.To.Before(to) {
		to = l.To
	}
	return to.Sub(from)
}

// byteHours multiplies without overflow for any disk and month.
func byteHours(used int64, d time.Duration) int64 {
	s := int64(d / time.Second)
	return used/3600*s + used%3600*s/3600
}
