// SPDX-License-Identifier: Apache-2.0

// Package rotation exchanges the secret that all nodes of a mesh share, while the mesh runs. The node on which a
// person asks for it makes the new secret and orders the others to do each of three rounds:
//
//	accept   the new secret comes after the old one
//	use      the new one is the first, with which a node seals
//	drop     the old one goes
//
// A round begins when all nodes have done the one before. [Next] finds out from this node's secrets and from what the
// records of the others say which round it is, so nothing else needs to be remembered: a rotation that was interrupted
// goes on where it was. An [Order] is sealed to the node that is to follow it, and signed.
//
// Everything here is a pure function; package daemon sends orders, and writes the file.
package rotation

import (
	"crypto/hmac"
	"crypto/sha256"
	"fmt"
	"io"
	"slices"

	"github.com/meshd/meshd/internal/mesh"
)

// Domain separation: a secret's hash is of no use for anything else.
const (
	labelHash      = "meshd v1 hash of a secret"
	labelSuccessor = "meshd v1 successor of a secret"
)

// Secret is what the nodes of a mesh share.
type Secret = [32]byte

// drawn is how many bytes of a new secret are random. The rest shows which secret it replaces.
const drawn = 24

// Hash returns the short hash by which a secret is named.
func Hash(s Secret) mesh.SecretHash {
	return mesh.SecretHash(keyed(s, labelHash, nil)[:4])
}

// Hashes returns the hashes of the first of some secrets, in their order.
func Hashes(secrets []Secret) []mesh.SecretHash {
	var out []mesh.SecretHash
	for _, s := range secrets[:min(len(secrets), mesh.MaxSecrets)] {
		out = append(out, Hash(s))
	}
	return out
}

// Successor returns a new secret that replaces another one. Two secrets in a file look the same while the new one is
// accepted only and while the old one is not dropped yet, so whoever has both must see which is the new one: 24 bytes
// are random, and 8 follow from these and the old secret.
func Successor(old Secret, random io.Reader) (Secret, error) {
	var s Secret
	if _, err := io.ReadFull(random, s[:drawn]); err != nil {
		return Secret{}, fmt.Errorf("draw a secret: %w", err)
	}
	copy(s[drawn:], keyed(old, labelSuccessor, s[:drawn]))
	return s, nil
}

// follows reports whether a secret was made to replace another one.
func follows(s, old Secret) bool {
	return hmac.Equal(s[drawn:], keyed(old, labelSuccessor, s[:drawn])[:len(s)-drawn])
}

func keyed(key Secret, label string, data []byte) []byte {
	h := hmac.New(sha256.New, key[:])
	h.Write(slices.Concat([]byte(label), data))
	return h.Sum(nil)
}
