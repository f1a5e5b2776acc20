// SPDX-License-Identifier: Apache-2.0

//go:build hostile

package gossip

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"fmt"
	"net"

	"github.com/hashicorp/go-msgpack/v2/codec"

	"github.com/meshd/meshd/internal/mesh"
)

// Kinds of objects and packets, for an [Attacker].
const (
	AttackRecord    = byte(kindRecord)
	AttackClient    = byte(kindClient)
	AttackVerdict   = byte(kindVerdict)
	AttackTombstone = byte(kindTombstone)
	AttackSettings  = byte(kindSettings)

	AttackPacketHere = byte(kindHere)
	AttackPacketAsk  = byte(kindAsk)
)

// Limits of what is sent, for an [Attacker].
const (
	AttackMaxSequence = maxSequence
)

// Attacker speaks the protocol without any of the checks that a node makes of what it
// sends. It exists only in programs that are built with the tag hostile.
type Attacker struct {
	Identity ed25519.PrivateKey
	Boot     uint64 // of its packets

	cluster mesh.Cluster
	ring    keyring
	counter uint64
}

// NewAttacker returns one that has a secret, or one that has another secret.
func NewAttacker(identity ed25519.PrivateKey, cluster mesh.Cluster, secret [32]byte) (*Attacker, error) {
	ring, err := newKeyring([][32]byte{secret})
	if err != nil {
		return nil, err
	}
	return &Attacker{Identity: identity, Boot: 1, cluster: cluster, ring: ring}, nil
}

// As returns the same attacker with another identity.
func (a *Attacker) As(identity ed25519.PrivateKey) *Attacker {
	return &Attacker{Identity: identity, Boot: 1, cluster: a.cluster, ring: a.ring}
}

// ID returns the fingerprint of its identity.
func (a *Attacker) ID() mesh.ID { return mesh.IDOf(a.Identity.Public().(ed25519.PublicKey)) }

// Object signs an object with any content: a map from field numbers to values. Number 1,
// the author, is filled in.
func (a *Attacker) Object(kind byte, content map[int]any) ([]byte, error) {
	content[1] = []byte(a.Identity.Public().(ed25519.PublicKey))
	payload, err := encoding.Marshal(content)
	if err != nil {
		return nil, fmt.Errorf("encode an attacker's object: %w", err)
	}
	return signObject(a.Identity, a.cluster.Name, objectKind(kind), payload)
}

// Packet encrypts a packet for a node, with any node as its sender.
func (a *Attacker) Packet(from, to mesh.ID, kind byte, payload []byte) ([]byte, error) {
	a.counter++
	return a.ring.sealPacket(rand.Reader, packet{
		kind: packetKind(kind), label: labelOf(a.cluster), from: from, boot: a.Boot, counter: a.counter, payload: payload,
	}, to)
}

// Hello is what an attacker claims at the beginning of a stream.
type Hello struct {
	ID       mesh.ID
	Instance uint64
	Cluster  func(*mesh.Cluster) // changes the settings that it claims; nil for no change
}

// Handshake runs gossip's handshake on a connection, and returns the encrypted stream.
func (a *Attacker) Handshake(conn net.Conn, h Hello) (net.Conn, error) {
	c := a.cluster
	if h.Cluster != nil {
		h.Cluster(&c)
	}
	return handshaker{a.ring, rand.Reader, a.Identity}.initiate(conn, hello{
		id: h.ID, instance: h.Instance, port: syntheticPort, boot: a.Boot, counter: a.counter, cluster: c,
	})
}

// AttackState returns what a node with these objects, and without other members, sends
// over a stream.
func AttackState(objects [][]byte) ([]byte, error) {
	state := []byte{formatVersion}
	state, rest := packObjects(state, objects, maxState)
	if len(rest) > 0 {
		return nil, fmt.Errorf("pack state: %d objects are too many", len(objects))
	}
	var b bytes.Buffer
	b.WriteByte(memberlistPushPull)
	err := codec.NewEncoder(&b, &codec.MsgpackHandle{}).Encode(map[string]any{"Nodes": 0, "UserStateLen": len(state), "Join": false})
	if err != nil {
		return nil, fmt.Errorf("encode the head of a state: %w", err)
	}
	return append(b.Bytes(), state...), nil
}
