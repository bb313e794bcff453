package export

import "testing"

// A block that is in the map is in what the next flush writes, also when it is another write that
// sets its bit, at this very moment.
func TestBlocksInTheMapAreFlushed(t *testing.T) {
	for range 2000 {
		m := newBlockMap(1 << 30)
		m.page(0)
		done := make(chan struct{})
		go func() { defer close(done); m.set(0, layerBlock) }()
		for !m.has(0) { // the other one has set it, and may not be back yet
		}
		m.set(0, layerBlock)
		if len(m.takeDirty()) == 0 {
			t.Fatal("a block was written, and flushing does not write that it is there")
		}
		<-done
	}
}

// What a map costs follows the blocks that it has.
func TestMapOfAHugeDisk(t *testing.T) {
	const size = 8 << 40
	m := newBlockMap(size)
	blocks := []int64{0, 5 << 40, size - layerBlock}
	for _, off := range blocks {
		m.set(off, off+layerBlock)
	}
	for i, off := range blocks {
		here, n := m.run(off, size)
		if !here || n != layerBlock {
			t.Errorf("at %d: held %v, %d bytes", off, here, n)
		}
		if i == len(blocks)-1 {
			break
		}
		if here, n = m.run(off+layerBlock, size); here || off+layerBlock+n != blocks[i+1] {
			t.Errorf("after %d: held %v, %d bytes", off, here, n)
		}
	}
	if got := m.takeDirty(); len(got) != 3 || got[2].index != mapPages(size)-1 {
		t.Errorf("%d pages are to be written", len(got))
	}
	if got := m.takeDirty(); len(got) != 0 {
		t.Errorf("%d pages are to be written again", len(got))
	}
	if n := testing.AllocsPerRun(100, func() { m.run(layerBlock, size); m.takeDirty() }); n != 0 {
		t.Errorf("looking for a hole and flushing nothing allocates %v times", n)
	}
}
