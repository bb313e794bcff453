// Package secrets looks at every process that any command starts: none gets a secret of ours.
package secrets
