// Package luks makes the headers of LUKS1 volumes, as QEMU keeps them in front of raw images and
// inside qcow2 ones, and encrypts their sectors: AES-256 in XTS mode, the number of the sector as
// the tweak (aes-xts-plain64), SHA-256.
//
// It makes new volumes, whose key it knows. It opens none: what others have encrypted is read
// through QEMU, which knows all ciphers.
//
// The format is the LUKS1 on-disk format specification, version 1.2.3; integers are big-endian.
// A [Cipher] is safe for concurrent use.
package luks
