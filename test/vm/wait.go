package vm

import (
	"fmt"
	"time"
)

// waitFor asks done again and again until it says yes, fails, or the time is up.
func waitFor(what string, timeout time.Duration, done func() (bool, error)) error {
	deadline := time.Now().Add(timeout)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		ok, err := done()
		if ok || err != nil {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("wait for %s: not within %v", what, timeout)
		}
		<-tick.C
	}
}
