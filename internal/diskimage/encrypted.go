package diskimage

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	programs "github.com/holdfast-vm/holdfast/internal/child"
)

var (
	// ErrEncrypted reports an image whose secret is needed to read it.
	ErrEncrypted = errors.New("image is encrypted")
	// ErrSecret reports that the secret does not open the image.
	ErrSecret = errors.New("the secret does not open the image")
)

const (
	keyID      = "hf-key" // of the secret in qemu-nbd
	luksMagic  = "LUKS\xba\xbe"
	formatLUKS = "luks"

	// maxSecret is more than any secret of an image has, in bytes.
	maxSecret = 64 << 10
)

// Secrets are files with the secrets of encrypted images, read: by the name of the disk, that of
// the name "" for all others.
type Secrets map[string]Secret

// Secret is what opens an encrypted image.
type Secret struct {
	File  string // absolute
	Bytes []byte
}

// Of returns the secret of a disk, nil if there is none.
func (s Secrets) Of(disk string) []byte { return s.For(disk).Bytes }

// For returns the secret of a disk with its file; the zero value if there is none.
func (s Secrets) For(disk string) Secret {
	if secret, ok := s[disk]; ok {
		return secret
	}
	return s[""]
}

// ReadSecret reads the secret of an image from a file, every byte of it: as QEMU does, it takes a
// line end at the end for part of the secret.
func ReadSecret(path string) (s Secret, err error) {
	if s.File, err = filepath.Abs(path); err == nil {
		s.Bytes, err = os.ReadFile(path)
	}
	switch {
	case err != nil:
		return s, fmt.Errorf("read the secret of an image: %w", err)
	case len(s.Bytes) == 0:
		return s, fmt.Errorf("read the secret of an image: %s is empty", path)
	case len(s.Bytes) > maxSecret:
		return s, fmt.Errorf("read the secret of an image: %s has %d bytes", path, len(s.Bytes))
	}
	return s, nil
}

// isLUKS reports whether f begins as an encrypted volume. A guest can write that, too.
func isLUKS(f *os.File) bool {
	head := make([]byte, len(luksMagic))
	_, err := f.ReadAt(head, 0)
	return err == nil && string(head) == luksMagic
}

// openEncrypted has qemu-nbd open an image with its secret.
func (m *Image) openEncrypted(ctx context.Context, device bool, o Options) (source, error) {
	if len(o.Secret) == 0 {
		return nil, fmt.Errorf("%w (%s)", ErrEncrypted, m.encryption)
	}
	args, err := m.unlockOptions(ctx, device)
	if err != nil {
		return nil, err
	}
	return startChild(ctx, args, o.Bitmap, m.format, o.Secret)
}

// unlockOptions names the image, and its key to all layers that need it.
func (m *Image) unlockOptions(ctx context.Context, device bool) ([]string, error) {
	opts := []string{"driver=" + m.format, "file.driver=file", "file.filename=" + strings.ReplaceAll(m.path, ",", ",,")}
	if device {
		opts[1] = "file.driver=host_device"
	}
	if m.format == formatLUKS {
		opts = append(opts, "key-secret="+keyID)
	} else {
		opts = append(opts, "encrypt.format="+m.encryption, "encrypt.key-secret="+keyID)
		below, err := m.encryptedLayers(ctx)
		if err != nil {
			return nil, err
		}
		opts = append(opts, below...)
	}
	return []string{"--image-opts", strings.Join(opts, ",")}, nil
}

// encryptedLayers gives the key to the images that this one stands on, if they are encrypted.
func (m *Image) encryptedLayers(ctx context.Context) ([]string, error) {
	var stderr bytes.Buffer
	cmd := programs.CommandContext(ctx, "qemu-img", "info", "--output=json", "--backing-chain", "-f", m.format, "--",
		m.path)
	cmd.Env, cmd.Stderr = append(cmd.Env, "LC_ALL=C"), &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%w: qemu-img info: %w: %s", ErrDamaged, err, strings.TrimSpace(stderr.String()))
	}
	var chain []struct {
		Format    string
		Encrypted bool
		Specific  struct {
			Data struct{ Encrypt struct{ Format string } }
		} `json:"format-specific"`
	}
	if err := json.Unmarshal(out, &chain); err != nil {
		return nil, fmt.Errorf("qemu-img info: %w", err)
	}
	var opts []string
	prefix := ""
	for i, layer := range chain {
		if i > 0 {
			prefix += "backing."
		}
		switch {
		case i == 0 || !layer.Encrypted:
		case layer.Format == formatLUKS:
			opts = append(opts, prefix+"key-secret="+keyID)
		default:
			opts = append(opts, prefix+"encrypt.format="+layer.Specific.Data.Encrypt.Format,
				prefix+"encrypt.key-secret="+keyID)
		}
	}
	return opts, nil
}

// openAsIs reads an encrypted image as the bytes that it is, which its secret opens elsewhere. What
// it stands on is not in them.
func (m *Image) openAsIs(backing string, device bool) (source, error) {
	if backing != "" {
		return nil, fmt.Errorf("%w: it stands on the file %q, without which it says nothing: commit or convert it "+
			"first", ErrFormat, backing)
	}
	m.asIs = true
	return newRaw(m.file, m.length, device), nil
}
