package cli_test

import (
	"path/filepath"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

// The files of points, of disks that the real tools made. $LVM is where the physical volumes of a
// volume group are.
func TestFiles(t *testing.T) {
	lvm, err := filepath.Abs("../filesystem/lvm/testdata")
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, params(testscript.Params{Dir: "testdata/files"}, map[string]string{"LVM": lvm}))
}
