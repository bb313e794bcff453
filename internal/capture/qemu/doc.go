// Package qemu captures a plain QEMU process over QMP, by push: QEMU writes the state of all disks
// at one instant into local scratch images and its jobs end; then the images are read out of
// process.
//
// One transaction begins a backup job on every disk and starts the new epoch of changed block
// tracking; the backups come first, for they hold all writes until the whole transaction is done.
// What does not fit into the scratch space is pushed in slices, chosen by bitmaps that are made
// outside of QEMU and merged into its own: the slices are of different instants, but everything
// written meanwhile is recorded and pushed again, at last in one transaction for all disks, so that
// the result is exact.
//
// What a capture puts into QEMU for its own duration, jobs, nodes and bitmaps, is named hf-cap-…;
// the bitmaps of epochs are named by [capture.BitmapName]. Scratch images are unlinked before QEMU
// sees them, as descriptors; those of a stopped machine as soon as it has opened them. A state file
// written ahead lets [Capturer.Reconcile] find the rest after a kill, and its lock lets one capture
// of a machine run at a time.
//
// Bitmaps and jobs are named by node, never by device: during a backup the device's name stands for
// the filter above the disk, a bitmap added there vanishes with the filter, and QEMU 7.2 crashes
// when a transaction asks to enable a bitmap it cannot find.
package qemu
