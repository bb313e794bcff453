package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/holdfast-vm/holdfast/internal/blob"
	"github.com/holdfast-vm/holdfast/internal/blob/open"
	"github.com/holdfast-vm/holdfast/internal/capture"
	"github.com/holdfast-vm/holdfast/internal/diskimage"
	"github.com/holdfast-vm/holdfast/internal/disks"
	"github.com/holdfast-vm/holdfast/internal/drill"
	"github.com/holdfast-vm/holdfast/internal/export"
	"github.com/holdfast-vm/holdfast/internal/files"
	"github.com/holdfast-vm/holdfast/internal/files/mount"
	"github.com/holdfast-vm/holdfast/internal/filesystem"
	"github.com/holdfast-vm/holdfast/internal/filesystem/lvm"
	"github.com/holdfast-vm/holdfast/internal/filesystem/volume"
	"github.com/holdfast-vm/holdfast/internal/hypervisor"
	"github.com/holdfast-vm/holdfast/internal/point"
	"github.com/holdfast-vm/holdfast/internal/protect"
	"github.com/holdfast-vm/holdfast/internal/qmp"
	"github.com/holdfast-vm/holdfast/internal/restore"
	"github.com/holdfast-vm/holdfast/internal/snapshots"
	"github.com/holdfast-vm/holdfast/internal/vault"
)

// Exit statuses. `holdfast help exit-status` prints what they mean.
const (
	StatusOK          = 0
	StatusError       = 1
	StatusUsage       = 2
	StatusDamage      = 3
	StatusConsistency = 4
	StatusKey         = 5
	StatusNotVerified = 6
	StatusUnfit       = 7
	StatusChanged     = 8
	StatusInterrupted = 130
)

// statuses says what each exit status means. The table in docs/manual/cli.md has the same words.
var statuses = []struct {
	status  int
	meaning string
}{
	{StatusOK, "done"},
	{StatusError, "an error; nothing was changed unless the message says so"},
	{StatusUsage, "the command line could not be understood"},
	{StatusDamage, "damage was found, in the vault or in a file system inside a point"},
	{StatusConsistency, "the consistency that --require asked for was not reached; no point was made"},
	{StatusKey, "the key does not open the vault, no key was given, or it is not a vault"},
	{StatusNotVerified, "a drill came to an end, and the point is not verified"},
	{StatusUnfit, "a check of the host found something that will not work"},
	{StatusChanged, "another vault, or an older state of it, is where this host or the key file knows one"},
	{StatusInterrupted, "interrupted by SIGINT or SIGTERM, after cleaning up; a second signal ends the program at " +
		"once"},
}

var (
	errInterrupted = errors.New("interrupted")
	errDamage      = errors.New("damage found")
	errUsage       = errors.New("usage")
	errNoKey       = errors.New("no key was given")
)

// hinted is an error with what to do next, printed apart from it.
type hinted struct {
	error
	hint string
}

func (h *hinted) Unwrap() error { return h.error }

func withHint(err error, format string, args ...any) error {
	return &hinted{err, fmt.Sprintf(format, args...)}
}

// usageError is a command line that cannot be understood.
type usageError struct{ text string }

func (u *usageError) Error() string        { return u.text }
func (u *usageError) Is(target error) bool { return target == errUsage }

func usagef(format string, args ...any) error { return &usageError{fmt.Sprintf(format, args...)} }

// cause is what a known error means to the caller of the program.
type cause struct {
	is     error
	kind   string // stable, for programs
	status int
	hint   string // what to do next, where the error itself does not carry a better one
}

