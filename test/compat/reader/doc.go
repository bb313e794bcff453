// Command reader gets one disk of a recovery point out of a vault in a directory.
//
// It is written from docs/formats alone and shares no code with the vault: where the two differ,
// one of them or the text is wrong. It reads everything that the text says must be checked, uses
// the tables of packs and no index, and is neither fast nor sparing.
//
//	go run ./test/compat/reader VAULTDIR KEYFILE POINT DISK > out
//
// Without POINT and DISK it lists the points. With notes as DISK it lists what was attached to the
// point. With log it lists the entries of a
// log below a directory; DATAKEY and VAULTID are hexadecimal digits.
//
//	go run ./test/compat/reader log DIR DATAKEY VAULTID
//
// KEYFILE holds an age identity or a passphrase. POINT is the ID of a point, or the beginning of it
// that no other point has. Exit status is 0 when every byte of the disk was written and is right, 1
// otherwise.
package main
