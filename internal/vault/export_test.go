package vault

// DieAndRestart makes this process look like another one: what it held before has a dead owner.
func DieAndRestart() {
	before := processBirth(0)
	processBirth = func(int) uint64 { return before + 1 }
}
