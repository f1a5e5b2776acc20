// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"crypto/ed25519"
	"fmt"
	"net/netip"
	"slices"

	"github.com/meshd/meshd/internal/mesh"
)

// reachBody is what a node says of whom it has tried to reach, as the content of an object.
type reachBody struct {
	mesh.Reach
	identity ed25519.PublicKey
	by       uint64 // sequence of the author's record at that time: it is forgotten with that record
}

type wireReach struct {
	Identity []byte      `cbor:"1,keyasint"`
	Sequence uint64      `cbor:"2,keyasint"`
	By       uint64      `cbor:"3,keyasint"`
	Tried    []wireTried `cbor:"4,keyasint,omitempty"`
}

type wireTried struct {
	_       struct{} `cbor:",toarray"`
	Subject []byte
	Addr    netip.AddrPort
	Reached bool
}

func (b reachBody) author() ed25519.PublicKey { return b.identity }
func (b reachBody) subject() mesh.ID          { return b.Author }
func (b reachBody) sequence() uint64          { return b.Sequence }

func (b reachBody) covered(forgotten map[mesh.ID]uint64) bool { return b.by <= forgotten[b.Author] }

func (b reachBody) isEmpty() bool { return len(b.Tried) == 0 }

func (b reachBody) same(held body) bool {
	h, ok := held.(reachBody)
	return ok && slices.Equal(h.Tried, b.Tried)
}

func (b reachBody) encode(author ed25519.PublicKey, sequence, by uint64) ([]byte, error) {
	w := wireReach{Identity: author, Sequence: sequence, By: by}
	for _, t := range b.Tried {
		w.Tried = append(w.Tried, wireTried{Subject: t.Subject[:], Addr: t.Addr, Reached: t.Reached})
	}
	payload, err := encoding.Marshal(w)
	if err != nil {
		return nil, fmt.Errorf("encode reach: %w", err)
	}
	return payload, nil
}

func decodeReach(payload []byte) (body, error) {
	var w wireReach
	if err := decoding.Unmarshal(payload, &w); err != nil {
		return nil, fmt.Errorf("decode reach: %w", err)
	}
	b := reachBody{identity: w.Identity, by: w.By}
	switch {
	case len(w.Identity) != ed25519.PublicKeySize:
		return nil, fmt.Errorf("decode reach: an identity of %d bytes", len(w.Identity))
	case w.Sequence == 0 || w.Sequence > maxSequence || w.By == 0 || w.By > maxSequence:
		return nil, fmt.Errorf("decode reach: sequence %d, by record %d", w.Sequence, w.By)
	}
	b.Author, b.Sequence = mesh.IDOf(b.identity), w.Sequence
	for _, t := range w.Tried {
		if len(t.Subject) != len(mesh.ID{}) {
			return nil, fmt.Errorf("decode reach: a fingerprint of %d bytes", len(t.Subject))
		}
		b.Tried = append(b.Tried, mesh.Tried{Subject: mesh.ID(t.Subject), Addr: t.Addr, Reached: t.Reached})
	}
	if err := b.Check(); err != nil {
		return nil, fmt.Errorf("decode reach: %w", err)
	}
	return b, nil
}

// PublishReach signs whom this node has tried to reach and distributes that, without its
// Author and Sequence, which are filled in. See say.
func (g *Gossip) PublishReach(r mesh.Reach) error {
	r.Author, r.Sequence, r.Tried = g.self, 0, slices.Clone(r.Tried)
	if err := r.Check(); err != nil {
		return fmt.Errorf("publish reach: %w", err)
	}
	g.say(kindReach, reachBody{Reach: r})
	return nil
}

// reaches returns what all nodes say of whom they have tried to reach, by author.
func (s *store) reaches() []mesh.Reach {
	var all []mesh.Reach
	for _, o := range s.nonRecords {
		if b, ok := o.body.(reachBody); ok {
			r := b.Reach
			r.Tried = slices.Clone(r.Tried)
			all = append(all, r)
		}
	}
	slices.SortFunc(all, func(a, b mesh.Reach) int { return a.Author.Compare(b.Author) })
	return all
}