// causes is searched from the top: what is more telling stands higher.
var causes = []cause{
	{errInterrupted, "interrupted", StatusInterrupted, ""},
	{errUsage, "usage", StatusUsage, ""},
	{errDamage, "damage", StatusDamage,
		"points that are not named above are whole; restore what was hit from another vault or back it up again"},
	{protect.ErrConsistency, "consistency", StatusConsistency,
		"leave out --require to accept a lower level; what can be done about the reason above stands in " +
			"docs/manual/quiesce.md#reasons"},
	{drill.ErrNotVerified, "not_verified", StatusNotVerified,
		"what was found out is on the point: `holdfast point show POINT --json` has the whole output of the checks " +
			"and of the console"},
	{errUnfit, "unfit", StatusUnfit, "what to do stands with what was found"},
	{hypervisor.ErrNoKVM, "no_kvm", StatusError,
		"--accel tcg has QEMU emulate the processor: slow, but it runs everywhere; `holdfast host check` says more"},
	{hypervisor.ErrKVMUnfit, "kvm_unfit", StatusError,
		"--accel tcg has QEMU emulate the processor, slowly; --accel kvm insists; `holdfast host check` says more"},
	{hypervisor.ErrNoQEMU, "no_qemu", StatusError, "install QEMU; `holdfast host check` says what else is missing"},
	{errNoKey, "no_key", StatusKey, "give --key-file FILE, --passphrase-file FILE, or set HOLDFAST_PASSPHRASE"},
	{vault.ErrHeld, "held", StatusError,
		"wait for what reads it or builds on it; an instant restore is finished by `holdfast instant resume`, or " +
			"given up " +
			"with `holdfast instant abandon`; if it is gone, `holdfast point delete --force`"},
	{vault.ErrWrongKey, "wrong_key", StatusKey,
		"give the key that the vault was made with, another of `holdfast vault key list`, or the recovery key"},
	{vault.ErrNotVault, "not_a_vault", StatusKey, "check --vault; `holdfast vault init DIR` makes a new vault"},
	{vault.ErrNewer, "newer_version", StatusError, "use a newer holdfast; this one changes nothing in such a vault"},
	{vault.ErrExists, "exists", StatusError,
		"nothing was changed; choose another directory, or use the vault that is there with --vault"},
	{vault.ErrChanged, "changed", StatusChanged,
		"somebody may have put another vault in its place; if the change is meant, `holdfast vault accept` shows " +
			"what " +
			"differs, and with --yes accepts it"},
	{vault.ErrRolledBack, "rolled_back", StatusChanged,
		"an older copy may have been put in its place, and what was stored since is not there; if that is meant, " +
			"`holdfast vault accept` shows what differs, and with --yes accepts it"},
	{vault.ErrReadOnly, "read_only", StatusError,
		"it is shown as of an earlier entry, or its store cannot be written: leave out --at, or see to the " +
			"permissions"},
	{vault.ErrLost, "lost", StatusError, "nothing of it is in the vault; run this again"},
	{open.ErrAddress, "bad_address", StatusUsage,
		"give the directory of the vault, or a URI such as file:///srv/vault"},
	{vault.ErrDeleted, "deleted", StatusError,
		"`holdfast point undelete POINT` brings it back; `holdfast point list --deleted` shows until when"},
	{vault.ErrNoPoint, "no_such_point", StatusError,
		"`holdfast point list` shows what there is; a point is named by the beginning of its ID or as NAME@latest"},
	{vault.ErrAmbiguous, "ambiguous", StatusError, "give more digits of the point's ID"},
	{vault.ErrCorrupt, "damage", StatusDamage, "run `holdfast vault check --read-data` to see what else is hit"},
	{filesystem.ErrCorrupt, "damage", StatusDamage,
		"what the guest wrote is damaged there; the same file of another point may be whole"},
	{files.ErrLimit, "limit", StatusError,
		"no honest disk reaches this limit; if yours does, raise it"},
	{files.ErrNoRoom, "no_space", StatusError, "choose a place with more room with --to"},
	{files.ErrNoVolume, "no_such_volume", StatusError, "`holdfast point ls POINT` lists the volumes"},
	{files.ErrNoFile, "not_found", StatusError,
		"`holdfast point ls POINT [PATH]` lists volumes and directories, `holdfast point find POINT GLOB` looks " +
			"everywhere"},
	{files.ErrName, "bad_path", StatusError,
		"name a file as /path or VOLUME:/path; `holdfast point ls POINT` lists the volumes"},
	{lvm.ErrMissing, "missing_disk", StatusError,
		"the point lacks a disk that this needs; was it left out of the backup?"},
	{filesystem.ErrUnsupported, "unsupported", StatusError,
		"`holdfast point mount` shows the disks as files, for other tools to read"},
	{volume.ErrNoFiles, "no_files", StatusError, "`holdfast point ls POINT` lists the volumes"},
	{volume.ErrNoGuest, "no_guest", StatusError,
		"name a file as VOLUME:/path; `holdfast point ls POINT` lists the volumes"},
	{mount.ErrNoFUSE, "no_fuse", StatusError, "`holdfast point get` fetches files without it"},
	{files.ErrExists, "exists", StatusError,
		"choose another directory with --to; --force replaces files and adds to directories, and puts neither in the " +
			"place of the other"},
	{vault.ErrLastKey, "last_key", StatusError, "add another key first: `holdfast vault key add`"},
	{qmp.ErrInUse, "busy", StatusError,
		"QEMU serves one client per monitor: wait until the other backup or program is done, or give QEMU another " +
			"-qmp socket"},
	{hypervisor.ErrUnreachable, "host_unreachable", StatusError,
		"name the host with --connect, qemu:///system for libvirt or qmp:SOCKET for a plain QEMU, and see that it " +
			"runs and lets you in"},
	{capture.ErrBusy, "busy", StatusError, "wait until it is done, then run this again"},
	{capture.ErrOff, "off", StatusError, "the machine was turned off meanwhile; run this again to read its images"},
	{capture.ErrCopied, "busy", StatusError,
		"wait until that is done, as `holdfast disk list`, `holdfast instant list` or `virsh blockjob` tell, or " +
			"leave the disk out with --exclude-disk"},
	{capture.ErrScratch, "scratch", StatusError,
		"give a directory with more room with --scratch DIR, or raise --scratch-limit"},
	{export.ErrSocketInUse, "in_use", StatusError, "choose another --socket, or end the process that serves there"},
	{export.ErrLayerInUse, "in_use", StatusError,
		"one process at a time writes to a layer: end the other one, or choose another --writable directory"},
	{export.ErrOtherDisk, "other_disk", StatusError,
		"a layer belongs to the disk that it was made over: serve that point again, or choose another --writable " +
			"directory"},
	{export.ErrLayerDamaged, "layer_damaged", StatusError,
		"the point is whole; what was written to the layer may be lost: choose another --writable directory"},
	{hypervisor.ErrNoDefinition, "no_definition", StatusError,
		"there is no machine to build; restore its disks one by one: `holdfast point restore POINT --disk NAME --to " +
			"FILE`"},
	{hypervisor.ErrOtherKind, "other_kind", StatusError,
		"a libvirt machine needs a libvirt host such as --connect qemu:///system, a plain QEMU's goes to " +
			"--connect qmp:SOCKET; or restore its disks one by one with --disk"},
	{point.ErrNoDisks, "no_disk", StatusError,
		"its machine had none: `holdfast point restore POINT --as NAME --storage DIR` builds it again"},
	{protect.ErrNoDisks, "no_disk", StatusError,
		"leave fewer disks out with --exclude-disk; a machine that has none at all is backed up without it"},
	{point.ErrNoDisk, "no_disk", StatusError,
		"`holdfast point show POINT`, or `snapshot show` for a snapshot, lists its disks; name one with --disk"},
	{disks.ErrNoPool, "not_found", StatusError, "a pool is a directory that exists: make it with mkdir first"},
	{disks.ErrNoDisk, "no_such_disk", StatusError, "`holdfast disk list` shows the disks of the pool"},
	{disks.ErrUnfinished, "unfinished", StatusError, "`holdfast disk reconcile NAME` finishes or undoes it"},
	{disks.ErrExists, "exists", StatusError, "choose another name, or delete that disk first"},
	{disks.ErrBusy, "busy", StatusError, "wait until it is done, then run this again"},
	{disks.ErrAttached, "attached", StatusError, "detach it first: `holdfast disk detach NAME`"},
	{disks.ErrNotAttached, "not_attached", StatusError,
		"`holdfast disk list` shows what is attached; a machine's own disks are its hypervisor's business"},
	{disks.ErrBased, "in_use", StatusError, "delete what is based on it first"},
	{disks.ErrHydrating, "hydrating", StatusError, "fill it first: `holdfast disk hydrate NAME`"},
	{disks.ErrHost, "host_unreachable", StatusError, "see that the host runs and lets you in"},
	{hypervisor.ErrNoSlot, "no_slot", StatusError,
		"start the machine with a spare slot: -device pcie-root-port,id=spare1 or -device virtio-scsi-pci,id=scsi0 " +
			"(libvirt: <controller type='pci' model='pcie-root-port'/>)"},
	{hypervisor.ErrNotReleased, "not_released", StatusError,
		"unmount it in the guest; `holdfast disk reconcile NAME` finishes then"},
	{snapshots.ErrNoSnapshot, "no_such_snapshot", StatusError, "`holdfast snapshot list` shows what there is"},
	{snapshots.ErrAmbiguous, "ambiguous", StatusError, "name it by its ID"},
	{snapshots.ErrExists, "exists", StatusError, "choose another name, or delete that snapshot first"},
	{snapshots.ErrOtherBase, "other_base", StatusError,
		"apply it to a copy of the snapshot that it was counted from: `holdfast point restore ID --to FILE`"},
	{snapshots.ErrNotStream, "bad_stream", StatusError,
		"a stream is written by `holdfast snapshot diff A B --to FILE`"},
	{snapshots.ErrDamagedStream, "bad_stream", StatusError, "nothing was written; bring the stream here again"},
	{restore.ErrAbandoned, "abandoned", StatusError, "nothing of it is left"},
	{restore.ErrTooLate, "too_late", StatusError,
		"the machine is an ordinary one now: remove it with the tools of its hypervisor"},
	{restore.ErrInstantBusy, "busy", StatusError,
		"that process goes on; `holdfast instant show NAME --storage DIR` says how far it is"},
	{restore.ErrNoInstant, "no_such_instant", StatusError,
		"`holdfast instant list --storage DIR` shows what is under way; a restore that is done is in no list"},
	{diskimage.ErrInUse, "in_use", StatusError,
		"shut the machine down; a running machine is backed up with `holdfast vm backup`"},
	{diskimage.ErrFormat, "bad_image", StatusError, "say what format it has with --format"},
	{restore.ErrWasEncrypted, "was_encrypted", StatusError,
		"give --image-secret FILE to encrypt it again, or --plain if it may be plain"},
	{restore.ErrAsIs, "as_is", StatusError,
		"`holdfast point restore POINT --to FILE` gives back the image, which its secret opens"},
	{diskimage.ErrSecret, "wrong_secret", StatusError, "give the file with the right secret: --image-secret FILE"},
	{diskimage.ErrEncrypted, "encrypted", StatusError,
		"open it with its secret: --image-secret FILE; or store the image of a machine that is off as it lies: " +
			"`holdfast image backup FILE --as-is`"},
	{diskimage.ErrDamaged, "bad_image", StatusError, "nothing was stored; `qemu-img check` says more about an image"},
	{diskimage.ErrEmpty, "bad_image", StatusError, "check the name"},
	{diskimage.ErrTooSmall, "too_small", StatusError, "choose a target at least as large as the disk"},
	{diskimage.ErrExists, "exists", StatusError, "choose another name, or give --force to overwrite it"},
	{diskimage.ErrNoSpace, "no_space", StatusError, "choose a place with more room"},
	{hypervisor.ErrNoMachine, "no_such_machine", StatusError,
		"`holdfast vm list` shows the machines of the hosts given with --connect"},
	{hypervisor.ErrAmbiguous, "ambiguous", StatusError,
		"give the machine's UUID instead of its name, or only one --connect"},
	{restore.ErrSocketTaken, "exists", StatusError,
		"qmp:SOCKET is where the new machine will listen: name a socket that is not there yet"},
	{hypervisor.ErrExists, "exists", StatusError, "choose another name with --as, or remove what is there first"},
	{blob.ErrNoSpace, "no_space", StatusError,
		"the vault's points are whole; free space on its disk, or delete points and run `holdfast vault gc`"},
	{unix.ENOSPC, "no_space", StatusError, "free space there and run this again"},
	{fs.ErrPermission, "permission", StatusError, "run this as a user who may (often root)"},
	{fs.ErrNotExist, "not_found", StatusError, ""},
}

