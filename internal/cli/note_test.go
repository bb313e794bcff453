package cli_test

import (
	"context"
	"os"
	"strings"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/holdfast-vm/holdfast/internal/blob/dir"
	"github.com/holdfast-vm/holdfast/internal/vault"
)

// noteCmd runs "note POINT KIND BODY": it attaches a note in the vault and with the key file that
// the environment names.
func noteCmd(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: note point kind body")
	}
	ctx := context.Background()
	store, err := dir.Open(ts.MkAbs(ts.Getenv("HOLDFAST_VAULT")))
	ts.Check(err)
	defer store.Close()
	key, err := os.ReadFile(ts.MkAbs(ts.Getenv("HOLDFAST_KEY_FILE")))
	ts.Check(err)
	at := strings.Index(string(key), "AGE-SECRET-KEY-")
	if at < 0 {
		ts.Fatalf("the key file holds no identity")
	}
	identity, _, _ := strings.Cut(string(key[at:]), "\n")
	v, err := vault.Open(ctx, store, vault.Key{Identity: identity}, vault.Options{})
	ts.Check(err)
	p, err := v.Point(ctx, args[0])
	ts.Check(err)
	_, err = v.AddNote(ctx, p.ID, args[1], []byte(args[2]))
	ts.Check(err)
}
