package lvm

// NewReader returns a Reader of texts of at most so many bytes.
func NewReader(most int64) *Reader { return &Reader{most: most} }

// AssembleWithin is Assemble that looks at so many segments and stripes at most.
func AssembleWithin(pvs []*PV, work int) []*Group { return assemble(pvs, work) }
