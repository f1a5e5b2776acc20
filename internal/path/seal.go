// SPDX-License-Identifier: Apache-2.0

package path

import (
	"bytes"
	"crypto/cipher"
	"crypto/ecdh"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/crypto/chacha20poly1305"
)

// magic begins each datagram. WireGuard's messages begin with 1 to 4 and three zero
// bytes, so the kernel drops these in silence.
const magic = 0x6d700001 // "mp", version 1

// A datagram is
//
//	0   magic, big-endian
//	4   sender
//	12  receiver
//	20  counter, big-endian
//	28  the message, sealed with ChaCha20-Poly1305: nonce from the counter, the header authenticated
const (
	headerLen = 28
	sealedLen = headerLen + messageLen + chacha20poly1305.Overhead
)

// Magic returns the bytes with which each datagram begins.
func Magic() [4]byte { return [4]byte(binary.BigEndian.AppendUint32(nil, magic)) }

// Beginnings returns the bytes with one of which each datagram begins that a node takes:
// those that are sealed, and the two messages of WireGuard of which SessionIndex is read.
func Beginnings() [][4]byte { return [][4]byte{Magic(), {initiation}, {response}} }

// Header is the part of a datagram that anybody can read. A relay forwards by it.
type Header struct {
	From, To Short
	Counter  uint64
}

// The errors of Open.
var (
	ErrNotProbe = errors.New("not a probe")
	ErrForged   = errors.New("probe is not from its sender")
	ErrReplayed = errors.New("probe came before")
)

// ParseHeader reads the header of a datagram.
func ParseHeader(b []byte) (Header, error) {
	if len(b) < sealedLen || binary.BigEndian.Uint32(b) != magic {
		return Header{}, ErrNotProbe
	}
	return Header{From: Short(b[4:12]), To: Short(b[12:20]), Counter: binary.BigEndian.Uint64(b[20:])}, nil
}

// Keys seals and opens the datagrams between this node and one peer.
type Keys struct {
	self, peer Short
	out, in    cipher.AEAD // in is nil in a WhoSealer's, out in a WhoOpener's
	window     Window
}

// NewKeys derives the two keys, one a direction, from this node's X25519 key, the peer's
// public one, and the names of the cluster and of both ends. It fails on a public key
// that gives no secret.
func NewKeys(cluster string, self, peer Short, own *ecdh.PrivateKey, public *ecdh.PublicKey) (*Keys, error) {
	shared, err := own.ECDH(public)
	if err != nil {
		return nil, fmt.Errorf("agree on a path key: %w", err)
	}
	out, err := directed(shared, cluster, self, peer)
	if err != nil {
		return nil, err
	}
	in, err := directed(shared, cluster, peer, self)
	if err != nil {
		return nil, err
	}
	return &Keys{self: self, peer: peer, out: out, in: in}, nil
}

// WhoSealer returns keys that seal what a relay sends to whoever is at an address, and
// WhoOpener those that open it: every node that has the cluster's secret and knows the
// relay's path key. That key is in them because the counter begins anew with it.
func WhoSealer(cluster string, secret [32]byte, relay Short, public *ecdh.PublicKey) (*Keys, error) {
	aead, err := toAnybody(cluster, secret, relay, public)
	return &Keys{self: relay, out: aead}, err
}

// WhoOpener returns keys that open what a relay has sealed with those of WhoSealer.
func WhoOpener(cluster string, secret [32]byte, relay Short, public *ecdh.PublicKey) (*Keys, error) {
	aead, err := toAnybody(cluster, secret, relay, public)
	return &Keys{peer: relay, in: aead}, err
}

func toAnybody(cluster string, secret [32]byte, relay Short, public *ecdh.PublicKey) (cipher.AEAD, error) {
	return directed(slices.Concat(secret[:], public.Bytes()), cluster, relay, Short{})
}

// directed is the key for what one node sends to another.
func directed(shared []byte, cluster string, from, to Short) (cipher.AEAD, error) {
	info := bytes.Join([][]byte{[]byte("meshd path 1"), from[:], to[:], []byte(cluster)}, nil)
	key, err := hkdf.Key(sha256.New, shared, nil, string(info), chacha20poly1305.KeySize)
	if err != nil {
		return nil, fmt.Errorf("derive path key: %w", err)
	}
	aead, err := chacha20poly1305.New(key)
	if err != nil {
		return nil, fmt.Errorf("use path key: %w", err)
	}
	return aead, nil
}

// nonce is the counter, which is never used twice with one key.
func nonce(counter uint64) []byte {
	return binary.BigEndian.AppendUint64(make([]byte, chacha20poly1305.NonceSize-8, chacha20poly1305.NonceSize), counter)
}

// Seal returns the datagram that carries a message. The counter must be above 0 and new,
// also after a restart with the same path key.
func (k *Keys) Seal(m Message, counter uint64) []byte {
	b := binary.BigEndian.AppendUint32(make([]byte, 0, sealedLen), magic)
	b = append(b, k.self[:]...)
	b = append(b, k.peer[:]...)
	b = binary.BigEndian.AppendUint64(b, counter)
	return k.out.Seal(b, nonce(counter), m.Append(nil), b)
}

// Open returns the message of a datagram that the peer sealed for this node, once.
func (k *Keys) Open(b []byte) (Message, error) {
	h, err := ParseHeader(b)
	if err != nil {
		return Message{}, err
	}
	if h.From != k.peer || h.To != k.self {
		return Message{}, ErrForged
	}
	plain, err := k.in.Open(nil, nonce(h.Counter), b[headerLen:], b[:headerLen])
	if err != nil {
		return Message{}, ErrForged
	}
	if !k.window.Accept(h.Counter) {
		return Message{}, ErrReplayed
	}
	return ParseMessage(plain)
}
