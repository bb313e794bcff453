package devicekind

// Unknown is the row of everything that is in no other.
var Unknown = Row{Kind: "unknown", What: "device of a kind that is not known", Fate: LeftOut,
	Why:     "not known: not held",
	Restore: "is built as the definition says, where a restore can; a drill leaves it out"}

// served is why a point holds nothing of a device that another process is.
const served = "another process of the host serves it, and QEMU does not see what that holds"

// Table has a row for every kind of device that QEMU 7.2 to 10 and libvirt 9 to 11 know.
var Table = []Row{
	{Kind: "disk", What: "disk", Fate: Captured,
		Devices: "virtio-blk* scsi-hd ide-hd ide-cf nvme nvme-ns usb-storage ufs-lu vmapple-virtio-blk*",
		Options: "drive blockdev hda hdb hdc hdd iscsi", Libvirt: "disk/disk",
		Why:     "every writable disk of the machine, a block device of the host or one of the network too",
		Restore: "an image in the storage directory; never the original's"},
	{Kind: "read-only-disk", What: "read-only disk", Libvirt: "disk/readonly", Fate: LeftOut,
		Why: "the machine cannot write it, so it is taken to be kept elsewhere (of libvirt it is captured like " +
			"any disk)",
		Restore: "stays, read-only, if it is on the host"},
	{Kind: "medium", What: "medium in a drive", Fate: LeftOut,
		Devices: "ide-cd scsi-cd xen-cdrom", Options: "cdrom", Libvirt: "disk/cdrom",
		Why:     "media are not disks of the machine",
		Restore: "stays in its drive if it is on the host; a drill takes out those of the network and of devices"},
	{Kind: "floppy", What: "floppy", Fate: LeftOut,
		Devices: "floppy", Options: "fda fdb", Libvirt: "disk/floppy",
		Why:     "floppies are not captured",
		Restore: "taken out, unless it is read-only: the original may write it"},
	{Kind: "memory-card", What: "memory card", Fate: LeftOut,
		Devices: "sd-card sd-card-spi emmc", Options: "sd",
		Why:     "memory cards are not captured",
		Restore: "taken out, unless it is read-only"},
	{Kind: "board-memory", What: "non-volatile memory of the board", Fate: LeftOut,
		Devices: "spapr-nvram macio-nvram at24c-eeprom m25p80* n25q* w25q* mx66* mx25* xen-disk",
		Options: "mtdblock", Libvirt: "nvram",
		Why:     "only the flash with the firmware's variables is captured",
		Restore: "begins empty"},
	{Kind: "scsi-passthrough", What: "SCSI device of the host", Fate: LeftOut,
		Devices: "scsi-block scsi-generic", Libvirt: "disk/lun hostdev/scsi",
		Why:     "the guest's commands go to the device itself, so that what it writes cannot be followed",
		Restore: "left out"},
	{Kind: "served-disk", What: "disk of another process", Fate: LeftOut,
		Devices: "vhost-user-blk* vhost-user-scsi* vhost-scsi* vhost-vdpa-device*",
		Libvirt: "disk/vhostuser disk/vhostvdpa hostdev/scsi_host",
		Why:     served, Restore: "left out"},
	{Kind: "firmware-variables", What: "firmware variables", Fate: Captured,
		Devices: "uefi-vars-*", Options: "pflash", Libvirt: "os/nvram os/varstore",
		Why:     "the file, as it was at the instant",
		Restore: "a file of the machine's own; where it is not in the point, a copy of what is on the host"},
	{Kind: "tpm", What: "TPM", Fate: Captured,
		Devices: "tpm-*", Options: "tpmdev", Libvirt: "tpm/emulator",
		Why:     "the state of an emulated one (swtpm)",
		Restore: "an emulator of the machine's own with that state"},
	{Kind: "host-tpm", What: "TPM of the host", Libvirt: "tpm/passthrough tpm/external", Fate: LeftOut,
		Why:     "its state is in the host's chip, or in a process that is not known",
		Restore: "left out"},
	{Kind: "boot-file", What: "kernel and initrd", Fate: Captured,
		Options: "kernel initrd", Libvirt: "os/kernel os/initrd",
		Why: "the files", Restore: "files of the machine's own"},
	{Kind: "host-file", What: "file of the host", Fate: LeftOut,
		Devices: "loader guest-loader",
		Options: "dtb shim fw_cfg acpitable smbios option-rom",
		Libvirt: "os/dtb os/shim os/acpi sysinfo/fwcfg",
		Why:     "the machine reads it when it starts, and the point has only its name",
		Restore: "is read where it was"},
	{Kind: "firmware", What: "firmware", Fate: Rebuilt,
		Options: "bios", Libvirt: "os/loader",
		Why:     "its name: the code comes with the host's packages",
		Restore: "is read where it was; under libvirt another of its kind where it is not there"},
	{Kind: "configuration-file", What: "configuration file of QEMU", Options: "readconfig", Fate: LeftOut,
		Why:     "the point has its name and not what it says",
		Restore: "refused: it could name images of the original"},
	{Kind: "pmem", What: "persistent memory", Fate: LeftOut,
		Devices: "nvdimm virtio-pmem* cxl-type3", Libvirt: "memory/nvdimm memory/virtio-pmem",
		Why:     "QEMU gives the guest the memory itself, so that what it writes cannot be followed",
		Restore: "left out, and its file is not opened"},
	{Kind: "memory", What: "memory", Fate: Rebuilt,
		Devices: "pc-dimm virtio-mem* virtio-balloon* hv-balloon",
		Objects: "memory-backend-ram memory-backend-memfd memory-backend-shm memory-backend-epc",
		Options: "m mem-prealloc", Libvirt: "memory/dimm memory/virtio-mem memory/sgx-epc memballoon",
		Why:     "what is in it is not kept: a restore boots, as after a power cut",
		Restore: "as it was"},
	{Kind: "memory-file", What: "memory in a file of the host", Fate: LeftOut,
		Objects: "memory-backend-file", Options: "mem-path", Libvirt: "memoryBacking/file",
		Why:     "what is in it is not kept, as of any memory",
		Restore: "memory without a file, so that the original's is not touched; huge pages stay"},
	{Kind: "shared-memory", What: "memory shared with other machines", Fate: LeftOut,
		Devices: "ivshmem*", Libvirt: "shmem",
		Why: "it is not the machine's alone", Restore: "left out"},
	{Kind: "error-records", What: "store of error records", Fate: LeftOut,
		Devices: "acpi-erst", Libvirt: "pstore",
		Why:     "QEMU gives the guest the file itself, so that what it writes cannot be followed",
		Restore: "left out"},
	{Kind: "shared-folder", What: "shared folder", Fate: LeftOut,
		Devices: "virtio-9p* vhost-user-fs* usb-mtp", Options: "fsdev virtfs smb", Libvirt: "filesystem",
		Why: "its files are the host's; back them up there",
		Restore: "stays where the lost machine comes back and the folder is there (not virtiofs of a plain QEMU); a " +
			"copy and a drill do not get it"},
	{Kind: "host-device", What: "device of the host", Fate: LeftOut,
		Devices: "vfio-* usb-host u2f-* pvrdma usb-bt-dongle canokey virtio-input-host* apple-gfx*",
		Objects: "input-linux can-host-socketcan", Options: "usbdevice",
		Libvirt: "hostdev/pci hostdev/usb hostdev/mdev hostdev/net hostdev/storage hostdev/misc " +
			"interface/hostdev interface/vdpa input/passthrough input/evdev",
		Why: "what is in it is the host's", Restore: "left out"},
	{Kind: "smartcard", What: "smart card", Fate: LeftOut,
		Devices: "ccid-card-*", Libvirt: "smartcard",
		Why: "its keys are the host's or the client's", Restore: "stays under libvirt; a drill leaves it out"},
	{Kind: "served-device", What: "device of another process", Fate: LeftOut,
		Devices: "vhost-user-* x-pci-proxy-dev vfio-user-* ipmi-bmc-extern",
		Objects: "vhost-user-backend cryptodev-vhost-user x-remote-object x-vfio-user-server dbus-vmstate " +
			"input-barrier pr-manager-helper",
		Libvirt: "interface/vhostuser",
		Why:     served, Restore: "left out; a network card stays, of a copy without its network"},
	{Kind: "key", What: "key on the host", Fate: LeftOut,
		Objects: "secret secret_keyring tls-creds-*",
		Why: "keys that are kept beside the machine are not read; one that stands in the command line is in the " +
			"point",
		Restore: "is read where it was, if anything needs it still"},
	{Kind: "qemu-arguments", What: "QEMU argument of the definition's own", Libvirt: "commandline", Fate: LeftOut,
		Why:     "it gives the machine what libvirt does not know of",
		Restore: "left out"},
	{Kind: "controller", What: "bus, bridge or controller", Fate: Rebuilt,
		Devices: "pci-bridge* pcie-* ioh3420 pxb* xio3130-* x3130-* i82801b11-bridge cxl-downstream cxl-upstream " +
			"cxl-rp cxl-switch-* " +
			"vmbus-bridge *-usb-ehci* *-usb-uhci* usb-ehci pci-ohci *-usb-xhci qemu-xhci sysbus-ohci usb-hub " +
			"am53c974 dc390 *ahci lsi* " +
			"megasas* mptsas1068 nvme-subsys pvscsi virtio-scsi* *-ide isa-fdc sdhci-pci usb-bot usb-uas ufs " +
			"spapr-vscsi spapr-pci-host-bridge " +
			"virtio-serial* usb-ccid xen-platform xen-backend zpci",
		Objects: "iothread main-loop thread-context throttle-group iommufd acpi-generic-*",
		Options: "usb", Libvirt: "controller hub",
		Why: "it holds nothing", Restore: "as it was"},
	{Kind: "network-card", What: "network card", Fate: Rebuilt,
		Devices: "e1000* igb i825* i82801 ne2k_* pcnet rocker rtl8139 tulip usb-net virtio-net* vmxnet3 " +
			"xen-net-device spapr-vlan",
		Objects: "filter-* colo-compare",
		Options: "netdev nic net", Libvirt: "interface",
		Why:     "its settings; the network is the host's",
		Restore: "on the network that the restore names; in a drill on none"},
	{Kind: "vsock", What: "socket between guest and host", Fate: Rebuilt,
		Devices: "vhost-vsock*", Libvirt: "vsock",
		Why:     "it holds nothing",
		Restore: "as it was; a copy gets another address or, of a plain QEMU, none; a drill none"},
	{Kind: "port", What: "serial or parallel port, console or channel", Fate: Rebuilt,
		Devices: "isa-serial pci-serial* usb-serial virtconsole virtserialport isa-parallel ipoctal232 tpci200 " +
			"isa-debugcon sclpconsole sclplmconsole " +
			"spapr-vty x-terminal3270 xen-console usb-redir",
		Options: "chardev serial parallel debugcon monitor mon qmp qmp-pretty virtioconsole gdb s semihosting-config",
		Libvirt: "serial console parallel channel redirdev redirfilter",
		Why:     "what is at the other end, a log too, is the host's",
		Restore: "files and sockets of the machine's own; what a copy would share with the original ends nowhere"},
	{Kind: "display", What: "display, sound or input", Fate: Rebuilt,
		Devices: "*-vga virtio-vga* VGA bochs-display qxl ramfb sga virtio-gpu* vmware-svga AC97 ac97 adlib cs4231a " +
			"ES1370 es1370 gus hda-* *intel-hda sb16 " +
			"usb-audio virtio-sound* i8042 usb-kbd usb-mouse usb-tablet usb-wacom-tablet usb-braille " +
			"virtio-keyboard* virtio-mouse* virtio-tablet* " +
			"virtio-multitouch* vmmouse",
		Options: "vga display vnc spice nographic curses sdl full-screen audio audiodev alt-grab ctrl-grab no-frame " +
			"no-quit rotate portrait g k show-cursor",
		Libvirt: "graphics video sound audio input/tablet input/mouse input/keyboard",
		Why:     "it holds nothing", Restore: "as it was, its sockets the machine's own; a drill has no display"},
	{Kind: "small-device", What: "device without content", Fate: Rebuilt,
		Devices: "*iommu* AMDVI-PCI ctucan_pci edu hv-syndbg hyperv-testdev i2c-* isa-applesmc isa-debug-exit " +
			"kvaser_pci mc146818rtc " +
			"mioe3680_pci pcm3680_pci pc-testdev pci-testdev pvpanic* smbus-ipmi ipmi-bmc-sim isa-ipmi-* pci-ipmi-* " +
			"vmcoreinfo vmgenid vmclock " +
			"i6300esb ib700 diag288 virtio-rng* virtio-crypto* virtio-nsm* spapr-rng spapr-rtc",
		Objects: "rng-builtin rng-random rng-egd cryptodev-backend* can-bus authz-* tls-cipher-suites qtest " +
			"sev-guest sev-snp-guest tdx-guest " +
			"pef-guest s390-pv-guest igvm-cfg",
		Libvirt: "watchdog panic iommu rng crypto emulator lease",
		Why:     "what it knows does not outlive a power cut, or is in the definition", Restore: "as it was"},
	{Kind: "setting", What: "setting", Fate: Rebuilt,
		Options: "machine M cpu accel smp numa enable-kvm enable-hax no-kvm no-kvm-pit no-kvm-irqchip boot name uuid " +
			"rtc icount device object global set " +
			"S no-reboot no-shutdown action nodefaults no-user-config nodefconfig no-acpi no-hpet no-fd-bootchk " +
			"win2k-hack rtc-td-hack append " +
			"daemonize pidfile D d dfilter trace L msg sandbox runas run-with chroot overcommit async-teardown " +
			"compat loadvm incoming only-migratable " +
			"snapshot add-fd watchdog watchdog-action echr seed preconfig plugin qtest qtest-log prom-env " +
			"semihosting old-param singlestep one-insn-per-tb " +
			"accel-props enable-fips enable-sync-profile xen-domid xen-attach xen-domid-restrict tb-size perfmap " +
			"jitdump dump-vmstate writeconfig " +
			"balloon mem-merge bt soundhw tdf no-tdf tftp bootp redir readonly h help version device-help audio-help",
		Why: "it is in the definition", Restore: "as it was; what belonged to the old process is left out"},
}
