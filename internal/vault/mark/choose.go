package mark

import (
	"bytes"
	"cmp"
	"context"

	"github.com/holdfast-vm/holdfast/internal/vault/chunk"
	"github.com/holdfast-vm/holdfast/internal/vault/index"
	"github.com/holdfast-vm/holdfast/internal/vault/log"
)

// Best returns which of several copies of one chunk counts: the first, by pack and slot, of those
// in packs that are not damaged; of all if there is none such. damaged may be nil.
func Best(all []index.Loc, damaged func(log.ObjectID) bool) int {
	best, bad := 0, damaged != nil && damaged(all[0].Pack.ID)
	for i := 1; i < len(all); i++ {
		worse := damaged != nil && damaged(all[i].Pack.ID)
		if worse == bad && before(&all[i], &all[best]) || bad && !worse {
			best, bad = i, worse
		}
	}
	return best
}

func before(a, b *index.Loc) bool {
	return cmp.Or(bytes.Compare(a.Pack.ID[:], b.Pack.ID[:]), cmp.Compare(a.Slot, b.Slot)) < 0
}

func (o *Options) choose(all []index.Loc) int { return Best(all, o.Damaged) }

// best returns the copy of id that counts.
func (o *Options) best(ctx context.Context, id chunk.ID) (l index.Loc, ok bool, err error) {
	all, err := o.Rows.FindAll(ctx, id)
	if err != nil || len(all) == 0 {
		return l, false, err
	}
	return all[o.choose(all)], true, nil
}
