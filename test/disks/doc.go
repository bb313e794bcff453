// Package disks proves on real guests, under plain QEMU and libvirt, that managed disks can be
// attached, grown, detached and filled while the guest runs, and that snapshots of its disks are
// right and take nothing from its backups.
package disks
