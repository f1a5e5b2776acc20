// SPDX-License-Identifier: Apache-2.0

package mesh

import "encoding/hex"

// SecretHash names a shared secret in records and in the status. Nothing of the secret follows from it.
type SecretHash [4]byte

// MaxSecrets is how many of its secrets a node names.
const MaxSecrets = 4

// String returns eight hexadecimal digits.
func (h SecretHash) String() string { return hex.EncodeToString(h[:]) }

// MarshalText implements encoding.TextMarshaler.
func (h SecretHash) MarshalText() ([]byte, error) { return []byte(h.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (h *SecretHash) UnmarshalText(text []byte) error {
	if hex.DecodedLen(len(text)) != len(h) {
		return hex.ErrLength
	}
	_, err := hex.Decode(h[:], text)
	return err
}
