package ext4

import "encoding/binary"

const (
	aclDiskVersion   = 1
	aclKernelVersion = 2
	aclUser          = 0x02
	aclGroup         = 0x08
	aclNobody        = 0xFFFFFFFF // the id of an entry that is not for one user or group
)

// kernelACL converts an access control list from the form on disk, which leaves out ids that mean
// nothing, to the kernel's.
func kernelACL(disk []byte) ([]byte, error) {
	if len(disk) < 4 || le32(disk, 0) != aclDiskVersion {
		return nil, damaged("an access control list without its version")
	}
	acl := binary.LittleEndian.AppendUint32(nil, aclKernelVersion)
	for rest := disk[4:]; len(rest) > 0; {
		size, id := 4, uint32(aclNobody)
		if len(rest) < size {
			return nil, damaged("an access control list is cut off")
		}
		if tag := le16(rest, 0); tag == aclUser || tag == aclGroup {
			if size = 8; len(rest) < size {
				return nil, damaged("an access control list is cut off")
			}
			id = le32(rest, 4)
		}
		acl = binary.LittleEndian.AppendUint32(append(acl, rest[:4]...), id)
		rest = rest[size:]
	}
	return acl, nil
}
