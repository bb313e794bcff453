package xfs

import "encoding/binary"

const (
	aclVersion   = 2
	aclEntrySize = 12
	aclUser      = 0x02
	aclGroup     = 0x08
	aclNoID      = ^uint32(0)
)

// kernelAttr returns an attribute as a mount names and shows it.
func kernelAttr(k attribute, value []byte) (string, []byte, error) {
	switch {
	case k.flags&attrSecure != 0:
		return "security." + k.name, value, nil
	case k.flags&attrRoot == 0:
		return "user." + k.name, value, nil
	case k.name == "SGI_ACL_FILE":
		acl, err := kernelACL(value)
		return "system.posix_acl_access", acl, err
	case k.name == "SGI_ACL_DEFAULT":
		acl, err := kernelACL(value)
		return "system.posix_acl_default", acl, err
	}
	return "trusted." + k.name, value, nil
}

// kernelACL turns an ACL as XFS stores it into what getxattr returns.
func kernelACL(b []byte) ([]byte, error) {
	if len(b) < 4 || (len(b)-4)%aclEntrySize != 0 || int64(be.Uint32(b)) > int64(len(b)-4)/aclEntrySize {
		return nil, corrupt("ACL of %d bytes", len(b))
	}
	le := binary.LittleEndian
	out := le.AppendUint32(nil, aclVersion)
	for i := range int(be.Uint32(b)) {
		e := b[4+i*aclEntrySize:]
		tag, id := be.Uint32(e), be.Uint32(e[4:])
		if tag != aclUser && tag != aclGroup {
			id = aclNoID
		}
		out = le.AppendUint16(out, uint16(tag))
		out = le.AppendUint16(out, be.Uint16(e[8:]))
		out = le.AppendUint32(out, id)
	}
	return out, nil
}
