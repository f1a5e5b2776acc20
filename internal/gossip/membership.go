// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"crypto/ed25519"
	"fmt"
	"slices"

	"github.com/meshd/meshd/internal/mesh"
)

// membershipBody is a membership as the content of an object.
type membershipBody struct {
	mesh.Membership
	identity ed25519.PublicKey
	by       uint64 // sequence of the author's record at that time: it is forgotten with that record
}

type wireMembership struct {
	Identity []byte `cbor:"1,keyasint"`
	Sequence uint64 `cbor:"2,keyasint"`
	By       uint64 `cbor:"3,keyasint"`
	Location string `cbor:"4,keyasint"`
	Met      []byte `cbor:"5,keyasint,omitempty"` // short fingerprints, one after the other
}

func (b membershipBody) author() ed25519.PublicKey { return b.identity }
func (b membershipBody) subject() mesh.ID          { return b.Author }
func (b membershipBody) sequence() uint64          { return b.Sequence }

func (b membershipBody) covered(forgotten map[mesh.ID]uint64) bool {
	return b.by <= forgotten[b.Author]
}

func (b membershipBody) isEmpty() bool { return len(b.Met) == 0 }

func (b membershipBody) same(held body) bool {
	h, ok := held.(membershipBody)
	return ok && h.Location == b.Location && slices.Equal(h.Met, b.Met)
}

func (b membershipBody) encode(author ed25519.PublicKey, sequence, by uint64) ([]byte, error) {
	w := wireMembership{Identity: author, Sequence: sequence, By: by, Location: b.Location}
	for _, id := range b.Met {
		w.Met = append(w.Met, id[:]...)
	}
	payload, err := encoding.Marshal(w)
	if err != nil {
		return nil, fmt.Errorf("encode membership: %w", err)
	}
	return payload, nil
}

func decodeMembership(payload []byte) (body, error) {
	var w wireMembership
	if err := decoding.Unmarshal(payload, &w); err != nil {
		return nil, fmt.Errorf("decode membership: %w", err)
	}
	b := membershipBody{identity: w.Identity, by: w.By}
	const size = len(mesh.ShortID{})
	switch {
	case len(w.Identity) != ed25519.PublicKeySize:
		return nil, fmt.Errorf("decode membership: an identity of %d bytes", len(w.Identity))
	case w.Sequence == 0 || w.Sequence > maxSequence || w.By == 0 || w.By > maxSequence:
		return nil, fmt.Errorf("decode membership: sequence %d, by record %d", w.Sequence, w.By)
	case len(w.Met)%size != 0:
		return nil, fmt.Errorf("decode membership: short fingerprints of %d bytes in all", len(w.Met))
	}
	b.Author, b.Sequence, b.Location = mesh.IDOf(b.identity), w.Sequence, w.Location
	for id := range slices.Chunk(w.Met, size) {
		b.Met = append(b.Met, mesh.ShortID(id))
	}
	if err := b.Check(); err != nil {
		return nil, fmt.Errorf("decode membership: %w", err)
	}
	return b, nil
}

// PublishMembership signs which nodes this one has met and distributes that, without its
// Author and Sequence, which are filled in. See say.
func (g *Gossip) PublishMembership(m mesh.Membership) error {
	m.Author, m.Sequence, m.Met = g.self, 0, slices.Clone(m.Met)
	if err := m.Check(); err != nil {
		return fmt.Errorf("publish membership: %w", err)
	}
	g.say(kindMembership, membershipBody{Membership: m})
	return nil
}

// memberships returns what all nodes say of whom they have met, by author.
func (s *store) memberships() []mesh.Membership {
	var all []mesh.Membership
	for _, o := range s.nonRecords {
		if b, ok := o.body.(membershipBody); ok {
			m := b.Membership
			m.Met = slices.Clone(m.Met)
			all = append(all, m)
		}
	}
	slices.SortFunc(all, func(a, b mesh.Membership) int { return a.Author.Compare(b.Author) })
	return all
}
