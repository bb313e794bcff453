//go:build race

package vault_test

// stride is how many calls apart the crash tests crash: the race detector makes each run several
// times slower, and `make crash` tries every call without it.
const stride = 9

// underRace says that everything is ten times as slow: what counts and compares is done without.
const underRace = true
