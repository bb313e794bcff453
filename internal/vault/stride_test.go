//go:build !race

package vault_test

// stride is how many calls apart the crash tests crash.
const stride = 1

const underRace = false
