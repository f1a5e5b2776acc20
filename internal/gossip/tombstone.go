// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"crypto/ed25519"
	"errors"
	"fmt"

	"github.com/meshd/meshd/internal/mesh"
)

// tombstone makes all nodes forget a node's records up to a sequence, or a client. That
// sequence is also the tombstone's own, so that of two tombstones of one author the
// higher one counts, and what is forgotten stays forgotten.
type tombstone struct {
	identity ed25519.PublicKey
	target   mesh.ID
	upTo     uint64
}

type wireTombstone struct {
	Identity []byte `cbor:"1,keyasint"`
	UpTo     uint64 `cbor:"2,keyasint"`
	Target   []byte `cbor:"3,keyasint"`
}

func (t tombstone) author() ed25519.PublicKey { return t.identity }
func (t tombstone) subject() mesh.ID          { return t.target }
func (t tombstone) sequence() uint64          { return t.upTo }

// covered returns false: what was forgotten stays so, unless the tombstone's author is
// revoked, see store.covers.
func (t tombstone) covered(map[mesh.ID]uint64) bool { return false }

func encodeTombstone(t tombstone) ([]byte, error) {
	payload, err := encoding.Marshal(wireTombstone{t.identity, t.upTo, t.target[:]})
	if err != nil {
		return nil, fmt.Errorf("encode tombstone: %w", err)
	}
	return payload, nil
}

func decodeTombstone(payload []byte) (body, error) {
	var w wireTombstone
	if err := decoding.Unmarshal(payload, &w); err != nil {
		return nil, fmt.Errorf("decode tombstone: %w", err)
	}
	switch {
	case len(w.Identity) != ed25519.PublicKeySize:
		return nil, fmt.Errorf("decode tombstone: an identity of %d bytes", len(w.Identity))
	case len(w.Target) != len(mesh.ID{}):
		return nil, fmt.Errorf("decode tombstone: a fingerprint of %d bytes", len(w.Target))
	case w.UpTo == 0:
		return nil, errors.New("decode tombstone: sequence 0")
	case mesh.ID(w.Target) == mesh.IDOf(w.Identity):
		return nil, errors.New("decode tombstone: a node can forget only others, not itself")
	}
	return tombstone{w.Identity, mesh.ID(w.Target), w.UpTo}, nil
}