// Failure is the document that --json prints of an error, on standard error.
type Failure struct {
	Error FailureText `json:"error"`
}

// FailureText says what went wrong. Kind is stable.
type FailureText struct {
	Message string `json:"message"`
	Hint    string `json:"hint,omitempty"`
	Kind    string `json:"kind"`
}

func explain(err error) (FailureText, int) {
	text := FailureText{Message: oneLine(err.Error()), Kind: "error"}
	status := StatusError
	for _, c := range causes {
		if errors.Is(err, c.is) {
			text.Kind, text.Hint, status = c.kind, c.hint, c.status
			break
		}
	}
	var l *files.LimitError
	if text.Kind == "limit" && errors.As(err, &l) {
		text.Hint += " with " + limitFlags[l.Limit]
	}
	var h *hinted
	if errors.As(err, &h) {
		text.Hint = h.hint
	}
	return text, status
}

// oneLine keeps an error on its line, whatever a remote side put into it.
func oneLine(s string) string {
	return strings.ReplaceAll(strings.TrimSpace(s), "\n", "; ")
}

// fail prints err and returns the exit status that belongs to it.
func (a *app) fail(err error) int {
	text, status := explain(err)
	if a.json {
		enc := json.NewEncoder(a.env.Stderr)
		enc.SetEscapeHTML(false)
		enc.Encode(Failure{text})
		return status
	}
	fmt.Fprintf(a.env.Stderr, "holdfast: %s\n", printable(text.Message))
	if text.Hint != "" {
		fmt.Fprintf(a.env.Stderr, "hint: %s\n", visible(text.Hint))
	}
	return status
}
