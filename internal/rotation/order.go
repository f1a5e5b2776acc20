// SPDX-License-Identifier: Apache-2.0

package rotation

import (
	"crypto/ecdh"
	"crypto/ed25519"
	"crypto/hpke"
	"errors"
	"fmt"
	"slices"

	"github.com/meshd/meshd/internal/mesh"
)

// Round is what nodes do with the new secret.
type Round byte

// The rounds, in their order.
const (
	Accept Round = 1 + iota
	Use
	Drop
)

func (r Round) String() string {
	switch r {
	case Accept:
		return "accept"
	case Use:
		return "use"
	case Drop:
		return "drop"
	}
	return fmt.Sprintf("round %d", byte(r))
}

// Order tells a node to do a round. It names the secrets that the node must have before, so one that was recorded
// and comes again finds others, and does nothing.
type Order struct {
	Round    Round
	Old, New mesh.SecretHash
	Secret   Secret // the new one; only in the round Accept
}

// The errors of Open and Apply.
var (
	ErrForged = errors.New("order is not from its sender for this node")
	ErrDone   = errors.New("order was followed before")
)

// orderLen is the length of an order without the new secret:
//
//	round 1 | old 4 | new 4 | secret 32, in the round Accept
const orderLen = 1 + 2*len(mesh.SecretHash{})

func (o Order) encode() []byte {
	b := slices.Concat([]byte{byte(o.Round)}, o.Old[:], o.New[:])
	if o.Round == Accept {
		b = append(b, o.Secret[:]...)
	}
	return b
}

func decode(b []byte) (Order, error) {
	if len(b) < orderLen {
		return Order{}, fmt.Errorf("an order of %d bytes", len(b))
	}
	o := Order{Round: Round(b[0]), Old: mesh.SecretHash(b[1:5]), New: mesh.SecretHash(b[5:9])}
	rest := b[orderLen:]
	if o.Round == Accept && len(rest) == len(o.Secret) {
		o.Secret, rest = Secret(rest), nil
	} else if o.Round != Use && o.Round != Drop {
		return Order{}, fmt.Errorf("an order of %d bytes for %v", len(b), o.Round)
	}
	if len(rest) > 0 {
		return Order{}, fmt.Errorf("an order of %d bytes for %v", len(b), o.Round)
	}
	return o, nil
}

// labelOrder separates the signature and the seal of an order from all others of meshd.
const labelOrder = "meshd v1 secret order"

// signed is what a sender signs.
func signed(cluster string, to mesh.ID, order []byte) []byte {
	return slices.Concat([]byte(labelOrder), to[:], []byte{byte(len(order))}, order, []byte(cluster))
}

// info binds the seal to both ends, see RFC 9180.
func info(cluster string, from, to mesh.ID) []byte {
	return slices.Concat([]byte(labelOrder), from[:], to[:], []byte(cluster))
}

// Seal signs an order with this node's identity, and seals it to the path key of another node: at most 200 bytes.
func Seal(o Order, cluster string, identity ed25519.PrivateKey, to mesh.ID, key *ecdh.PublicKey) ([]byte, error) {
	public, err := hpke.NewDHKEMPublicKey(key)
	if err != nil {
		return nil, fmt.Errorf("seal order: %w", err)
	}
	order := o.encode()
	from := mesh.IDOf(identity.Public().(ed25519.PublicKey))
	plain := append(ed25519.Sign(identity, signed(cluster, to, order)), order...)
	sealed, err := hpke.Seal(public, hpke.HKDFSHA256(), hpke.ChaCha20Poly1305(), info(cluster, from, to), plain)
	if err != nil {
		return nil, fmt.Errorf("seal order: %w", err)
	}
	return sealed, nil
}

// Open is the reverse of Seal on the node that gets the order, with its own path key and the sender's identity. It
// returns ErrForged for what the sender has not sealed for this node.
func Open(sealed []byte, cluster string, from ed25519.PublicKey, self mesh.ID, key *ecdh.PrivateKey) (Order, error) {
	private, err := hpke.NewDHKEMPrivateKey(key)
	if err != nil {
		return Order{}, fmt.Errorf("open order: %w", err)
	}
	plain, err := hpke.Open(private, hpke.HKDFSHA256(), hpke.ChaCha20Poly1305(), info(cluster, mesh.IDOf(from), self), sealed)
	if err != nil || len(plain) < ed25519.SignatureSize {
		return Order{}, ErrForged
	}
	order := plain[ed25519.SignatureSize:]
	if len(order) > orderLen+len(Secret{}) || !ed25519.Verify(from, signed(cluster, self, order), plain[:ed25519.SignatureSize]) {
		return Order{}, ErrForged
	}
	o, err := decode(order)
	if err != nil {
		return Order{}, fmt.Errorf("open order: %w", err)
	}
	return o, nil
}

// Apply returns the secrets of a node after an order: ErrDone if it has them already, and another error if it has
// not those that the order expects.
func (o Order) Apply(mine []Secret) ([]Secret, error) {
	before, after := []mesh.SecretHash{o.Old}, []mesh.SecretHash{o.Old, o.New}
	switch o.Round {
	case Use:
		before, after = after, []mesh.SecretHash{o.New, o.Old}
	case Drop:
		before, after = []mesh.SecretHash{o.New, o.Old}, []mesh.SecretHash{o.New}
	}
	has := make([]mesh.SecretHash, 0, len(mine))
	for _, s := range mine {
		has = append(has, Hash(s))
	}
	switch {
	case slices.Equal(has, after):
		return nil, ErrDone
	case !slices.Equal(has, before):
		return nil, fmt.Errorf("this node has the secrets %v instead of %v", has, before)
	}
	var old, next Secret
	switch o.Round {
	case Accept:
		if Hash(o.Secret) != o.New {
			return nil, fmt.Errorf("the new secret is not %v", o.New)
		}
		old, next, mine = mine[0], o.Secret, []Secret{mine[0], o.Secret}
	case Use:
		old, next, mine = mine[0], mine[1], []Secret{mine[1], mine[0]}
	default:
		old, next, mine = mine[1], mine[0], mine[:1:1]
	}
	if !follows(next, old) {
		return nil, fmt.Errorf("%v was not made to replace %v", o.New, o.Old)
	}
	return mine, nil
}
